/// @file  A whole matrix, coded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/formats/encode_safetensors.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What a file keeps of (rows × cols) numbers, row after row.
struct CodedMatrix {
  Index rows = 0, cols = 0;
  std::vector<std::byte> codes = {}, scales = {};  // scales of blocks that keep their own: none
  float factor = 1;                                // of the whole matrix, where the format has one
};

/// FP8 E4M3 as transformers writes it, "fp8": a float scale for 128 × 128 numbers.
struct BlockFp8 {
  static constexpr const char* name = "FP8";
  static constexpr Index rows = 128, cols = 128;  // that are coded together

  /// How they are read, of weights that were W.
  template <class W>
  static const NumberFormat& format() {
    return fp8<float>;
  }
};

/// INT4 as compressed-tensors writes it, "pack-quantized": a scale of the weights' type for `group` numbers of a row.
template <Index group>
struct GroupInt4 {
  static constexpr const char* name = "INT4";
  static constexpr Index rows = 1, cols = group;

  /// The NumberFormat of a matrix of W in this coding.
  template <class W>
  static const NumberFormat& format() {
    return packed_integers<4, W, W>;
  }
};

/// MXFP4 as compressed-tensors writes it, "mxfp4-pack-quantized": an exponent for 32 numbers of a row.
struct GroupMxfp4 {
  static constexpr const char* name = "MXFP4";
  static constexpr Index rows = 1, cols = 32;

  /// The NumberFormat of a matrix of W in this coding.
  template <class W>
  static const NumberFormat& format() {
    return mxfp4;
  }
};

/// NVFP4 as compressed-tensors writes it, "nvfp4-pack-quantized": an E4M3 scale for 16 numbers of a row, divided by the
/// matrix' factor.
struct GroupNvfp4 {
  static constexpr const char* name = "NVFP4";
  static constexpr Index rows = 1, cols = 16;

  /// The NumberFormat of a matrix of W in this coding.
  template <class W>
  static const NumberFormat& format() {
    return nvfp4<GlobalScale::divides, bfloat16>;
  }
};

/// How numbers in a band of T::rows rows, or one, are coded.
/// @tparam T  a type with an Encoder, or one of the above
template <class T>
struct Coder {
  static constexpr Index rows = 1, cols = Encoder<T>::numbers;
  static constexpr Index scale_bytes = 0;

  /// Codes `rows` rows, from row first_row on.
  template <class W>
  static void encode(const float* x, Index first_row, const float* importance, CodedMatrix& to) {
    const Index row_bytes = to.cols / cols * Encoder<T>::bytes;
    moe::encode<T>(x, to.cols, to.codes.data() + first_row * row_bytes, importance);
  }
  /// Bytes of the codes of a row.
  static Index row_bytes(Index num_cols) { return num_cols / cols * Encoder<T>::bytes; }
};

/// A float32 scale for 128 × 128 numbers.
template <>
struct Coder<BlockFp8> {
  static constexpr Index rows = BlockFp8::rows, cols = BlockFp8::cols, scale_bytes = 4;

  /// Codes `rows` rows, from row first_row on.
  template <class W>
  static void encode(const float* x, Index first_row, const float*, CodedMatrix& to) {
    auto* const codes = reinterpret_cast<std::uint8_t*>(to.codes.data()) + first_row * to.cols;
    std::byte* scale = to.scales.data() + first_row / rows * (to.cols / cols) * scale_bytes;
    for (Index c = 0; c < to.cols; c += cols, scale += scale_bytes) {
      const float its = encoding::encode_fp8(x + c, rows, cols, to.cols, codes + c);
      std::memcpy(scale, &its, sizeof its);
    }
  }
  static Index row_bytes(Index num_cols) { return num_cols; }  ///< Bytes of the codes of a row.
};

/// A scale of type W for `group` numbers of a row.
template <Index group>
struct Coder<GroupInt4<group>> {
  static constexpr Index rows = 1, cols = group, scale_bytes = -1;  // the weights' own

