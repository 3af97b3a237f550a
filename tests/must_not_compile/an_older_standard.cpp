// Older standards get one sentence, and not what follows from them.
// flags: -std=c++17
// expect: moe: needs C\+\+20: compile with -std=c\+\+20 or later
// lines: 30
#include "moe/moe.hpp"
