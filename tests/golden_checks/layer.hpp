/// @file  Layers that load_layer() knows.
#pragma once

#include "golden_checks/common.hpp"
#include "golden_checks/gradients.hpp"
#include "load_layer.hpp"
#include "moe/moe.hpp"

namespace moe::golden {

inline void check_layer(const fs::path& folder) {
  const auto loaded = io::load_layer<float>(folder, "");
  const Case reference = Case::open(folder);
  const Matrix<float> x = reference.columns("input");

  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  ws.side.sequence_length = reference.size("_sequence_length");
  loaded.layer.forward(x, y, ws);

  const Index num_experts = loaded.shape.num_experts + loaded.shape.num_zero_experts;
  expect_close(logits_of(ws.routing, num_experts, x.cols()), reference.columns("router_logits"), "router_logits");
  expect_same_routes(ws.routing, num_experts, reference);
  expect_close(y, reference.columns("output"), "output");

  const Matrix<float> weights = weights_of(ws.routing, num_experts, x.cols());
  if (reference.has("combine_weights")) expect_close(weights, reference.columns("combine_weights"), "combine_weights");
  if (reference.has("dispatch_mask")) {
    const auto mask = reference.columns<std::int64_t>("dispatch_mask");
    EXPECT_EQ((weights.array() > 0).cast<std::int64_t>().matrix().eval(), mask) << "dispatch_mask";
  }
  auto trainable = test::load_trainable_layer(folder);
  trainable.workspace().side = ws.side;
  trainable.forward(x, y);
  expect_close(y, reference.columns("output"), "output of the forward pass that keeps a tape");
  if (reference.has("grad_output")) check_layer_gradients(trainable, folder, reference);
}

}  // namespace moe::golden
