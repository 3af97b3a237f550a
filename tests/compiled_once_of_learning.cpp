#include "compiled_once_of_learning.hpp"

namespace moe::inline MOE_TARGET {

MOE_ONCE_OF_LEARNING()

}  // namespace moe::inline MOE_TARGET
