// Tokens are columns, each contiguous; y cannot be written elsewhere.
// expect: no matching (member )?function for call to .*forward
#include "moe/layers/dense.hpp"

#ifdef MOE_POSITIVE_CONTROL
using Tokens = moe::Matrix<float>;
#else
using Tokens = moe::Weight<float>;
#endif

void forward(const moe::DenseLayer<moe::GatedFfnBank<float>>& layer, const moe::Matrix<float>& x, Tokens& y) {
  moe::Workspace<float> ws;
  layer.forward(x, y, ws);
}
