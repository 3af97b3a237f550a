/// @file  What is learnt beside a matrix that stays as it is.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"

namespace moe::inline MOE_TARGET {

/// y = W·x + α/rank · B·A·x, beside W (out × in). Of rank 0, it is none; then A is (0 × in) and B (out × 0).
/// Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
template <class Scalar>
struct Adapter {
  Weight<Scalar> a{};  // (rank × in)
  Weight<Scalar> b{};  // (out × rank)
  double alpha = 1;

  Index rank() const { return a.rows(); }  ///< Rows of A and columns of B; 0 adds nothing.
  Index in() const { return a.cols(); }    ///< Numbers that A reads: columns of the weight beside it.
  Index out() const { return b.rows(); }   ///< Numbers that B adds to: rows of the weight beside it.

  /// α / rank.
  Scalar scale() const { return Scalar(alpha / double(rank())); }

  /// Under the names that Hugging Face's PEFT uses.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("lora_A.weight", a);
    visit("lora_B.weight", b);
  }
};

/// Of an adapter that is made beside one matrix.
struct LoraOptions {
  Index rank = 8;
  double alpha = 16;
  double dropout = 0;      // share of what the adapter reads that is left out while it learns
  std::uint64_t seed = 1;  // of A, and of dropout
};

/// Does it lie beside W (out × in)?
template <class Scalar>
bool fits(const Adapter<Scalar>& adapter, Index out, Index in) {
  if (adapter.rank() == 0 && adapter.b.size() == 0) return true;
  return adapter.a.cols() == in && adapter.b.rows() == out && adapter.b.cols() == adapter.rank();
}

/// @throws std::invalid_argument naming both numbers unless it fits beside W (out × in).
template <class Scalar>
void require_fit(const Adapter<Scalar>& adapter, Index out, Index in, const std::string& who) {
  if (fits(adapter, out, in)) return;  // without making up a message
  require_equal(adapter.a.cols(), in, who + ": lora_A.cols()");
  require_equal(adapter.b.rows(), out, who + ": lora_B.rows()");
  require_equal(adapter.b.cols(), adapter.rank(), who + ": lora_B.cols()");
}

/// An empty one learns what it lies beside.
/// @throws std::invalid_argument as require_fit().
template <class Scalar>
void fit(Adapter<Scalar>& adapter, Index out, Index in, const std::string& who) {
  require_fit(adapter, out, in, who);
  if (adapter.rank() == 0) adapter.a.resize(0, in), adapter.b.resize(out, 0);
}

/// One that adds nothing yet: B is 0, A uniform within ±1/√in, as PEFT begins.
/// @throws std::invalid_argument if the rank is below 0.
template <class Scalar>
Adapter<Scalar> make_adapter(Index out, Index in, Index rank, double alpha, std::uint64_t seed) {
  require_between(0, rank, std::numeric_limits<Index>::max(), "LoRA: rank");
  Adapter<Scalar> adapter{Weight<Scalar>(rank, in), Weight<Scalar>::Zero(out, rank), alpha};
  for (Index i = 0; i < adapter.a.size(); ++i) {
    adapter.a.data()[i] = static_cast<Scalar>(random_number(seed, std::uint64_t(i)) / std::sqrt(double(in)));
  }
  return adapter;
}

/// w += times · scale · B·A, summed in Scalar: a narrower w is rounded once.
template <class W, class Scalar>
void add_adapter(const Adapter<Scalar>& adapter, Scalar times, Eigen::Map<Weight<W>> w) {
  if (adapter.rank() == 0) return;
  const Weight<Scalar> delta = (times * adapter.scale()) * (adapter.b * adapter.a);
  w = (w.template cast<Scalar>() + delta).template cast<W>();
}

namespace detail {

/// Before what has an adapter becomes what has none, beside coded weights.
template <class Scalar>
void require_no_adapter(const Adapter<Scalar>& adapter, const std::string& who) {
  require(adapter.rank() == 0, who + " has an adapter of rank " + std::to_string(adapter.rank()) +
                                   " beside quantised weights, to which nothing can be added: serve the adapter beside "
                                   "them, as it is, or ask for a type that they become: merged_as<bfloat16>(bank)");
}

}  // namespace detail

/// The numbers of a coded matrix + scale · B·A, summed in float, rounded once.
template <class W>
Weight<W> merged_as(const QuantizedMatrix& matrix, const Adapter<float>& adapter) {
  Weight<float> sum = dequantized(matrix);
  add_adapter<float>(adapter, 1.F, to_write(sum));
  return sum.cast<W>();
}

}  // namespace moe::inline MOE_TARGET
