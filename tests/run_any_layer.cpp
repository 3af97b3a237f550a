#include "run_any_layer.hpp"  // and nothing else of the library: moe/layers/any_layer.hpp is enough to run a layer

#ifdef NLOHMANN_JSON_VERSION_MAJOR
#error "moe/layers/any_layer.hpp brings what only moe/io/ needs"
#endif

namespace moe::test {

Matrix<float> run(const AnyLayer<float>& layer, const Matrix<float>& x) {
  static thread_local Workspace<float> ws;
  Matrix<float> y(layer.d_model(), x.cols());
  layer.forward(x, y, ws);
  return y;
}

}  // namespace moe::test
