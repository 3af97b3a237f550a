// A layer holds parameters that many threads read; it does not hand them out for writing.
// expect: const .*WeightStack<float>. as 'this' argument|'this' argument to member function 'owned' has type 'const
#include "moe/layers/dense.hpp"

void change(const moe::DenseLayer<moe::GatedFfnBank<float>>& layer) {
#ifdef MOE_POSITIVE_CONTROL
  moe::WeightStack<float> w = layer.expert().w_gate();
  w.owned(0).setZero();
#else
  layer.expert().w_gate().owned(0).setZero();
#endif
}
