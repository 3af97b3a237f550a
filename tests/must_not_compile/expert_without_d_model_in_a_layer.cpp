// The sentence comes first from a layer of a list, too, however deep the cause.
// expect: moe: this expert has no `Index d_model\(\) const`
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"

struct Twice {
  using Scalar = float;
#ifdef MOE_POSITIVE_CONTROL
  moe::Index d_model() const { return 4; }
#endif
  void forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float> y, moe::Scratch&) const { y = 2 * x; }
};

void forward(const moe::LinearTopK<float>& router, const moe::Matrix<float>& x) {
  moe::MoeLayer(router, std::vector<Twice>(4)).forward(x);
}
