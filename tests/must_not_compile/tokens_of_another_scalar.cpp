// float weights take float tokens; a cast would be a copy that nobody asked for.
// expect: no matching (member )?function for call to .*forward
#include "moe/layers/dense.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Tokens = moe::Matrix<float>;
#else
using Tokens = moe::Matrix<double>;
#endif

moe::Matrix<float> forward(const moe::DenseLayer<moe::GatedFfnBank<float>>& layer, const Tokens& x) {
  return layer.forward(x);
}
