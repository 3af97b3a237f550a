/// @file  The tensors of one MoE block as weights of experts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/io/error.hpp"
#include "moe/io/mxfp4.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// Reads below a prefix, and fits every shape to what is expected. Errors name the file, the tensor, and both shapes.
/// What is of each expert is that of all, or only() of some: nothing of the others is then read, nor held.
class WeightTensors {
 public:
  /// @param block  "model.layers.3.mlp", or "" if names begin at the block
  WeightTensors(const Tensors& tensors, const std::string& block, Index num_experts)
      : tensors_(tensors), prefix_(block.empty() ? "" : block + '.'), num_experts_(num_experts) {}

  /// The same of some experts.
  /// @throws std::invalid_argument unless they are experts, in ascending order.
  WeightTensors only(std::vector<Index> experts) const {
    require_ascending(experts, num_experts_, "experts");
    WeightTensors some = *this;
    some.chosen_ = std::move(experts);
    return some;
  }

  /// How many are read; number i of them is expert(i). (There is no list of all: how many a config says there are is
  /// not yet checked.)
  Index num_read() const { return chosen_ ? std::ssize(*chosen_) : num_experts_; }
  Index expert(Index i) const { return chosen_ ? (*chosen_)[std::size_t(i)] : i; }

  /// @throws Error if there is no tensor of this name.
  Tensor at(std::string_view name) const { return tensors_.at(prefix_ + std::string(name)); }
  bool contains(std::string_view name) const { return tensors_.contains(prefix_ + std::string(name)); }

  /// "experts.#.w1.weight" of expert 3: "experts.3.w1.weight".
  static std::string numbered(std::string_view pattern, Index expert) {
    std::string name(pattern);
    return name.replace(name.find('#'), 1, std::to_string(expert));
  }

  /// The numbers of a small tensor of any floating type, converted.
  template <class Scalar>
  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> copy(std::string_view name, const std::vector<Index>& shape) const {
    const Tensor tensor = at(name);
    require_shape(tensor, shape);
    return with_floats(tensor, [](const auto& from) {
      Eigen::Matrix<Scalar, Eigen::Dynamic, 1> to(Index(from.size()));
      for (std::size_t i = 0; i < from.size(); ++i) to[Index(i)] = static_cast<Scalar>(from[i]);
      return to;
    });
  }

  /// Each expert's row of a tensor of any floating type (experts × size), as a column; converted.
  template <class Scalar>
  Matrix<Scalar> columns(std::string_view name, Index size) const {
    const Tensor tensor = at(name);
    require_shape(tensor, {num_experts_, size});
    return with_floats(tensor, [&](const auto& from) {
      Matrix<Scalar> to(size, num_read());
      for (Index i = 0; i < to.cols(); ++i) {
        for (Index r = 0; r < size; ++r) {
          to(r, i) = static_cast<Scalar>(from[std::size_t(expert(i) * size + r)]);
        }
      }
      return to;
    });
  }

  /// One (rows × cols) tensor an expert, in place.
  template <class W>
  WeightStack<W> separate(std::string_view pattern, Index rows, Index cols) const {
    std::vector<const W*> experts;
    auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>();  // keeps several files mapped as one
    for (Index i = 0; i < num_read(); ++i) {
      const Tensor tensor = at(numbered(pattern, expert(i)));
      experts.push_back(weights<W>(tensor, {rows, cols}).data());
      owners->push_back(tensor.owner);
    }
    return {std::move(experts), rows, cols, cols, std::move(owners)};
  }

  /// Rows [first, first + rows) of one (all_rows × cols), in place.
  template <class W>
  WeightStack<W> single(std::string_view name, Index all_rows, Index cols, Index first, Index rows) const {
    const Tensor tensor = at(name);
    const W* data = weights<W>(tensor, {all_rows, cols}).data();
    return {{data + first * cols}, rows, cols, cols, tensor.owner};
  }

  /// Rows [first, first + rows) of each expert's (all_rows × cols), in place.
  template <class W>
  WeightStack<W> fused(std::string_view name, Index all_rows, Index cols, Index first, Index rows) const {
    const Tensor tensor = at(name);
    return in_place(weights<W>(tensor, {num_experts_, all_rows, cols}).data(), tensor.owner, all_rows, cols, first,
                    rows);
  }

