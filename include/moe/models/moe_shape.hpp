/// @file  What there is to know of an MoE layer besides its weights.
#pragma once

#include <variant>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// How a layer's router chooses.
using RouterOptions = std::variant<TopKOptions, SparseMixerOptions>;

/// One MoE layer. Widths are in units, counts in pieces, and 0 means that the layer has none.
struct MoeShape {
  Index d_model = 0;
  Index d_ff = 0;  // of one expert: configurations call it moe_intermediate_size
  Index num_experts = 0;
  Index top_k = 0;
  Index d_latent = 0;           // what experts read and answer, where it is not d_model
  Index d_ff_shared = 0;        // all shared experts side by side: n of width d are one of width n·d
  Index num_zero_experts = 0;   // choices without parameters, beside num_experts; top_k counts them too
  bool expert_bias = false;     // on gate, up and down, of the shared one and the latent projections, too
  bool router_bias = false;     // on the logits
  bool selection_bias = false;  // on the scores, for the choice alone: e_score_correction_bias
  bool shared_gate = false;     // the shared output is multiplied by σ(w·x)

  HiddenActivation hidden = {};         // of the experts
  HiddenActivation hidden_shared = {};  // of the shared one

  RouterOptions router = TopKOptions{};

  bool operator==(const MoeShape&) const = default;
};

}  // namespace moe::inline MOE_TARGET
