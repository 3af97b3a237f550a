/// @file  Noisy top-k gating with its noise stored.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "golden_checks/common.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/noisy_top_k.hpp"

namespace moe::golden {

/// fc1 → relu → fc2 → softmax over the features.
struct FfnToShares {
  using Scalar = float;

  Ffn<float> ffn;

  Index d_model() const { return ffn.d_model(); }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch& scratch) const {
    ffn.forward(x, y, scratch);
    for (Index t = 0; t < y.cols(); ++t) softmax(y.col(t), y.col(t));
  }
};

inline void check_noisy_top_k(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Index num_experts = reference.size("num_experts");
  const NoisyTopK<float> router(reference.turned_weight("w_gate"), reference.turned_weight("w_noise"),
                                {.top_k = reference.size("num_experts_per_tok"), .renormalize = true, .epsilon = 1e-6},
                                reference.config.number("noise_epsilon"));
  std::vector<FfnToShares> experts;
  for (Index e = 0; e < num_experts; ++e) {
    const std::string name = "experts." + std::to_string(e) + ".";
    experts.push_back({{.w_in = reference.weight(name + "fc1.weight"),
                        .w_out = reference.weight(name + "fc2.weight"),
                        .b_in = reference.vector(name + "fc1.bias"),
                        .b_out = reference.vector(name + "fc2.bias")}});
  }
  const MoeLayer layer(router, experts);
  const Matrix<float> x = reference.columns("input"), noise = reference.columns("noise");
  Matrix<float> y(x.rows(), x.cols());

  Workspace<float> training;
  training.side.noise = {noise.data(), std::size_t(noise.size())};
  layer.forward(x, y, training);
  expect_same_routes(training.routing, num_experts, reference);
  expect_close(weights_of(training.routing, num_experts, x.cols()), reference.columns("gates"), "gates");
  expect_close(y, reference.columns("output"), "output");

  Workspace<float> evaluation;
  layer.forward(x, y, evaluation);
  expect_close(logits_of(evaluation.routing, num_experts, x.cols()), reference.columns("router_logits"),
               "router_logits");
  expect_same_routes(evaluation.routing, num_experts, reference, "eval.topk_index", "eval.topk_weight");
  expect_close(y, reference.columns("eval.output"), "eval.output");
}

}  // namespace moe::golden