  /// All experts' (rows × cols) below each other as one matrix, in place.
  template <class W>
  WeightStack<W> stacked(std::string_view name, Index rows, Index cols) const {
    const Tensor tensor = at(name);
    return in_place(weights<W>(tensor, {num_experts_ * rows, cols}).data(), tensor.owner, rows, cols, 0, rows);
  }

  /// The same of (cols × rows): turned once, into memory of their own.
  template <class W>
  WeightStack<W> stacked_turned(std::string_view name, Index rows, Index cols) const {
    const Tensor tensor = at(name);
    return turned(weights<W>(tensor, {num_experts_ * cols, rows}).data(), rows, cols, 0, 1, rows);
  }

  /// Of each expert's tensor, stored (cols × all_rows), the columns first, first + step, …: turned once to (rows ×
  /// cols) in memory of their own.
  template <class W>
  WeightStack<W> transposed(std::string_view name, Index all_rows, Index cols, Index first, Index step,
                            Index rows) const {
    const Tensor tensor = at(name);
    return turned(weights<W>(tensor, {num_experts_, cols, all_rows}).data(), all_rows, cols, first, step, rows);
  }

  /// Of each expert's (all_rows × cols) in 4 bits, the rows first, first + step, …: expanded once. The tensors are
  /// `name` + "_blocks" and "_scales".
  /// @throws Error unless cols is a multiple of 32, and no scale is NaN.
  template <class W>
  WeightStack<W> expanded(std::string_view name, Index all_rows, Index cols, Index first, Index step,
                          Index rows) const {
    const Tensor blocks = at(std::string(name) + "_blocks"), scales = at(std::string(name) + "_scales");
    if (cols % mxfp4_group != 0) {
      fail(to_string(blocks), " has rows of ", cols, " numbers, expected a multiple of ", mxfp4_group);
    }
    const Index groups = cols / mxfp4_group;
    const auto bytes = as<std::uint8_t>(blocks, {num_experts_, all_rows, groups, mxfp4_group / 2});
    const auto exponents = as<std::uint8_t>(scales, {num_experts_, all_rows, groups});
    if (const auto nan = std::ranges::find(exponents, 255); nan != exponents.end()) {
      fail(to_string(scales), " holds 255 at ", nan - exponents.begin(), ", which is NaN, expected scales of 0 to 254");
    }
    return each_owned<W>(rows, cols, [&](Index e, auto to) {
      for (Index r = 0; r < rows; ++r) {
        const auto from = std::size_t((e * all_rows + first + r * step) * groups), count = std::size_t(groups);
        expand_mxfp4<W>(bytes.subspan(from * mxfp4_group / 2, count * mxfp4_group / 2), exponents.subspan(from, count),
                        {to.row(r).data(), 1, cols, Eigen::OuterStride<>(cols)});
      }
    });
  }

 private:
  /// Its numbers, which are W as all of a layer.
  template <class W>
  static std::span<const W> weights(const Tensor& tensor, const std::vector<Index>& shape) {
    if (tensor.dtype != dtype_name<W>) {
      fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", dtype_name<W>,
           ", which this layer's first expert has: all weights of its experts are of one type");
    }
    return as<W>(tensor, shape);
  }

  template <class W>
  WeightStack<W> in_place(const W* data, std::shared_ptr<const void> owner, Index all_rows, Index cols, Index first,
                          Index rows) const {
    std::vector<const W*> experts;
    for (Index i = 0; i < num_read(); ++i) experts.push_back(data + (expert(i) * all_rows + first) * cols);
    return {std::move(experts), rows, cols, cols, std::move(owner)};
  }

  template <class W>
  WeightStack<W> turned(const W* data, Index all_rows, Index cols, Index first, Index step, Index rows) const {
    return each_owned<W>(rows, cols, [&](Index e, auto to) {
      const WeightMap<W> stored(data + e * cols * all_rows, cols, all_rows, Eigen::OuterStride<>(all_rows));
      to = stored(every, Eigen::seqN(first, rows, step)).transpose();
    });
  }

  /// In memory of their own, which write(e, its matrix) fills for each expert e.
  template <class W, class F>
  WeightStack<W> each_owned(Index rows, Index cols, const F& write) const {
    WeightStack<W> stack(num_read(), rows, cols);
    for (Index i = 0; i < num_read(); ++i) write(expert(i), stack.owned(i));
    return stack;
  }

  const Tensors& tensors_;
  std::string prefix_;
  Index num_experts_;                         // of the block
  std::optional<std::vector<Index>> chosen_;  // those that are read, if not all
};

}  // namespace moe::inline MOE_TARGET::io
