/// @file  The door to models: shapes of published ones, and layers of random weights with these shapes.
#pragma once

#include "moe/models/dense_equivalents.hpp"
#include "moe/models/make_layer.hpp"
#include "moe/models/presets.hpp"
#include "moe/models/random.hpp"
