// Weights are row-major, as checkpoints store them; to read others in place would transpose them.
// expect: no matching function for call to 'map_of
#include "moe/core/types.hpp"

#ifdef MOE_POSITIVE_CONTROL
moe::Weight<float> w(2, 3);
#else
moe::Matrix<float> w(2, 3);
#endif

auto map = moe::map_of(w);
