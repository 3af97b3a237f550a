/// @file  Products of coded rows and few columns, codes taken to registers as they are multiplied.
///
/// Nothing of a row goes through memory. A sum of lanes has one order, whatever rows and columns are computed together.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <utility>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/activation_codes.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/dot_tile.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"

namespace moe::inline MOE_TARGET::kernels {

using ByteRegister = BytesOf<register_bytes>;

/// Columns of activations as codes.
struct CodedColumns {
  Index depth, count;
  const ActivationCodes* const* column;
  const float* sums;  // Σ x of each group of a column, as they lie in the depth, then zeros; of weights with minima
  Index sums_stride;  // between columns
};

/// What is asked of some coded rows, of which each is a Row: unit u of it, `unit` numbers that are taken together.
///
///   Row{matrix, row}              and row.go_on() to the next one
///   Row::unit                     a multiple of 64
///   Row::is_whole                 no row ends within a unit
///   Row::group, Row::has_minima   as in IntegerForm
///   Row::is_unsigned              no code is negative, and number = scale · (code − Row::offset) + minimum
///   row.at(u)                     its unit u
///   row.last(u, count)            the same if it has no more than `count` numbers, followed by what may be anything
///                                 finite; need not be there where is_whole
///   unit.codes<k>(), .scales<k>() of register k: a code each byte, the scale of each four of them
///   unit.minima<i>()              of register i of groups, then zeros
template <class Row>
concept CodedRow = requires(const QuantizedMatrix& matrix, const Row& row, Index u) {
  Row{matrix, u}.go_on();
  { row.at(u).template codes<0>() } -> std::convertible_to<ByteRegister>;
  { row.at(u).template scales<0>() } -> std::convertible_to<Lanes<float>>;
  requires Row::unit % ActivationCodes::size == 0 && (Row::group == 16 || Row::group == 32);
};

namespace detail {

/// Columns that are multiplied together, if they are not one or two.
#if defined(__OPTIMIZE__)
inline constexpr int register_columns = num_registers == 32 ? 4 : 2;
#else
inline constexpr int register_columns = 1;
#endif

/// -offset · the sums of four codes each.
template <int offset>
MOE_INLINE IntegersOf<register_bytes> starts_of(const std::int32_t* starts) {
  if constexpr (offset == 0) {
    return IntegersOf<register_bytes>{};
  } else {
    static_assert(128 % offset == 0);
    constexpr int down = std::countr_zero(unsigned(128 / offset));
    return load_as<IntegersOf<register_bytes>>(starts) >> down;
  }
}

/// What the products of a row and some columns are summed in: two sums in turn, for one would wait for itself.
template <int C>
struct RegisterSums {
  Lanes<float> products[2][C] = {}, minima[C] = {};
};

/// sums += unit u of a row, of which `steps` are there, · the columns.
template <class Row, int C, class Unit>
MOE_INLINE void add_unit(const Unit& its, Index u, Index steps, const ActivationCodes* const (&column)[C],
                         const float* const (&sums)[C], RegisterSums<C>& to) {
  constexpr int w = int(register_bytes), size = int(ActivationCodes::size), L = lanes<float>;
  constexpr int offset = Row::is_unsigned ? Row::offset : has_starts ? 128 : 0;
  unroll<int(Row::unit) / w>([&](auto k) __attribute__((always_inline)) {
    constexpr int step = k * w / size, part = k * w % size;
    if (step >= steps) return;
    const ByteWeights<Row::is_unsigned, register_bytes> codes((ByteRegister)its.template codes<k>());
    const Lanes<float> scales = its.template scales<k>();
    unroll<C>([&](auto c) __attribute__((always_inline)) {
      const ActivationCodes& x = column[c][u * (Row::unit / size) + step];
      const auto products =
          byte_products(codes, load_as<ByteRegister>(x.codes + part), starts_of<offset>(x.starts + part / 4));
      const auto scale = scales * load_as<Lanes<float>>(x.scales + part / 4);
      Lanes<float>& sum = to.products[k % 2][c];
      sum = kernels::multiply_add(__builtin_convertvector(products, Lanes<float>), scale, sum);
    });
  });
  if constexpr (Row::has_minima) {
    constexpr int groups = int(Row::unit / Row::group);
    unroll<(groups + L - 1) / L>([&](auto i) __attribute__((always_inline)) {
      const Lanes<float> minima = its.template minima<i>();
      unroll<C>([&](auto c) __attribute__((always_inline)) {
        const auto sum = load_as<Lanes<float>>(sums[c] + u * groups + i * L);
        to.minima[c] = kernels::multiply_add(minima, sum, to.minima[c]);
      });
    });
  }
}

/// dots[c] = the row · column c.
template <CodedRow Row, int C>
MOE_KERNEL void register_tile(const Row& row, Index depth, const ActivationCodes* const (&column)[C],
                              const float* const (&sums)[C], float* dots) {
  RegisterSums<C> total;
  const Index units = depth / Row::unit;
  for (Index u = 0; u < units; ++u) add_unit<Row>(row.at(u), u, Row::unit, column, sums, total);
  if constexpr (!Row::is_whole) {
    if (const Index rest = depth - units * Row::unit; rest > 0) {
      const Index steps = (rest + ActivationCodes::size - 1) / ActivationCodes::size;
      add_unit<Row>(row.last(units, rest), units, steps, column, sums, total);
    }
  }
  Lanes<float> all[1][C];
  unroll<C>([&](auto c) {
    all[0][c] = total.products[0][c] + total.products[1][c];
    if constexpr (Row::has_minima) all[0][c] += total.minima[c];
  });
  sum_lanes<float, 1, C>(all, dots);
}

}  // namespace detail

/// A register of codes; where it is the widest, of two stores.
template <std::size_t bytes = register_bytes>
MOE_INLINE BytesOf<bytes> codes_at(const std::int8_t* codes) {
  if constexpr (bytes == 64) {
    using Half = typename detail::VectorOf<std::int64_t, 32>::type;
    const auto low = load_as<Half>(codes), high = load_as<Half>(codes + 32);
    return (BytesOf<bytes>)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return load_as<BytesOf<bytes>>(codes);
  }
}

/// The scale of each four codes of register k, of groups whose scales lie in memory.
template <Index group, int k>
MOE_INLINE Lanes<float> scales_at(const float* scales) {
  constexpr int w = int(register_bytes), first = k * w / int(group), some = w / int(group);
  if constexpr (some <= 1) {
    return scales[first] - Lanes<float>{};
  } else {
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return Lanes<float>{scales[first + 4 * i / int(group)]...};
    }(std::make_integer_sequence<int, lanes<float>>{});
  }
}

