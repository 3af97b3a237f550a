/// @file  Coded matrices whose rows lie interleaved, sixteen together, for lanes of registers.
///
/// A panel of sixteen rows has its codes in one plane and its scales in another; rows that are missing in the last one
/// are zeros. The layout is the same on every processor.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/huge_pages.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/formats/detail/packed.hpp"
#include "moe/formats/ggml_k.hpp"
#include "moe/formats/ggml_legacy.hpp"
#include "moe/formats/ggml_lookup.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/packed_products.hpp"

namespace moe::inline MOE_TARGET {

/// How a Block's numbers lie packed: codes (packing::FourBits …) and scales, a name, and how the scales of one block of
/// a row are put to its place in a panel.
template <class Block>
struct Packed;

/// d · (code − 8)
template <>
struct Packed<Q4_0> : packing::Centred<packing::FourBits>, packing::HalfScales {
  static constexpr const char* name = "Q4_0 packed";  // NumberFormat::name
};

/// d · code
template <>
struct Packed<Q8_0> : packing::Centred<packing::EightBits>, packing::HalfScales {
  static constexpr const char* name = "Q8_0 packed";  // NumberFormat::name
};

/// d · a number of IQ4's table
template <>
struct Packed<IQ4_NL> : packing::Table<codes::iq4_values>, packing::HalfScales {
  static constexpr const char* name = "IQ4_NL packed";  // NumberFormat::name
};

/// 2^(scale − 127) · E2M1
template <>
struct Packed<GgmlMxfp4> : packing::Table<codes::doubled_e2m1>, packing::ByteScales {
  static constexpr const char* name = "MXFP4 packed";  // NumberFormat::name
};

/// d · scale · code − dmin · minimum
template <>
struct Packed<Q4_K> : packing::Positive<packing::FourBits>, packing::ScaledScales<std::uint8_t, 8, true> {
  static constexpr const char* name = "Q4_K packed";  // NumberFormat::name

  /// Puts the scales of a row's block to its place among those of sixteen.
  static void put_scales(const std::byte* block, Index row, std::byte* to) {
    codes::Codes<16> both;
    codes::unpack_scales_and_minima(block + 4, both);
    put_scaled(block, block + 2, both.at, row, to);
  }
};

/// d · scale · (code − 32)
template <>
struct Packed<Q6_K> : packing::Centred<packing::SixBits>, packing::ScaledScales<std::int8_t, 16, false> {
  static constexpr const char* name = "Q6_K packed";  // NumberFormat::name

  /// The same.
  static void put_scales(const std::byte* block, Index row, std::byte* to) {
    put_scaled(block + 208, nullptr, reinterpret_cast<const std::int8_t*>(block + 192), row, to);
  }
};

/// d · scale · a number of IQ4's table
template <>
struct Packed<IQ4_XS> : packing::Table<codes::iq4_values>, packing::ScaledScales<std::int8_t, 8, false> {
  static constexpr const char* name = "IQ4_XS packed";  // NumberFormat::name

  /// The same.
  static void put_scales(const std::byte* block, Index row, std::byte* to) {
    put_scaled(block, nullptr, IQ4_XS::scale_codes(block).at, row, to);
  }
};

namespace packing {

/// What a Packed<Block> does as a NumberFormat and as an IntegerForm.
template <class Block>
struct Form {
  using P = Packed<Block>;                                        ///< See there.
  static constexpr Index groups = Block::numbers / Block::group;  // of a block
  static_assert(Block::group == P::group && Block::has_minima == P::has_minima);
  static_assert(Block::numbers == P::numbers);

  /// f(where it goes, value of the code, scale, minimum) of numbers [first, first + count) of a row, in its groups; the
  /// factor of the matrix is not in these.
  template <class F>
  static void each(const QuantizedMatrix& matrix, Index row, Index first, Index count, const F& f) {
    const std::byte *const its_codes = matrix.codes.row(row), *const its_scales = matrix.scales.row(row);
    row %= packed_rows;
    for (Index i = 0; i < count; ++i) {
      const Index at = first + i, g = at % P::numbers / P::group;
      const unsigned code = P::get(its_codes + at / P::group * P::code_bytes, row, at % P::group);
      const std::byte* const block = its_scales + at / P::numbers * P::scale_bytes;
      float minimum = 0;
      if constexpr (P::has_minima) minimum = P::minimum_at(block, g, row);
      f(i, P::value(code), P::scale_at(block, g, row), minimum);
    }
  }

