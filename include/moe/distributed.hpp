/// @file  The door to experts on many ranks (needs MPI).
///
/// What reads or writes files stands apart, for it needs nlohmann-json: moe/distributed/checkpoint.hpp and
/// moe/distributed/parameters.hpp.
#pragma once

#include "moe/distributed/balance.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/distributed/move_experts.hpp"
#include "moe/distributed/placement.hpp"
#include "moe/distributed/polling.hpp"
#include "moe/distributed/run.hpp"
#include "moe/distributed/telemetry.hpp"
