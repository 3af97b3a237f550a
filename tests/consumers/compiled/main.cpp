// A layer that a library has loaded computes what the reference does, its errors arrive, and threads run it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include <moe/io/checkpoint.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include "reference.hpp"

namespace {

bool holds(bool it, const char* what) {
  if (!it) std::printf("not so: %s\n", what);
  return it;
}

int run() {
  const auto loaded = moe::io::load_layer(FOLDER, "");
  const auto x = reference(FOLDER, "input"), expected = reference(FOLDER, "output");
  const moe::Index d = loaded.layer.d_model(), n = moe::Index(x.size()) / d;
  const Eigen::Map<const moe::Matrix<float>> tokens(x.data(), d, n), answer(expected.data(), d, n);

  moe::Workspace<float> ws;
  moe::Matrix<float> y(d, n), again(d, n);
  loaded.layer.forward(tokens, y, ws);
  bool good = holds((y - answer).cwiseAbs().maxCoeff() < 1e-5f, "the layer answers as the reference does");
  good &= holds(ws.routing.size() == n * loaded.shape.top_k, "the workspace is the caller's to read");
#ifdef _OPENMP
  loaded.layer.forward(tokens, again, ws, moe::OpenMp(2));
  good &= holds(again == y, "two threads give the bits of one");
#endif
  try {
    moe::io::load_layer("nowhere", "");
    good &= holds(false, "a folder that is not there is an error");
  } catch (const moe::io::Error& error) {
    good &= holds(std::strstr(error.what(), "nowhere") != nullptr, "an error of the library is moe::io::Error");
  }
  return good ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return std::getenv("MOE_PROCESSOR") != nullptr && std::strstr(error.what(), "MOE_PROCESSOR") != nullptr ? 77 : 1;
  }
}
