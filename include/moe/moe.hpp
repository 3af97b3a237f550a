/// @file  The door: all that inference needs, on Eigen alone.
#pragma once

#include "moe/activation.hpp"
#include "moe/concepts.hpp"
#include "moe/dense.hpp"
#include "moe/executors/openmp.hpp"
#include "moe/executors/serial.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/experts/gated_ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/shared.hpp"
#include "moe/types.hpp"
#include "moe/version.hpp"
