// All cores that are one, for want of a flag, are warned of. (A warning, so that a program may do without OpenMP.)
// flags: -Werror=deprecated-declarations
// expect: compiled without -fopenmp, this is one thread: add that flag, or say moe::Serial\(\)
#include "moe/runtime/executors/openmp.hpp"

moe::OpenMp executor;
