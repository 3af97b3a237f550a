/// @file  A choice that is balanced by Sinkhorn iterations.
#pragma once

#include <string>
#include <vector>

#include "golden_checks/common.hpp"
#include "golden_checks/gradients.hpp"
#include "moe/routers/sinkhorn.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/train.hpp"

namespace moe::golden {

inline void check_sinkhorn(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Matrix<float> logits = reference.columns("router_logits");
  const Index num_experts = reference.size("num_experts"), num_tokens = logits.cols();
  const SinkhornIteration iteration{.tolerance = reference.config.number("sinkhorn_tolerance")};
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);

  Matrix<float> balanced(num_experts, num_tokens);
  EXPECT_EQ(sinkhorn<float>(logits, balanced, iteration, workers), reference.size("_iterations"));
  expect_close(balanced, reference.columns("sinkhorn"), "sinkhorn");

  const std::string activation = reference.config.text("weight_activation");
  ASSERT_TRUE(activation == "sigmoid" || activation == "softmax") << activation;
  const SinkhornChoice<float> choice(num_experts,
                                     {.top_k = reference.size("num_experts_per_tok"), .iteration = iteration});
  EXPECT_EQ(choice.weigher().options().score, activation == "sigmoid" ? Score::sigmoid : Score::softmax);
  Routing<float> routing;
  choice.route(logits, routing, workers);
  expect_same_routes(routing, num_experts, reference);
  expect_close(weights_of(routing, num_experts, num_tokens), reference.columns("probs"), "probs");

  const Matrix<float> d_probs = reference.columns("grad_probs");
  std::vector<float> d_weight;
  for (Index r = 0; r < routing.size(); ++r) {
    d_weight.push_back(d_probs(routing.expert[std::size_t(r)], routing.token[std::size_t(r)]));
  }
  Matrix<float> d_logits = Matrix<float>::Zero(num_experts, num_tokens);
  NoGradient<float> none;
  backward(choice, logits, routing, d_weight, d_logits, none, workers);
  expect_close(d_logits, reference.columns("grad_router_logits"), "grad_router_logits", gradient_tolerance);
}

}  // namespace moe::golden
