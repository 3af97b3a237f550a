/// @file  The adapters of one MoE block, by the parts that they lie beside.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/fused_adapters.hpp"
#include "moe/io/peft_adapters.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Of all parts of one block that adapters may lie beside; of rank 0 where there is none.
template <class Scalar>
struct BlockAdapters {
  /// What is left out while they learn.
  struct Learning {
    double dropout = 0;
    std::uint64_t seed = 1;
  };

  Adapter<Scalar> router{}, shared_gate{}, latent_in{}, latent_out{};
  Adapter<Scalar> second_router{};                // of the second modality
  std::vector<ExpertAdapters<Scalar>> experts{};  // of those that the router chooses, then of others that compute
  ExpertAdapters<Scalar> shared{};
  Learning of_router{}, of_experts{}, of_shared{};
  // Weights that were trained in full: PEFT's modules_to_save.
  std::optional<Weight<Scalar>> whole_router{};
  std::map<std::string, Vector<Scalar>> whole_vectors{};  // by the name of the layer's parameter
};

/// One adapter that adds what two do.
template <class Scalar>
Adapter<Scalar> sum_of(const Adapter<Scalar>& one, const Adapter<Scalar>& other) {
  if (one.rank() == 0) return other;
  if (other.rank() == 0) return one;
  const Index rank = one.rank() + other.rank();
  Adapter<Scalar> sum{Weight<Scalar>(rank, one.in()), Weight<Scalar>(one.out(), rank), double(rank)};
  sum.a << one.a, other.a;
  sum.b << one.scale() * one.b, other.scale() * other.b;
  return sum;
}

/// The same of all parts.
/// @param who  what errors begin with
/// @throws Error if both have a weight in full.
template <class Scalar>
void add_to(BlockAdapters<Scalar>& all, BlockAdapters<Scalar> more, const std::string& who) {
  const auto add = [](Adapter<Scalar>& to, const Adapter<Scalar>& from) { to = sum_of(to, from); };
  add(all.router, more.router);
  add(all.shared_gate, more.shared_gate);
  add(all.second_router, more.second_router);
  add(all.latent_in, more.latent_in);
  add(all.latent_out, more.latent_out);
  for (Index matrix = 0; matrix < 3; ++matrix) {
    add(all.shared[matrix], more.shared[matrix]);
    for (std::size_t e = 0; e < all.experts.size(); ++e) add(all.experts[e][matrix], more.experts[e][matrix]);
  }
  const auto refuse_if = [&](bool both, const std::string& what) {
    if (both) fail(who, ": has ", what, " in full, and so has a folder before it: only one can be used");
  };
  refuse_if(all.whole_router && more.whole_router, "the router's weight");
  if (more.whole_router) all.whole_router = std::move(more.whole_router);
  for (auto& [parameter, numbers] : more.whole_vectors) {
    refuse_if(all.whole_vectors.contains(parameter), parameter);
    all.whole_vectors.emplace(parameter, std::move(numbers));
  }
  for (auto* const part : {&all.of_router, &all.of_experts, &all.of_shared}) {
    part->dropout = std::max(part->dropout, more.of_experts.dropout);
  }
}

/// Which matrix of a block a module's name means.
struct AdapterPlace {
  enum Part {
    router,
    second_router,
    shared_gate,
    latent_in,
    latent_out,
    shared,
    expert,
    all_experts,
    parameters_of_experts,
    parameters_of_others
  };
  static constexpr Index gate_and_up = 3;

  Part part;
  Index matrix = 0;  // 0 gate, 1 up, 2 down, or gate_and_up
};

/// What else of a block computes, beside the experts that its router chooses: numbered behind them.
struct OtherExperts {
  Index count = 0, d_ff = 0;
};

