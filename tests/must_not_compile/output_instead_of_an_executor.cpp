// forward(x, executor) returns y; to write to a y of one's own takes a workspace, too.
// expect: no matching (member )?function for call to .*forward
#include "moe/layers/dense.hpp"

void forward(const moe::DenseLayer<moe::GatedFfnBank<float>>& layer, const moe::Matrix<float>& x,
             moe::Matrix<float>& y) {
#ifdef MOE_POSITIVE_CONTROL
  moe::Workspace<float> ws;
  layer.forward(x, y, ws);
#else
  layer.forward(x, y);
#endif
}