  /// Codes a row.
  template <class W>
  static void encode(const float* x, Index first_row, const float*, CodedMatrix& to) {
    std::byte* codes = to.codes.data() + first_row * row_bytes(to.cols);
    std::byte* scale = to.scales.data() + first_row * (to.cols / cols) * Index(sizeof(W));
    for (Index c = 0; c < to.cols; c += cols, codes += group / 2, scale += sizeof(W)) {
      std::uint8_t code[group];
      const W its = static_cast<W>(encoding::encode_int4<W>(x + c, group, code));
      std::memcpy(scale, &its, sizeof its);
      encoding::write_nibbles_in_turn(codes, code, group);
    }
  }
  static Index row_bytes(Index num_cols) { return num_cols / 2; }  ///< Bytes of the codes of a row.
};

/// An exponent for 32 numbers of a row.
template <>
struct Coder<GroupMxfp4> {
  static constexpr Index rows = 1, cols = 32, scale_bytes = 1;

  /// Codes a row.
  template <class W>
  static void encode(const float* x, Index first_row, const float*, CodedMatrix& to) {
    std::byte* codes = to.codes.data() + first_row * row_bytes(to.cols);
    std::byte* scale = to.scales.data() + first_row * (to.cols / cols);
    for (Index c = 0; c < to.cols; c += cols, codes += cols / 2) {
      std::uint8_t code[32];
      *scale++ = std::byte(encoding::encode_mxfp4(x + c, code));
      encoding::write_nibbles_in_turn(codes, code, cols);
    }
  }
  static Index row_bytes(Index num_cols) { return num_cols / 2; }  ///< Bytes of the codes of a row.
};

/// An E4M3 scale for 16 numbers of a row, under the matrix' factor.
template <>
struct Coder<GroupNvfp4> {
  static constexpr Index rows = 1, cols = 16, scale_bytes = 1;

  /// Codes a row.
  template <class W>
  static void encode(const float* x, Index first_row, const float*, CodedMatrix& to) {
    std::byte* codes = to.codes.data() + first_row * row_bytes(to.cols);
    std::byte* scale = to.scales.data() + first_row * (to.cols / cols);
    for (Index c = 0; c < to.cols; c += cols, codes += cols / 2) {
      std::uint8_t code[16];
      *scale++ = std::byte(encoding::encode_nvfp4<W>(x + c, to.factor, code));
      encoding::write_nibbles_in_turn(codes, code, cols);
    }
  }
  static Index row_bytes(Index num_cols) { return num_cols / 2; }  ///< Bytes of the codes of a row.
};

/// Bytes of a scale of T, of weights that were W.
template <class T, class W>
inline constexpr Index scale_bytes = Coder<T>::scale_bytes < 0 ? Index(sizeof(W)) : Coder<T>::scale_bytes;

/// A coded matrix where it lies: it looks at `coded`.
template <class T, class W>
QuantizedMatrix matrix_of(const CodedMatrix& coded) {
  using Its = Coder<T>;
  const NumberFormat* format = nullptr;
  if constexpr (requires { Encoder<T>::numbers; }) {
    format = &block_format<T>;
  } else {
    format = &T::template format<W>();
  }
  BytePlane scales;
  if (!coded.scales.empty()) {
    scales = {coded.scales.data(), coded.cols / Its::cols * scale_bytes<T, W>, Its::rows, Its::cols};
  }
  return {*format, coded.rows, coded.cols, {coded.codes.data(), Its::row_bytes(coded.cols)}, scales, {}, coded.factor};
}

