/// @file  Random weights, coded, that every layer of a benchmark is a view of.
#pragma once

#include <cstddef>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "coded_bank.hpp"
#include "moe/core/huge_pages.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/models/presets.hpp"
#include "options.hpp"
#include "weight_pool.hpp"

namespace moe::bench {

/// Numbers of one format, matrix after matrix; of which matrices of any width that blocks divide are views.
class CodedNumbers {
 public:
  /// @param like  of that format, rows of codes and of scales without gaps
  CodedNumbers(const QuantizedMatrix& like, Index count)
      : like_(like), codes_(std::size_t(bytes(like.codes, count))), scales_(std::size_t(bytes(like.scales, count))) {}

  /// Copies a matrix to numbers [first, first + rows · cols), behind those that are there.
  void put(const QuantizedMatrix& matrix, Index first) {
    const Index count = matrix.rows() * matrix.cols();
    const auto copy = [&](const BytePlane& from, const BytePlane& like, Bytes& to) {
      if (from.data == nullptr) return;
      std::memcpy(to.data() + bytes(like, first), from.data, std::size_t(bytes(like, count)));
    };
    copy(matrix.codes, like_.codes, codes_);
    copy(matrix.scales, like_.scales, scales_);
    if (factors_.empty() || factors_.rbegin()->second != matrix.factor) factors_[first] = matrix.factor;
  }

  /// (rows × cols) from number `first` on.
  QuantizedMatrix matrix(Index first, Index rows, Index cols) const {
    const auto plane = [&](BytePlane its, const Bytes& all) {
      if (its.data == nullptr) return its;
      its.data = all.data() + bytes(its, first);
      its.row_bytes = bytes(its, its.rows_together * cols);
      return its;
    };
    return {like_.format(),
            rows,
            cols,
            plane(like_.codes, codes_),
            plane(like_.scales, scales_),
            {},
            std::prev(factors_.upper_bound(first))->second};
  }

  std::size_t size_in_bytes() const { return codes_.size() + scales_.size(); }

 private:
  using Bytes = std::vector<std::byte, HugePageAllocator<std::byte>>;

  /// What so many numbers take.
  Index bytes(const BytePlane& plane, Index count) const {
    return plane.row_bytes * count / (plane.rows_together * like_.cols());
  }

  QuantizedMatrix like_;
  Bytes codes_, scales_;
  std::map<Index, float> factors_;  // each from a number on
};

template <>
struct WeightPool<Quantized> {
  CodedNumbers gate, up, down;
  Index columns, rows;

  Index d_model() const { return columns; }
  Index units() const { return rows; }
  double bytes_a_weight() const { return double(gate.size_in_bytes()) / double(columns * rows); }
};

inline GatedFfnBank<Quantized> experts_in(const std::shared_ptr<const WeightPool<Quantized>>& pool, Index first_unit,
                                          Index d_ff, Index count) {
  const Index d_model = pool->d_model();
  const auto at = [&](const CodedNumbers& numbers, Index rows, Index cols) {
    std::vector<QuantizedMatrix> experts;
    for (Index e = 0; e < count; ++e) experts.push_back(numbers.matrix((first_unit + e * d_ff) * d_model, rows, cols));
    return WeightStack<Quantized>(std::move(experts), pool);
  };
  return {at(pool->gate, d_ff, d_model), at(pool->up, d_ff, d_model), at(pool->down, d_model, d_ff)};
}

/// Layers whose experts are copies of one, the first of the float arena, quantised: to quantise all would take minutes,
/// and other numbers in other memory no other time. Shared experts likewise.
/// @throws std::invalid_argument unless the type's blocks divide the experts.
template <class Progress>
std::shared_ptr<const WeightPool<Quantized>> make_coded_pool(WeightType type, const MoeShape& shape, Index layers,
                                                             ExecutorRef executor, const Progress& progress) {
  const auto one_of = [&](Index first_unit, Index d_ff) {
    const auto floats = make_weight_pool<float>(shape.d_model, d_ff, executor, [](double) {}, first_unit);
    return coded_bank(type, experts_in(floats, 0, d_ff, 1), executor);
  };
  const Index first_shared = shape.num_experts * shape.d_ff, units = layers * total_units(shape);
  const GatedFfnBank<Quantized> expert = one_of(0, shape.d_ff);
  std::optional<GatedFfnBank<Quantized>> shared;
  if (shape.d_ff_shared > 0) shared = one_of(first_shared, shape.d_ff_shared);
  const auto room = [&](const WeightStack<Quantized>& like) { return CodedNumbers(like[0], units * shape.d_model); };
  WeightPool<Quantized> pool{room(expert.w_gate()), room(expert.w_up()), room(expert.w_down()), shape.d_model, units};
  const auto put = [&](const GatedFfnBank<Quantized>& bank, Index unit) {
    pool.gate.put(bank.w_gate()[0], unit * shape.d_model);
    pool.up.put(bank.w_up()[0], unit * shape.d_model);
    pool.down.put(bank.w_down()[0], unit * shape.d_model);
  };
  for (Index l = 0; l < layers; ++l) {
    const Index first = l * total_units(shape);
    for (Index e = 0; e < shape.num_experts; ++e) put(expert, first + e * shape.d_ff);
    if (shared) put(*shared, first + first_shared);
    progress(double(l + 1) / double(layers));
  }
  return std::make_shared<const WeightPool<Quantized>>(std::move(pool));
}

/// An arena of any type; W is that of with_type(type).
template <class W, class Progress>
Arena<W> make_arena(WeightType type, const MoeShape& shape, Index layers, Index threads, const Progress& progress) {
  if constexpr (std::is_same_v<W, Quantized>) {
    return {shape, make_coded_pool(type, shape, layers, OpenMp(threads), progress), threads};
  } else {
    return make_arena<W>(shape, layers, threads, progress);
  }
}

}  // namespace moe::bench
