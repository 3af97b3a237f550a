/// @file  One weight matrix for each expert.
#pragma once

#include <algorithm>
#include <concepts>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/huge_pages.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// @throws std::invalid_argument naming the one that is negative.
inline void require_sizes(Index rows, Index cols, const char* who) {
  if (rows >= 0 && cols >= 0) return;  // without making up a message
  require_at_least(0, rows, std::string(who) + ": rows");
  require_at_least(0, cols, std::string(who) + ": cols");
}

/// How many numbers so many experts have.
/// @throws std::invalid_argument naming a size that is negative, or all where they are too many to be counted.
inline Index count_weights(Index num_experts, Index rows, Index cols, Index number_size, const char* who) {
  if (num_experts < 0) require_at_least(0, num_experts, std::string(who) + ": num_experts");
  require_sizes(rows, cols, who);
  Index count = 0, bytes = 0;
  if (__builtin_mul_overflow(rows, cols, &count) || __builtin_mul_overflow(count, num_experts, &count) ||
      __builtin_mul_overflow(count, number_size, &bytes)) {
    require(false, std::string(who) + ": num_experts × rows × cols is " + std::to_string(num_experts) + " × " +
                       std::to_string(rows) + " × " + std::to_string(cols) + ", more than any memory holds");
  }
  return count;
}

}  // namespace detail

/// (rows × cols) for each of num_experts experts, row-major: owned, stacked [num_experts][rows][cols]; or mapped, each
/// where it lies. Copying copies what is owned and shares what is mapped.
template <class W>
class WeightStack {
 public:
  /// Owned; all zeros.
  /// @throws std::invalid_argument if a size is negative, or all together are too large.
  WeightStack(Index num_experts, Index rows, Index cols)
      : num_experts_(num_experts),
        rows_(rows),
        cols_(cols),
        row_stride_(cols),
        owned_(std::size_t(detail::count_weights(num_experts, rows, cols, sizeof(W), "WeightStack"))) {}

  /// Mapped: expert e is at experts[e], its rows `row_stride` apart, or else one after the other. `memory` keeps them
  /// alive, if you do not.
  /// @throws std::invalid_argument unless sizes are 0 or more, row_stride ≥ cols, and each expert is somewhere.
  WeightStack(std::vector<const W*> experts, Index rows, Index cols, std::optional<Index> row_stride = {},
              std::shared_ptr<const void> memory = {})
      : num_experts_(Index(experts.size())),
        rows_(rows),
        cols_(cols),
        row_stride_(row_stride.value_or(cols)),
        mapped_(std::move(experts)),
        memory_(std::move(memory)) {
    detail::require_sizes(rows, cols, "WeightStack");
    require_between(cols, row_stride_, std::numeric_limits<Index>::max(), "WeightStack: row_stride");
    if (rows == 0 || cols == 0) return;
    const auto null = std::find(mapped_.begin(), mapped_.end(), nullptr) - mapped_.begin();
    if (null < num_experts_) require(false, "WeightStack: experts[" + std::to_string(null) + "] is null");
  }

  Index num_experts() const { return num_experts_; }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index row_stride() const { return row_stride_; }
  bool is_owned() const { return mapped_.empty(); }  ///< Else mapped: read where it lies, and not written.

  /// One expert's matrix, where it lies.
  WeightMap<W> operator[](Index expert) const {
    return {is_owned() ? owned_.data() + expert * rows_ * cols_ : mapped_[std::size_t(expert)], rows_, cols_,
            Eigen::OuterStride<>(row_stride_)};
  }

  /// To write it.
  /// @throws std::invalid_argument if the weights are mapped.
  Eigen::Map<Weight<W>> owned(Index expert) {
    require(is_owned(), "WeightStack: mapped weights cannot be written");
    return {owned_.data() + expert * rows_ * cols_, rows_, cols_};
  }

  /// What says where an expert's weights lie.
  using Place = const W*;
  /// Where they lie, to move() them from.
  Place place(Index expert) const { return (*this)[expert].data(); }

  /// From now on they lie there, in rows as before. Nobody may use them meanwhile.
  /// @throws std::invalid_argument if the weights are owned.
  void move(Index expert, Place to) {
    require(!is_owned(), "WeightStack: owned weights stay where they are");
    mapped_[std::size_t(expert)] = to;
  }

  /// Shows an expert's weights to who looks through parameters: to write, if they are owned.
  template <class Visit>
  void show(Index expert, const std::string& name, Visit& visit) {
    if (is_owned()) {
      visit(name, owned(expert));
    } else {
      visit(name, std::as_const(*this)[expert]);
    }
  }

 private:
  Index num_experts_, rows_, cols_, row_stride_;
  std::vector<W, HugePageAllocator<W>> owned_;
  std::vector<const W*> mapped_;
  std::shared_ptr<const void> memory_;
};

/// Of coded weights: always mapped, never written; no two matrices need be of one format.
template <>
class WeightStack<Quantized> {
 public:
  /// Of no experts.
  WeightStack(Index num_experts, Index rows, Index cols) : rows_(rows), cols_(cols) {
    require_equal(num_experts, Index(0), "WeightStack<Quantized>: num_experts of weights that are nowhere");
  }

