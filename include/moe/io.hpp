/// @file  The door to files: published layers, routes and parameters, read and written (needs nlohmann-json).
#pragma once

#include "moe/io/adapters.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/fused_adapters.hpp"
#include "moe/io/inspect.hpp"
#include "moe/io/inspection_text.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_adapters.hpp"
#include "moe/io/parameters.hpp"
#include "moe/io/peft_adapters.hpp"
#include "moe/io/routing.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/save_model.hpp"
#include "moe/io/save_upcycled.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/weight_tensors.hpp"