  /// NumberFormat::decode.
  static void decode(const QuantizedMatrix& matrix, Index row, Index first, Index count, float* to) {
    each(matrix, row, first, count, [&](Index i, int value, float scale, float minimum) {
      to[i] = P::has_minima ? kernels::multiply_add(scale, float(value), minimum) : scale * float(value);
      if (matrix.factor != 1) to[i] *= matrix.factor;
    });
  }

  /// IntegerForm::take.
  static void take(const QuantizedMatrix& matrix, Index row, Index first, Index count, std::int8_t* to, float* scales,
                   float* minima) {
    each(matrix, row, first, count, [&](Index i, int value, float scale, float minimum) {
      to[i] = std::int8_t(value);
      scales[i / P::group] = scale * matrix.factor;
      if constexpr (P::has_minima) minima[i / P::group] = minimum * matrix.factor;
    });
  }

  static constexpr IntegerForm integers = {P::group, P::has_minima, take, kernels::packed_products<P>,
                                           kernels::packed_block_products<P>};

  /// Bytes of the codes of a panel.
  static Index row_of_codes(Index cols) { return cols / P::group * P::code_bytes; }
  /// Bytes of its scales.
  static Index row_of_scales(Index cols) { return cols / P::numbers * P::scale_bytes; }

  /// The byte at which the first scale that is not finite lies; -1 where there is none.
  static Index first_not_finite(std::span<const std::byte> scales) {
    for (Index block = 0; block < std::ssize(scales); block += P::scale_bytes) {
      for (Index at = block; at < block + 2 * P::halves; at += 2) {
        if (!std::isfinite(codes::half_at(scales.data() + at))) return at;
      }
    }
    return -1;
  }

