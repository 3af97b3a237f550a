/// @file  Weights of few bits, used where they lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// The weight type W of what has its numbers coded, in a FfnBank<Quantized> for example. Its matrices are
/// QuantizedMatrix, of which each says its own format; activations are float.
struct Quantized {};

/// @return true; does not compile for weights that are coded, where numbers are to be written.
template <class W>
consteval bool are_written_in_place() {
  static_assert(!std::is_same_v<W, Quantized>,
                "moe: quantised weights are not written: dequantized<float>(bank), or <bfloat16>, makes some that are");
  return true;
}

class QuantizedMatrix;

namespace kernels {
struct CodedColumns;
struct CodedBlocks;
}  // namespace kernels

/// What a format tells of itself so that Products::fast multiplies it as integers: number = scale · code + minimum,
/// where `group` neighbours have the same scale and minimum.
struct IntegerForm {
  Index group;      // 16 or 32
  bool has_minima;  // then codes are not negative; or else minima are 0, and not written
  /// Writes the codes of the numbers [first, first + count) of a row, and the scale and minimum of each of their
  /// groups; `first` and `count` as for NumberFormat::decode, `first` a multiple of the group as well.
  void (*take)(const QuantizedMatrix& matrix, Index row, Index first, Index count, std::int8_t* codes, float* scales,
               float* minima);
  /// out[r + c · stride] = row first + r · column c, codes taken to registers; or null, where a format has only the
  /// former: moe/kernels/register_products.hpp.
  void (*multiply)(const QuantizedMatrix& matrix, Index first, Index rows, const kernels::CodedColumns& x, float* out,
                   Index stride) = nullptr;
  /// The same of columns in blocks, or null: moe/kernels/packed_products.hpp.
  void (*multiply_blocks)(const QuantizedMatrix& matrix, Index first, Index rows, const kernels::CodedBlocks& x,
                          float* out, Index stride) = nullptr;
};

/// How numbers are coded. A format joins, from outside too, by being one of these (docs/formats.md).
struct NumberFormat {
  static constexpr Index max_block = 256;

  const char* name;  // "Q4_K"
  Index block;       // numbers of a row that are decoded together, at most max_block
  double bits;       // that a number takes, with scales that lie in its block; those of other planes are more
  /// Writes the numbers [first, first + count) of a row of the matrix, to the bit as the format's own software gives
  /// them. `first` is a multiple of the block; `count` is one as well, or reaches to the end of the row. Any bytes mean
  /// something: nothing is thrown.
  void (*decode)(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to);
  bool in_whole_blocks = false;           // rows have no other length
  const IntegerForm* integers = nullptr;  // if it has one
};

/// Bytes of one kind: the codes of a matrix, its scales, its zero points.
struct BytePlane {
  const std::byte* data = nullptr;
  Index row_bytes = 0;      // from one row of the plane to the next
  Index rows_together = 1;  // rows of the matrix that share a row of the plane
  Index cols_together = 1;  // numbers of a row that share an element of the plane

  /// What a row of the matrix has here.
  const std::byte* row(Index r) const {
    return data + (rows_together == 1 ? r : r / rows_together) * row_bytes;  // a division costs as much as 50 numbers
  }
};

/// (rows × cols) numbers, coded, in memory that someone else keeps.
class QuantizedMatrix {
 public:
  /// @throws std::invalid_argument naming both numbers, if a row is no multiple of a block that must be whole.
  QuantizedMatrix(const NumberFormat& format, Index rows, Index cols, BytePlane its_codes, BytePlane its_scales = {},
                  BytePlane its_zeros = {}, float its_factor = 1)
      : codes(its_codes),
        scales(its_scales),
        zeros(its_zeros),
        factor(its_factor),
        format_(&format),
        rows_(rows),
        cols_(cols),
        stored_cols_(cols) {
    if (!format.in_whole_blocks || cols % format.block == 0) return;
    throw std::invalid_argument("QuantizedMatrix: cols is " + std::to_string(cols) + ", expected a multiple of " +
                                std::to_string(format.block) + ", the block of " + format.name);
  }

