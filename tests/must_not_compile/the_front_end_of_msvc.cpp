// MSVC by itself gets one sentence with the two ways on Windows. (No such compiler is at hand: macros play its part.)
// flags: -D_MSC_VER=1940 -U__clang__
// expect: moe: MSVC's own front end lacks what the kernels need: compile with clang-cl, or with g\+\+ of MinGW
// lines: 30
#include "moe/core/target.hpp"
