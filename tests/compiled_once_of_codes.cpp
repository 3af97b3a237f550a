#include "compiled_once_of_codes.hpp"

namespace moe::inline MOE_TARGET::kernels {

MOE_ONCE_OF_CODES()

}  // namespace moe::inline MOE_TARGET::kernels