  const NumberFormat& format() const { return *format_; }  ///< How the bytes are decoded.
  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index stored_cols() const { return stored_cols_; }  // of the rows as they lie: more than cols() of some columns alone

  /// Columns [first, first + count) of it.
  QuantizedMatrix middle_cols(Index first, Index count) const {
    QuantizedMatrix some = *this;
    some.first_col_ += first;
    some.cols_ = count;
    return some;
  }

  /// Rows first, first + step, …, `count` of them.
  QuantizedMatrix some_rows(Index first, Index step, Index count) const {
    QuantizedMatrix some = *this;
    some.first_row_ += first * row_step_;
    some.row_step_ *= step;
    some.rows_ = count;
    return some;
  }

  /// to[i] = the number at (row, first + i), for count of them, wherever they begin and end.
  void decode(Index row, Index first, Index count, float* to) const {
    const Index block = format_->block;
    row = first_row_ + row * row_step_;
    const auto end_of_block = [&](Index at) { return std::min(stored_cols_, at / block * block + block); };
    Index at = first_col_ + first;
    const Index end = at + count;
    const auto part = [&](Index last) {  // of the block around `at`
      float numbers[NumberFormat::max_block];
      const Index begin = at / block * block;
      format_->decode(*this, row, begin, end_of_block(at) - begin, numbers);
      std::memcpy(to, numbers + (at - begin), std::size_t(last - at) * sizeof(float));
      to += last - at;
      at = last;
    };
    if (at < end && at % block != 0) part(std::min(end, end_of_block(at)));
    const Index whole = end == stored_cols_ ? end : end / block * block;
    if (at < whole) {
      format_->decode(*this, row, at, whole - at, to);
      to += whole - at;
      at = whole;
    }
    if (at < end) part(end);
  }

  /// How its numbers are integers; null where they are none, or begin or end within a block or group.
  const IntegerForm* integers() const {
    const IntegerForm* const form = format_->integers;
    if (form == nullptr || first_col_ % std::max(form->group, format_->block) != 0 || group_of != nullptr)
      return nullptr;
    if (cols_ % format_->block != 0 && first_col_ + cols_ != stored_cols_) return nullptr;
    return scales.data == nullptr || scales.cols_together == form->group ? form : nullptr;
  }

  /// The integers of (row, first + i), for count of them: IntegerForm::take.
  void take(Index row, Index first, Index count, std::int8_t* to, float* its_scales, float* its_minima) const {
    format_->integers->take(*this, first_row_ + row * row_step_, first_col_ + first, count, to, its_scales, its_minima);
  }

  /// Which row of its planes a row of it is.
  Index stored_row(Index row) const { return first_row_ + row * row_step_; }
  /// Which column of its planes a column of it is.
  Index stored_col(Index col) const { return first_col_ + col; }

  /// Whether a form's multiply functions may be used: they know no factor, and of rows that lie together only runs.
  bool is_multiplied_in_place() const { return factor == 1 && (codes.rows_together == 1 || row_step_ == 1); }

  /// What a row has of the codes, from its first column as it lies.
  const std::byte* row_of_codes(Index row) const { return codes.row(first_row_ + row * row_step_); }

  /// Where the codes of (row, first) lie.
  const std::byte* codes_at(Index row, Index first) const {
    return row_of_codes(row) + Index(double(first_col_ + first) * (format_->bits / 8));
  }

  /// The scale of (row, first), where scales are bytes in a plane.
  const std::byte* scales_at(Index row, Index first) const {
    return scales.row(first_row_ + row * row_step_) + (first_col_ + first) / scales.cols_together;
  }

  /// Asks for the codes of such numbers, which are decoded soon. (g++ takes a function that does nothing but fetch for
  /// one that does nothing, unless it is inlined.)
  [[gnu::always_inline]] void fetch(Index row, Index first, Index count) const {
    const std::byte* const at = codes_at(row, first);
    for (Index i = 0; i < Index(double(count) * (format_->bits / 8)); i += 64) __builtin_prefetch(at + i);
  }