/// Some numbers in memory, as IntegerForm::take writes them, as a unit of a CodedRow.
template <Index numbers, Index its_group, bool its_minima>
struct TakenUnit {
  static constexpr Index groups = numbers / its_group;

  alignas(64) std::int8_t its_codes[numbers];
  float its_scales[groups];
  alignas(64) float minima_of_groups[its_minima ? std::max<Index>(groups, lanes<float>) : 1] = {};

  template <int k>
  MOE_INLINE ByteRegister codes() const {
    return codes_at(its_codes + k * int(register_bytes));
  }

  template <int k>
  MOE_INLINE Lanes<float> scales() const {
    return scales_at<its_group, k>(its_scales);
  }

  template <int i>
  MOE_INLINE Lanes<float> minima() const {
    if constexpr (groups > 4) return load_as<Lanes<float>>(minima_of_groups + i * lanes<float>);
    return [&]<int... j>(std::integer_sequence<int, j...>) __attribute__((always_inline)) {  // few come one by one
      return Lanes<float>{minima_of_groups[i * lanes<float> + j]...};
    }(std::make_integer_sequence<int, lanes<float>>{});
  }
};

/// Rows of any format that has an IntegerForm.
template <Index its_group, bool its_minima>
struct TakenRow {
  static constexpr Index unit = NumberFormat::max_block, group = its_group;
  static constexpr bool is_whole = false, has_minima = its_minima, is_unsigned = its_minima;
  static constexpr int offset = 0;
  using Unit = TakenUnit<unit, group, has_minima>;

  const QuantizedMatrix& matrix;
  Index row;

  void go_on() { ++row; }

  Unit at(Index u) const {
    Unit its;
    matrix.take(row, u * unit, unit, its.its_codes, its.its_scales, its.minima_of_groups);
    return its;
  }

  Unit last(Index u, Index count) const {
    Unit its;
    std::fill_n(its.its_codes, unit, std::int8_t(0));
    std::fill_n(its.its_scales, unit / group, 0.F);
    matrix.take(row, u * unit, count, its.its_codes, its.its_scales, its.minima_of_groups);
    return its;
  }
};

namespace detail {

/// Rows that meet some columns before these meet the next ones, while the columns are in L1.
inline constexpr Index register_rows = 16;

/// out[r + i · stride] = row r of so many, `first` the first · columns [c, c + columns), at most C.
template <int C, CodedRow Row>
void some_register_products(const Row& first, Index rows, const CodedColumns& x, Index c, Index columns, float* out,
                            Index stride) {
  const ActivationCodes* column[C];
  const float* sums[C];
  for (Index i = 0; i < C; ++i) {  // or the last column more than once
    const Index its = c + std::min(i, columns - 1);
    column[i] = x.column[its];
    sums[i] = x.sums + its * x.sums_stride;
  }
  Row row = first;
  for (Index r = 0; r < rows; ++r, row.go_on()) {
    float dots[C];
    register_tile<Row, C>(row, x.depth, column, sums, dots);
    for (Index i = 0; i < columns; ++i) out[r + i * stride] = dots[i];
  }
}

}  // namespace detail

/// out[r + c · stride] = row first + r of the matrix · column c.
template <CodedRow Row>
void register_products(const QuantizedMatrix& matrix, Index first, Index rows, const CodedColumns& x, float* out,
                       Index stride) {
  constexpr int most = detail::register_columns, two = std::min(2, most);
  for (Index top = 0; top < rows; top += detail::register_rows) {
    const Row row{matrix, first + top};
    const Index height = std::min(detail::register_rows, rows - top);
    for (Index c = 0; c < x.count; c += most) {
      const Index columns = std::min<Index>(most, x.count - c);
      float* const to = out + top + c * stride;
      if (columns == 1) {
        detail::some_register_products<1>(row, height, x, c, columns, to, stride);
      } else if (columns == 2) {
        detail::some_register_products<two>(row, height, x, c, columns, to, stride);
      } else {
        detail::some_register_products<most>(row, height, x, c, columns, to, stride);
      }
    }
  }
}

}  // namespace moe::inline MOE_TARGET::kernels