/// The modules of a block that may have adapters, relative to it, "#" an expert's number: under the names of its model
/// and under ours.
inline std::map<std::string, AdapterPlace> adapter_places(const Architecture& architecture, const MoeShape& shape,
                                                          const OtherExperts& others) {
  std::map<std::string, AdapterPlace> places;
  constexpr std::string_view end = ".weight";
  const auto add = [&](std::string_view weight, AdapterPlace place) {
    if (weight.ends_with(end)) places.emplace(weight.substr(0, weight.size() - end.size()), place);
  };
  const auto add_each = [&](std::string_view weights, AdapterPlace::Part part) {
    for (const std::string_view weight : alternatives(weights)) add(weight, {part});
  };
  /// All three matrices of experts, or of the shared one.
  const auto add_spelling = [&](std::string_view prefix, const Spelling& names, AdapterPlace::Part part) {
    const auto full = [&](std::string_view name) {
      return name.empty() ? "" : std::string(prefix) + std::string(name);
    };
    add(full(names.gate), {part, 0});
    add(full(names.up), {part, names.layout == Layout::fused ? AdapterPlace::gate_and_up : 1});
    add(full(names.down), {part, 2});
  };

  const RouterKind kind = architecture.router_kind;
  if (kind == RouterKind::by_modality && others.count > 0) {
    for (const char* const name : {"gate.0.weight", "text_moe.gate.weight"}) add(name, {AdapterPlace::router});
    for (const char* const name : {"gate.1.weight", "vision_moe.gate.weight"}) add(name, {AdapterPlace::second_router});
    places.emplace("text_moe.experts", AdapterPlace{AdapterPlace::parameters_of_experts});
    places.emplace("vision_moe.experts", AdapterPlace{AdapterPlace::parameters_of_others});
  } else if (kind != RouterKind::normed && kind != RouterKind::carried) {  // beside which nothing lies
    add_each(architecture.router, AdapterPlace::router);
    add("gate.weight", {AdapterPlace::router});
  }
  const std::string experts = std::string(architecture.experts) + "|experts.";
  for (const std::string_view prefix : alternatives(experts)) {
    if (prefix.ends_with('.')) {
      places.emplace(prefix.substr(0, prefix.size() - 1), AdapterPlace{AdapterPlace::parameters_of_experts});
    }
    for (const Spelling& names : expert_spellings) {
      if (names.gated != is_gated(shape.hidden) || names.layout == Layout::rows) continue;
      const bool is_of_each = names.layout == Layout::separate;
      add_spelling(prefix, names, is_of_each ? AdapterPlace::expert : AdapterPlace::all_experts);
    }
  }
  if (shape.d_ff_shared > 0) {
    const std::string shared = std::string(architecture.shared) + "|shared_expert.";
    for (const std::string_view prefix : alternatives(shared)) {
      for (const Spelling& names : ffn_spellings) {
        if (names.gated == is_gated(shape.hidden_shared)) add_spelling(prefix, names, AdapterPlace::shared);
      }
    }
  }
  if (shape.shared_gate) add_each(architecture.shared_gate, AdapterPlace::shared_gate);
  const auto add_latent = [&](std::string_view names, const std::string& ours, AdapterPlace::Part part) {
    for (const std::string_view name : alternatives(names)) places.emplace(name, AdapterPlace{part});
    places.emplace(ours, AdapterPlace{part});
  };
  if (shape.d_latent > 0) {
    add_latent(architecture.latent_in, LatentNames().in, AdapterPlace::latent_in);
    add_latent(architecture.latent_out, LatentNames().out, AdapterPlace::latent_out);
  }
  return places;
}

/// The vectors of a block that learn in full where adapters do: what the layer calls each, and what its model does.
inline std::vector<std::pair<std::string, std::string_view>> whole_vectors(const Architecture& architecture) {
  std::vector<std::pair<std::string, std::string_view>> all = {
      {"shared_expert_gate.weight", architecture.shared_gate},
      {"bias", architecture.output_bias},
      {"post_mlp_layernorm.weight", architecture.output_norm},
      {"latent_norm.weight", architecture.latent_norm},
      {"routed_expert_norm.weight", architecture.norm_of_answers},
      {"experts.post_expert_norm.weight", architecture.expert_norm}};
  std::erase_if(all, [](const auto& one) { return one.second.empty(); });
  return all;
}

}  // namespace moe::inline MOE_TARGET::io::detail
