/// @file  The door to losses: what a router is told of its balance, and the selection bias that needs none.
#pragma once

#include "moe/losses/bias_update.hpp"
#include "moe/losses/importance.hpp"
#include "moe/losses/load_balancing.hpp"
#include "moe/losses/smooth_load.hpp"
#include "moe/losses/variation.hpp"
#include "moe/losses/z_loss.hpp"
