/// @file  The door to telemetry: watch where tokens go.
#pragma once

#include "moe/telemetry/change.hpp"
#include "moe/telemetry/csv.hpp"
#include "moe/telemetry/drift.hpp"
#include "moe/telemetry/json_lines.hpp"
#include "moe/telemetry/open_metrics.hpp"
#include "moe/telemetry/readings.hpp"
#include "moe/telemetry/routing_stats.hpp"
#include "moe/telemetry/table.hpp"
