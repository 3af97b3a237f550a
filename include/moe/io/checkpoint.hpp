/// @file  From a model's files to a layer that runs.
///
/// Long to compile, for it knows every layout of every type of weight: keep it in one file of a program, which holds
/// AnyLayer elsewhere. Or link the library that moe::io is where CMake is told MOE_COMPILED: then this declares, and
/// the library defines.
#pragma once

#include "moe/io/load_layer.hpp"

#if !defined(MOE_IO_COMPILED)
#include "moe/io/layer_loader.hpp"
#endif
