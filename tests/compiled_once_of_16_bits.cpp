#define MOE_ONCE_NARROW
#include "compiled_once.hpp"
