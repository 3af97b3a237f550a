/// @file  The version of this library.
#pragma once

/// That of the CMake package, and of the tag.
/// @{
#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0
/// @}