/// Why the number at (r, c) is none once it is coded: what decides the scale that it has with others is the largest of
/// these, which has none.
/// @param rows, cols  of a block
/// @param type        for the message, which begins with the number
template <class W>
std::string why_not_coded(const WeightMap<W>& w, Index r, Index c, Index rows, Index cols, const std::string& type) {
  const Index first_row = r / rows * rows, first_col = c / cols * cols;
  Index at_row = r, at_col = c;
  for (Index i = first_row; i < std::min(first_row + rows, w.rows()); ++i) {
    for (Index k = first_col; k < std::min(first_col + cols, w.cols()); ++k) {
      if (!(std::fabs(float(w(i, k))) > std::fabs(float(w(at_row, at_col))))) continue;
      at_row = i;
      at_col = k;
    }
  }
  const float largest = float(w(at_row, at_col));
  char number[40];
  std::snprintf(number, sizeof number, "%g", double(largest));
  return std::string("the number ") + number + " at (" + std::to_string(at_row) + ", " + std::to_string(at_col) +
         (std::fabs(largest) < 1 ? "), the largest of its block, is too small for the scales of "
                                 : ") is too large for ") +
         type;
}

/// Whether a matrix of this shape can be coded: rows and columns are whole blocks.
template <class T>
bool divides(Index rows, Index cols) {
  return rows % Coder<T>::rows == 0 && cols % Coder<T>::cols == 0;
}

/// Of float, bfloat16 or float16. The bits depend on the numbers alone.
/// @param w           (rows × cols)
/// @param importance  (cols) how much the square of an error in each column counts, or none; encoders of formats whose
///                    own software looks at none do neither
/// @param who         for messages
/// @throws std::invalid_argument naming both numbers unless blocks divide the matrix; or a number that is not finite.
template <class T, class W>
CodedMatrix encode_matrix(const WeightMap<W>& w, std::span<const float> importance = {},
                          const std::string& who = "encode_matrix", ExecutorRef executor = Serial{}) {
  using Its = Coder<T>;
  const auto require_blocks = [&](Index got, Index block, const char* what) {
    require(got % block == 0, who + ": " + what + " is " + std::to_string(got) + ", expected a multiple of " +
                                  std::to_string(block) + ", the block of " + T::name);
  };
  require_blocks(w.cols(), Its::cols, "the length of a row");
  require_blocks(w.rows(), Its::rows, "the number of rows");
  if (!importance.empty()) {
    require_equal(std::ssize(importance), w.cols(), who + ": importance.size()");
    for (std::size_t c = 0; c < importance.size(); ++c) {
      require(importance[c] >= 0 && std::isfinite(importance[c]),
              who + ": importance[" + std::to_string(c) + "] is " + std::to_string(importance[c]) +
                  ", expected a finite number that is not negative");
    }
  }
  const Index bands = w.rows() / Its::rows;
  CodedMatrix to{w.rows(), w.cols(), std::vector<std::byte>(std::size_t(w.rows() * Its::row_bytes(w.cols()))),
                 std::vector<std::byte>(std::size_t(bands * (w.cols() / Its::cols) * scale_bytes<T, W>))};
  if constexpr (std::is_same_v<T, GroupNvfp4>) {
    float largest = 0;
    for (Index r = 0; r < w.rows(); ++r)
      for (Index c = 0; c < w.cols(); ++c) largest = std::max(largest, std::fabs(float(w(r, c))));
    to.factor = encoding::nvfp4_global_scale(largest);
  }
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch);
  workers.for_each(bands, [&](Index band, Scratch& memory) {
    float* const x = memory.array<float>(Its::rows * w.cols());
    for (Index r = 0; r < Its::rows; ++r) {
      for (Index c = 0; c < w.cols(); ++c) {
        const float number = float(w(band * Its::rows + r, c));
        if (!std::isfinite(number)) {
          throw std::invalid_argument(who + ": the number at (" + std::to_string(band * Its::rows + r) + ", " +
                                      std::to_string(c) + ") is " + std::to_string(number) + ", expected a finite one");
        }
        x[r * w.cols() + c] = number;
      }
    }
    Its::template encode<W>(x, band * Its::rows, importance.empty() ? nullptr : importance.data(), to);
  });
  return to;
}

}  // namespace moe::inline MOE_TARGET
