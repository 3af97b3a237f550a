// The banks of bfloat16 and float16: banks.hpp.
#include "banks.hpp"

namespace moe::io::detail {

MOE_BANKS(, bfloat16)
MOE_BANKS(, float16)

}  // namespace moe::io::detail
