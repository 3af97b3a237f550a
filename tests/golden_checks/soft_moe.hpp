/// @file  Soft MoE as soft-moe-pytorch computes it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "golden_checks/common.hpp"
#include "golden_checks/gradients.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/layers/soft_moe.hpp"
#include "moe/train.hpp"

namespace moe::golden {

/// The layer of the tensors whose names begin with `prefix`: the weights, or with "grad." their gradients.
inline auto soft_moe_of(const Case& reference, const std::string& prefix, double scale) {
  std::vector<Ffn<float, Gelu>> experts;
  for (Index e = 0; e < reference.size("num_experts"); ++e) {
    const std::string its = prefix + "experts.experts." + std::to_string(e);
    experts.push_back({.w_in = reference.weight(its + ".0.weight"),
                       .w_out = reference.weight(its + ".3.weight"),
                       .b_in = reference.vector(its + ".0.bias"),
                       .b_out = reference.vector(its + ".3.bias")});
  }
  return SoftMoe(reference.weight(prefix + "slot_embeds"), std::move(experts),
                 {.norm = SoftMoeNorm::rms, .scale = scale, .average_normalized = true},
                 reference.vector(prefix + "norm.gamma"), reference.vector(prefix + "slot_norm.gamma"));
}

inline void check_soft_moe(const fs::path& folder) {
  const Case reference = Case::open(folder);
  ASSERT_EQ(reference.config.text("activation"), "gelu");
  const auto layer = soft_moe_of(reference, "", 1);
  const Index num_slots = layer.num_slots(), length = reference.size("_sequence_length");
  ASSERT_EQ(layer.slots_per_expert(), reference.size("num_slots"));
  const Matrix<float> x = reference.columns("input");
  const Index num_tokens = x.cols(), num_sequences = num_tokens / length;

  Matrix<float> y(x.rows(), num_tokens);
  Workspace<float> ws;
  ws.side.sequence_length = length;
  layer.forward(x, y, ws);
  const Matrix<float> logits = logits_of(ws.routing, num_slots, num_tokens);
  expect_close(logits, reference.columns("slot_logits").reshaped(num_slots, num_tokens), "slot_logits");
  expect_close(y, reference.columns("output"), "output");

  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Matrix<float> combine(num_slots, num_tokens), dispatch(length, num_sequences * num_slots);
  soft_combine<float>(logits, combine, workers);
  soft_dispatch<float>(logits, dispatch, workers);
  expect_close(combine, reference.columns("combine_weights"), "combine_weights");
  const Matrix<float> of_token = reference.columns("dispatch_weights").reshaped(num_slots, num_tokens);
  for (Index b = 0; b < num_sequences; ++b) {
    expect_close(dispatch.middleCols(b * num_slots, num_slots),
                 of_token.middleCols(b * length, length).transpose().eval(), "dispatch_weights");
  }

  // The reference has no scale. Logits are the slots' gain times a number as well, so ∂L/∂scale = gain · ∂L/∂gain.
  const float d_scale = layer.slot_gain().dot(reference.vector("grad.slot_norm.gamma"));
  check_gradients_of(layer, soft_moe_of(reference, "grad.", d_scale), ws.side, reference);
}

}  // namespace moe::golden