  /// @param memory  keeps the bytes alive, if you do not
  /// @throws std::invalid_argument naming both numbers unless all are of one shape, or there is none.
  explicit WeightStack(std::vector<QuantizedMatrix> experts, std::shared_ptr<const void> memory = {})
      : rows_(experts.empty() ? 0 : experts[0].rows()),
        cols_(experts.empty() ? 0 : experts[0].cols()),
        experts_(std::move(experts)),
        memory_(std::move(memory)) {
    require(!experts_.empty(), "WeightStack<Quantized>: needs at least one expert");
    for (std::size_t e = 0; e < experts_.size(); ++e) {
      require_equal(experts_[e].rows(), rows_, "WeightStack: experts[" + std::to_string(e) + "].rows()");
      require_equal(experts_[e].cols(), cols_, "WeightStack: experts[" + std::to_string(e) + "].cols()");
      are_integers_ = are_integers_ && experts_[e].integers() != nullptr;
    }
  }

  Index num_experts() const { return std::ssize(experts_); }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index row_stride() const { return cols_; }
  bool is_owned() const { return false; }  ///< Codes are never written in place.

  /// One expert's matrix, coded.
  const QuantizedMatrix& operator[](Index expert) const { return experts_[std::size_t(expert)]; }

  /// Whether all have numbers that are multiplied as integers: QuantizedMatrix::integers().
  bool are_integers() const { return are_integers_; }

  /// What says where an expert's codes lie, and how.
  using Place = QuantizedMatrix;
  /// Where they lie, to move() them from.
  const Place& place(Index expert) const { return (*this)[expert]; }

  /// From now on they are these, of the same shape. Nobody may use them meanwhile.
  void move(Index expert, const Place& to) { experts_[std::size_t(expert)] = to; }

  /// Those of these experts, where they lie.
  WeightStack only(const std::vector<Index>& experts) const {
    WeightStack some(0, rows_, cols_);
    for (const Index e : experts) {
      some.experts_.push_back((*this)[e]);
      some.are_integers_ = some.are_integers_ && (*this)[e].integers() != nullptr;
    }
    some.memory_ = memory_;
    return some;
  }

  /// Does not compile.
  template <class W = Quantized>
  Eigen::Map<Weight<float>> owned(Index) {
    static_assert(are_written_in_place<W>());
    return {nullptr, 0, 0};
  }

  /// Shows one expert's matrix to a visitor, if there are any.
  template <class Visit>
  void show(Index expert, const std::string& name, Visit& visit) const {
    if (num_experts() > 0) visit(name, (*this)[expert]);
  }

 private:
  Index rows_, cols_;
  std::vector<QuantizedMatrix> experts_;
  std::shared_ptr<const void> memory_;
  bool are_integers_ = true;
};

/// The numbers that a coded matrix stands for.
inline Weight<float> dequantized(const QuantizedMatrix& matrix) {
  Weight<float> numbers(matrix.rows(), matrix.cols());
  for (Index r = 0; r < matrix.rows(); ++r) matrix.decode(r, 0, matrix.cols(), numbers.data() + r * matrix.cols());
  return numbers;
}

/// The same of all experts: in float to the bit, in W rounded to it.
template <class W>
WeightStack<W> dequantized(const WeightStack<Quantized>& stack) {
  WeightStack<W> numbers(stack.num_experts(), stack.rows(), stack.cols());
  for (Index e = 0; e < stack.num_experts(); ++e) numbers.owned(e) = dequantized(stack[e]).cast<W>();
  return numbers;
}

/// The same weights in memory of their own, to write.
template <class W>
WeightStack<W> owned(const WeightStack<W>& stack) {
  if (stack.is_owned()) return stack;
  WeightStack<W> copy(stack.num_experts(), stack.rows(), stack.cols());
  for (Index e = 0; e < stack.num_experts(); ++e) copy.owned(e) = stack[e];
  return copy;
}

/// Copies of these matrices, one an expert, in one piece.
/// @throws std::invalid_argument naming both numbers unless all are of one shape.
template <class M>
  requires std::derived_from<M, Eigen::MatrixBase<M>>
WeightStack<typename M::Scalar> owned(const std::vector<M>& experts) {
  const Index rows = experts.empty() ? 0 : experts[0].rows(), cols = experts.empty() ? 0 : experts[0].cols();
  WeightStack<typename M::Scalar> stack(std::ssize(experts), rows, cols);
  for (Index e = 0; e < stack.num_experts(); ++e) {
    const M& expert = experts[std::size_t(e)];
    require_equal(expert.rows(), rows, "owned: experts[" + std::to_string(e) + "].rows()");
    require_equal(expert.cols(), cols, "owned: experts[" + std::to_string(e) + "].cols()");
    stack.owned(e) = expert;
  }
  return stack;
}

/// Numbers that lie stacked, [num_experts][rows][cols], used where they lie: mapped<float>(numbers, 8, 512, 256).
/// @param memory  keeps them alive, if you do not
/// @throws std::invalid_argument naming both numbers unless there are as many, or a size that is negative.
template <class W>
WeightStack<W> mapped(std::type_identity_t<std::span<const W>> numbers, Index num_experts, Index rows, Index cols,
                      std::shared_ptr<const void> memory = {}) {
  const Index expected = detail::count_weights(num_experts, rows, cols, sizeof(W), "mapped");
  require_equal(std::ssize(numbers), expected, "mapped: numbers.size()");
  std::vector<const W*> experts;
  for (Index e = 0; e < num_experts; ++e) experts.push_back(numbers.data() + e * rows * cols);
  return {std::move(experts), rows, cols, cols, std::move(memory)};
}

}  // namespace moe::inline MOE_TARGET
