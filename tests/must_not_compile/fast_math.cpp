// What -ffast-math allows a compiler would change bits that are promised.
// flags: -ffast-math
// expect: moe: -ffast-math and its parts break promises of bits and of NaN: compile without it, and without -Ofast
// lines: 30
#include "moe/moe.hpp"
