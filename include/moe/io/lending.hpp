/// @file  The experts of a block as a store lends them.
#pragma once

#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/io/store/leased_bank.hpp"
#include "moe/io/weight_tensors.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Which experts of a block: those that the router chooses, others that it weighs or that see other tokens, and the
/// shared one.
enum class ExpertsOf { routed, others, shared };

/// The experts of a block as a store lends them, if one does.
struct Lending {
  const WeightTensors* block = nullptr;
  Index num_routed = 0;

  bool is_on() const { return block != nullptr && block->lender() != nullptr; }

  /// A bank of which a store holds the experts.
  template <class W, class Act>
  LeasedBank<W, Act> leased(FfnBank<W, Act> bank, ExpertsOf of) const {
    std::vector<Index> numbers;
    for (Index e = 0; e < bank.num_experts(); ++e) {
      numbers.push_back(of == ExpertsOf::routed ? block->expert(e) : num_routed + e);
    }
    return LeasedBank<W, Act>(std::move(bank), block->lender(), block->block(), numbers);
  }

  /// What stays: the bank of a shared expert, a projection.
  template <class Part>
  Part resident(Part part) const {
    return is_on() ? kept(std::move(part), *block->lender()) : std::move(part);
  }
};

}  // namespace moe::inline MOE_TARGET::io::detail
