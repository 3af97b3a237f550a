/// @file  What a caller may choose about how products are summed.
#pragma once

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET {

/// How weights and activations are multiplied.
enum class Products {
  /// Weights are widened; products and sums are float (double beside double weights).
  exact,
  /// Weights of 16 bits and their activations may both be rounded to bfloat16 (half an ulp, 2^-9 of each), where the
  /// processor multiplies pairs of these; sums are float. Activations that meet coded weights may be rounded to 8 bits,
  /// each 32 neighbours of a token by the largest of them, where all formats of a bank have an IntegerForm; products
  /// are then exact integers, scaled and summed in float. Elsewhere, and for wider weights, the same as exact.
  fast,
};

/// Set it in a Workspace: it holds for routers, experts and layers of that call. Routers, and experts
/// in a list, are always exact.
struct Numerics {
  Products products = Products::exact;
  /// One order of summation for any number of tokens: a token's result then does not depend, by a single bit, on what
  /// else is in the batch. What it costs: docs/performance.md.
  bool batch_invariant = false;
};

}  // namespace moe::inline MOE_TARGET
