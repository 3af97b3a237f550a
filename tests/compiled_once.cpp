#define MOE_ONCE_WHOLE
#include "compiled_once.hpp"