  /// Writes the rows of a matrix of Blocks to planes of zeros.
  static void pack(const QuantizedMatrix& from, std::byte* to_codes, std::byte* to_scales) {
    for (Index r = 0; r < from.rows(); ++r) {
      const Index panel = r / packed_rows, row = r % packed_rows;
      std::byte* const its_codes = to_codes + panel * row_of_codes(from.cols());
      std::byte* const its_scales = to_scales + panel * row_of_scales(from.cols());
      for (Index first = 0; first < from.cols(); first += Block::numbers) {
        const std::byte* const block = from.codes_at(r, first);
        std::int8_t numbers[Block::numbers];
        float scales[groups], minima[groups];
        Block::integers(block, numbers, scales, minima);
        for (Index k = 0; k < Block::numbers; ++k) {
          std::byte* const group = its_codes + (first + k) / P::group * P::code_bytes;
          P::put(group, row, k % P::group, P::code_of(numbers[k]));
        }
        P::put_scales(block, row, its_scales + first / P::numbers * P::scale_bytes);
      }
    }
  }
};

}  // namespace packing

/// The NumberFormat of matrices of Blocks that are packed.
template <class Block>
inline constexpr NumberFormat packed_format = {Packed<Block>::name,
                                               Block::numbers,
                                               8.0 / double(packing::packed_rows) *
                                                   (double(Packed<Block>::code_bytes) / double(Packed<Block>::group) +
                                                    double(Packed<Block>::scale_bytes) / double(Block::numbers)),
                                               packing::Form<Block>::decode,
                                               true,
                                               &packing::Form<Block>::integers};

/// How matrices of a format are packed.
struct PackedFormat {
  const NumberFormat* plain;
  const NumberFormat* packed;
  Index (*row_of_codes)(Index cols);   // bytes of a panel's codes
  Index (*row_of_scales)(Index cols);  // and of its scales
  void (*pack)(const QuantizedMatrix& from, std::byte* codes, std::byte* scales);
  Index (*first_not_finite)(std::span<const std::byte> scales);  // its byte; -1: all are
};

namespace packing {

/// What packs such blocks.
template <class Block>
constexpr PackedFormat form_of() {
  using F = Form<Block>;
  return {&block_format<Block>, &packed_format<Block>, F::row_of_codes, F::row_of_scales, F::pack, F::first_not_finite};
}

}  // namespace packing

/// All that there are.
inline constexpr PackedFormat packed_formats[] = {
    packing::form_of<Q8_0>(), packing::form_of<Q4_0>(),   packing::form_of<IQ4_NL>(),   packing::form_of<Q4_K>(),
    packing::form_of<Q6_K>(), packing::form_of<IQ4_XS>(), packing::form_of<GgmlMxfp4>()};

/// That of matrices in this format; null where there is none.
inline const PackedFormat* find_packed_format(const NumberFormat& plain) {
  for (const PackedFormat& its : packed_formats) {
    if (its.plain == &plain) return &its;
  }
  return nullptr;
}

/// The packed format of this name; null where there is none.
inline const PackedFormat* find_packed_format(std::string_view name) {
  for (const PackedFormat& its : packed_formats) {
    if (its.packed->name == name) return &its;
  }
  return nullptr;
}

/// A matrix of a packed format, (rows × cols), in planes that someone else keeps.
inline QuantizedMatrix packed_matrix(const PackedFormat& format, Index rows, Index cols, const std::byte* codes,
                                     const std::byte* scales, float factor) {
  return {*format.packed,
          rows,
          cols,
          BytePlane{codes, format.row_of_codes(cols), packing::packed_rows},
          BytePlane{scales, format.row_of_scales(cols), packing::packed_rows, format.packed->integers->group},
          {},
          factor};
}

/// The same matrices with rows interleaved, in memory of their own: of few tokens they are multiplied faster where
/// Products::fast permits, exactly they are decoded slower. Their numbers, and so exact answers, are the same to the
/// bit.
/// @param name  of the stack, for errors
/// @throws std::invalid_argument naming the matrix and its format if that has no packed form, or if columns begin or
///         end within a block.
inline WeightStack<Quantized> packed(const WeightStack<Quantized>& stack, const std::string& name = "weights") {
  if (stack.num_experts() == 0) return stack;
  using Bytes = std::vector<std::byte, HugePageAllocator<std::byte>>;
  std::vector<const PackedFormat*> formats;
  std::size_t size = 0;
  const auto whole_lines = [](Index bytes) { return (bytes + 63) / 64 * 64; };  // then no register of codes is on two
  const Index rows = stack.rows(), cols = stack.cols(), panels = packing::panels_of(rows);
  for (Index e = 0; e < stack.num_experts(); ++e) {
    const PackedFormat* const format = find_packed_format(stack[e].format());
    if (format == nullptr || stack[e].integers() == nullptr) {
      throw std::invalid_argument("packed: " + name + " of expert " + std::to_string(e) + " is " +
                                  stack[e].format().name +
                                  (format == nullptr ? ", which has no packed form" : ", cut within a block"));
    }
    formats.push_back(format);
    size += std::size_t(panels * format->row_of_codes(cols) + whole_lines(panels * format->row_of_scales(cols)));
  }
  const auto memory = std::make_shared<Bytes>(size);
  std::byte* codes = memory->data();
  std::vector<QuantizedMatrix> experts;
  for (Index e = 0; e < stack.num_experts(); ++e) {
    const PackedFormat& format = *formats[std::size_t(e)];
    std::byte* const scales = codes + panels * format.row_of_codes(cols);
    format.pack(stack[e], codes, scales);
    experts.push_back(packed_matrix(format, rows, cols, codes, scales, stack[e].factor));
    codes = scales + whole_lines(panels * format.row_of_scales(cols));
  }
  return WeightStack<Quantized>(std::move(experts), memory);
}

}  // namespace moe::inline MOE_TARGET