  BytePlane codes, scales, zeros;          // as the format reads them
  float factor;                            // of the whole matrix, where the format has one, as all blocks have
  const std::int32_t* group_of = nullptr;  // of each number of a row, where groups are no runs (act-order)

 private:
  const NumberFormat* format_;
  Index rows_, cols_, first_row_ = 0, row_step_ = 1, first_col_ = 0, stored_cols_;
};

/// A matrix of weights of type W where it lies: what a WeightStack<W> has of each expert.
template <class W>
using StoredWeight = std::conditional_t<std::is_same_v<W, Quantized>, QuantizedMatrix, WeightMap<W>>;

/// The W of a StoredWeight<W>.
template <class M>
struct WeightType {
  using type = typename M::Scalar;  ///< The W that WeightStack, FfnBank and Projection are of.
};
/// What is coded has one type, whatever its format.
template <>
struct WeightType<QuantizedMatrix> {
  using type = Quantized;  ///< See there.
};

namespace detail {

template <class Block>
constexpr auto multiplied_in_registers() -> decltype(IntegerForm::multiply) {
  if constexpr (requires { &Block::multiply; }) {
    return &Block::multiply;
  } else {
    return nullptr;
  }
}

/// The IntegerForm of blocks that have one.
template <class Block>
inline constexpr IntegerForm form_of_blocks = {
    Block::group, Block::has_minima,
    [](const QuantizedMatrix& matrix, Index row, Index first, Index count, std::int8_t* codes, float* scales,
       float* minima) {
      constexpr Index groups = Block::numbers / Block::group;
      static_assert((Block::group == 16 || Block::group == 32) && Block::numbers % Block::group == 0);
      const std::byte* block = matrix.codes.row(row) + first / Block::numbers * Block::bytes;
      const float* const end = scales + count / Block::group;
      for (Index i = 0, g = 0; i < count; i += Block::numbers, g += groups, block += Block::bytes) {
        Block::integers(block, codes + i, scales + g, minima + (Block::has_minima ? g : 0));
      }
      if (matrix.factor == 1) return;
      for (; scales < end; ++scales) {
        *scales *= matrix.factor;
        if constexpr (Block::has_minima) *minima++ *= matrix.factor;
      }
    },
    multiplied_in_registers<Block>()};

template <class Block>
constexpr const IntegerForm* integers_of_blocks() {
  if constexpr (requires { Block::group; }) {
    return &form_of_blocks<Block>;
  } else {
    return nullptr;
  }
}

}  // namespace detail

/// The NumberFormat of blocks that hold everything that their numbers need, but for a factor of the whole matrix, one
/// after the other in a row:
///
///   struct Block {
///     static constexpr const char* name = "Q8_0";
///     static constexpr Index numbers = 32, bytes = 34;
///     static void decode(const std::byte* block, float* to);
///
///     static constexpr Index group = 32;           // optional: its IntegerForm
///     static constexpr bool has_minima = false;
///     static void integers(const std::byte* block, std::int8_t* codes, float* scales, float* minima);
///     static constexpr auto multiply = …           // optional as well: IntegerForm::multiply
///   };
template <class Block>
inline constexpr NumberFormat block_format = {
    Block::name,
    Block::numbers,
    8.0 * double(Block::bytes) / double(Block::numbers),
    [](const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
      const std::byte* block = matrix.codes.row(row) + first / Block::numbers * Block::bytes;
      static_assert(Block::numbers <= NumberFormat::max_block);
      for (Index i = 0; i < count; i += Block::numbers, block += Block::bytes) Block::decode(block, to + i);
      if (matrix.factor == 1) return;
      for (Index i = 0; i < count; ++i) to[i] *= matrix.factor;
    },
    true,
    detail::integers_of_blocks<Block>()};

}  // namespace moe::inline MOE_TARGET
