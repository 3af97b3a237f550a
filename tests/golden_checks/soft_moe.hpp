/// @file  Soft MoE as soft-moe-pytorch computes it.
#pragma once

#include <string>
#include <vector>

#include "golden_checks/common.hpp"
#include "moe/activation.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/soft_moe.hpp"

namespace moe::golden {

inline void check_soft_moe(const fs::path& folder) {
  const Case reference = Case::open(folder);
  ASSERT_EQ(reference.config.text("activation"), "gelu");
  const Index num_experts = reference.size("num_experts"), num_slots = num_experts * reference.size("num_slots");
  const Index length = reference.size("_sequence_length");
  const Matrix<float> x = reference.columns("input");
  const Index num_tokens = x.cols(), num_sequences = num_tokens / length;

  std::vector<Ffn<float, Gelu>> experts;
  for (Index e = 0; e < num_experts; ++e) {
    const std::string prefix = "experts.experts." + std::to_string(e);
    experts.push_back({.w_in = reference.weight(prefix + ".0.weight"),
                       .w_out = reference.weight(prefix + ".3.weight"),
                       .b_in = reference.vector(prefix + ".0.bias"),
                       .b_out = reference.vector(prefix + ".3.bias")});
  }
  const SoftMoe layer(reference.weight("slot_embeds"), experts, {.norm = SoftMoeNorm::rms, .average_normalized = true},
                      reference.vector("norm.gamma"), reference.vector("slot_norm.gamma"));

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
}

}  // namespace moe::golden
