/// @file  What does a backward pass cost? Against the forward pass of the same layer, with and without a tape; and
/// against PyTorch, where it is installed.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "limits.hpp"
#include "machine.hpp"
#include "moe/models/presets.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "parse.hpp"
#include "timing.hpp"
#include "work.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

struct Options {
  std::vector<std::string> shapes{"mixtral-small", "olmoe-1b-7b"};
  std::vector<Index> tokens{16, 256, 1024};
  Index threads = moe::OpenMp().workers();
  double seconds = 5;
  std::string python = "python3";
};

/// Float weights, softmax over all experts, renormalised: Mixtral's rule, whatever the shape's own.
auto layer_of(const moe::MoeShape& shape) {
  moe::LinearTopK<float> router(moe::random_weight<float>(shape.num_experts, shape.d_model, 1),
                                {.top_k = shape.top_k, .renormalize = true});
  return moe::MoeLayer(std::move(router), moe::random_bank<float>(shape.num_experts, shape.d_model, shape.d_ff, 2));
}

/// Three times 2 · d_model · d_ff operations a route and a direction: forward, by activations, by weights.
double forward_flops(const moe::MoeShape& shape, Index tokens) {
  return 6. * double(shape.d_model) * double(shape.d_ff) * double(shape.top_k) * double(tokens);
}

template <class Layer>
void measure(const char* name, const moe::MoeShape& shape, const Layer& layer, Layer& gradient, Index tokens,
             const Options& options, const Limits& limits) {
  const moe::OpenMp executor(options.threads);
  const auto x = moe::random_tokens<float>(shape.d_model, tokens, 3),
             d_y = moe::random_tokens<float>(shape.d_model, tokens, 4);
  moe::Matrix<float> y(shape.d_model, tokens), d_x = moe::Matrix<float>::Zero(shape.d_model, tokens);
  moe::Workspace<float> ws;
  auto tape = tape_of(layer);
  forward(layer, x, y, tape, executor);
  const auto seconds =
      time_in_turn({[&] { return seconds_of([&] { layer.forward(x, y, ws, executor); }); },
                    [&] { return seconds_of([&] { forward(layer, x, y, tape, executor); }); },
                    [&] { return seconds_of([&] { backward(layer, x, d_y, tape, d_x, gradient, executor); }); }},
                   options.seconds);
  const double plain = median(seconds[0]), taped = median(seconds[1]), back = median(seconds[2]);
  const double flops = forward_flops(shape, tokens);
  std::printf("%-16s %6d   %8.2f ms %8.2f ms %8.2f ms   %5.2f   %5.0f %%   %5.0f %%\n", name, int(tokens), 1e3 * plain,
              1e3 * taped, 1e3 * back, back / plain, 100 * flops / plain * 1e-9 / limits.fma_gflops,
              100 * 2 * flops / back * 1e-9 / limits.fma_gflops);
  std::fflush(stdout);
}

/// The same lines of PyTorch's eager form, on the same threads.
void measure_pytorch(const Options& options) {
  if (options.python.empty()) return;
  const std::string python = "env -u OPENBLAS_CORETYPE " + options.python + " ";  // else it runs older kernels
  if (std::system((python + "-c 'import torch' 2>/dev/null").c_str()) != 0) {
    std::printf("PyTorch is not installed for %s (Debian's python3-torch)\n", options.python.c_str());
    return;
  }
  std::string command = python + BENCHMARKS_FOLDER "/bench_train_torch.py --threads " +
                        std::to_string(options.threads) + " --seconds " + std::to_string(options.seconds);
  for (const std::string& name : options.shapes) {
    const moe::MoeShape& shape = moe::layer_shape(name);
    command += " --shape " + name;
    for (const Index size : {shape.d_model, shape.d_ff, shape.num_experts, shape.top_k}) {
      command += " " + std::to_string(size);
    }
  }
  command += " --tokens";
  for (const Index tokens : options.tokens) command += " " + std::to_string(tokens);
  if (std::system(command.c_str()) != 0) throw std::runtime_error("PyTorch did not get through: " + command);
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  CLI::App app("What does a backward pass cost, against the forward pass of the same layer?");
  app.option_defaults()->always_capture_default();
  app.add_option("--shapes", options.shapes, "Published shapes")->delimiter(',');
  app.add_option("--tokens", options.tokens, "Numbers of tokens in a call")->delimiter(',');
  app.add_option("--threads", options.threads, "Default: one a core")->check(thread_count());
  app.add_option("--seconds", options.seconds, "To spend on each line")->check(above_zero());
  app.add_option("--python", options.python, "Whose PyTorch is measured afterwards, if it has one; empty for none");
  CLI11_PARSE(app, argc, argv);

  const Limits limits = measure_limits(options.threads);
  std::printf("float, %d threads; limit: %.0f GFLOP/s\n", int(options.threads), limits.fma_gflops);
  std::printf("%-16s %6s   %11s %11s %11s   %5s   %7s   %7s\n", "shape", "tokens", "forward", "with tape", "backward",
              "ratio", "forward", "backward");
  for (const std::string& name : options.shapes) {
    const moe::MoeShape& shape = moe::layer_shape(name);
    const auto layer = layer_of(shape);
    auto gradient = zeros_like(layer);
    for (const Index tokens : options.tokens) {
      measure(name.c_str(), shape, layer, gradient, tokens, options, limits);
    }
  }
  measure_pytorch(options);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_train: %s\n", error.what());
  return EXIT_FAILURE;
}
