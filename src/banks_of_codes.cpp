// The banks of coded numbers: banks.hpp.
#include "banks.hpp"

namespace moe::io::detail {

MOE_BANKS(, Quantized)

}  // namespace moe::io::detail
