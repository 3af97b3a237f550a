// The banks of float and double: banks.hpp.
#include "banks.hpp"

namespace moe::io::detail {

MOE_BANKS(, float)
MOE_BANKS(, double)

}  // namespace moe::io::detail
