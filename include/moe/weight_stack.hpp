/// @file  One weight matrix for each expert.
#pragma once

#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "moe/check.hpp"
#include "moe/huge_pages.hpp"
#include "moe/types.hpp"

namespace moe::inline MOE_TARGET {

/// (rows × cols) for each of num_experts experts, row-major: owned, stacked [num_experts][rows][cols]; or mapped, each
/// where it lies. Copying copies what is owned and shares what is mapped.
template <class W>
class WeightStack {
 public:
  /// Owned; all zeros.
  WeightStack(Index num_experts, Index rows, Index cols)
      : num_experts_(num_experts),
        rows_(rows),
        cols_(cols),
        row_stride_(cols),
        owned_(std::size_t(num_experts * rows * cols)) {}

  /// Mapped: expert e is at experts[e], its rows `row_stride` apart. `memory` keeps them alive.
  /// @throws std::invalid_argument unless row_stride ≥ cols.
  WeightStack(std::vector<const W*> experts, Index rows, Index cols, Index row_stride,
              std::shared_ptr<const void> memory)
      : num_experts_(Index(experts.size())),
        rows_(rows),
        cols_(cols),
        row_stride_(row_stride),
        mapped_(std::move(experts)),
        memory_(std::move(memory)) {
    require_between(cols, row_stride, std::numeric_limits<Index>::max(), "WeightStack: row_stride");
  }

  Index num_experts() const { return num_experts_; }
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index row_stride() const { return row_stride_; }
  bool is_owned() const { return mapped_.empty(); }

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

 private:
  Index num_experts_, rows_, cols_, row_stride_;
  std::vector<W, HugePageAllocator<W>> owned_;
  std::vector<const W*> mapped_;
  std::shared_ptr<const void> memory_;
};

/// The same weights in memory of their own, to write.
template <class W>
WeightStack<W> owned(const WeightStack<W>& stack) {
  if (stack.is_owned()) return stack;
  WeightStack<W> copy(stack.num_experts(), stack.rows(), stack.cols());
  for (Index e = 0; e < stack.num_experts(); ++e) copy.owned(e) = stack[e];
  return copy;
}

}  // namespace moe::inline MOE_TARGET
