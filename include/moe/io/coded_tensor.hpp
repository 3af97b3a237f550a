/// @file  Tensors of floating-point numbers as coded ones, so that a block may hold both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/error.hpp"
#include "moe/io/tensor.hpp"
#include "moe/kernels/lanes.hpp"

namespace moe::inline MOE_TARGET::io {

/// Why nothing reads numbers of this type, to end a message with; or "".
inline std::string why_not_read(std::string_view dtype) {
  const GgmlType* const type = find_ggml_type(dtype);
  if (type != nullptr && !type->reason.empty()) return ": " + std::string(type->reason);
  if (dtype_bits(dtype) == 0 || dtype_bits(dtype) > 8) return "";
  return ": its numbers mean nothing without scales, and there are none beside it that config.json tells of";
}

/// Looks at the scale of every block of a GGUF matrix, once: what is not finite there makes NaN of every answer, and
/// nothing would say where from.
/// @param expert  whose matrix of the tensor it is; −1: the tensor has but one
/// @throws Error naming the tensor, the expert, the row and the block of the first that is not.
inline void require_finite_scales(const Tensor& tensor, const QuantizedMatrix& matrix, Index expert = -1) {
  const GgmlType* const type = find_ggml_type(tensor.dtype);
  if (type == nullptr || type->format != &matrix.format()) return;
  for (const Index at : type->halves) {
    if (at < 0) continue;
    const Index blocks = matrix.stored_cols() / type->numbers;
    for (Index r = 0; r < matrix.rows(); ++r) {
      const std::byte* const half = matrix.row_of_codes(r) + at;
      for (Index b = 0; b < blocks; ++b) {
        const auto bits = kernels::load_as<std::uint16_t>(half + b * type->bytes);
        if ((bits & 0x7c00U) != 0x7c00U) continue;
        fail(to_string(tensor), " (", tensor.dtype, ") holds ", (bits & 0x3ffU) == 0 ? "an infinite number" : "NaN",
             " as a scale in row ", r, " of ", matrix.rows(), " of ",
             expert < 0 ? std::string("the matrix") : "expert " + std::to_string(expert), ", block ", b, " of ", blocks,
             ", expected finite scales: the file is damaged");
      }
    }
  }
}

/// The same tensor with its matrices: one, or one for each of the outermost of three dimensions.
/// @throws Error naming tensor and dtype, if its numbers are neither coded, nor F32, BF16 or F16.
inline Tensor coded(Tensor tensor) {
  if (tensor.coded) return tensor;
  const auto with = [&](const NumberFormat& format, std::size_t bytes) {
    const std::size_t n = tensor.shape.size();
    if (n < 2 || n > 3) fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected matrices");
    const Index rows = tensor.shape[n - 2], cols = tensor.shape[n - 1], count = n == 3 ? tensor.shape[0] : 1;
    check_size(tensor);
    if (element_count(tensor) == 0) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", in which there is nothing: expected matrices");
    }
    std::vector<QuantizedMatrix> matrices;
    for (Index i = 0; i < count; ++i) {
      const std::byte* const first = tensor.bytes.data() + std::size_t(i * rows * cols) * bytes;
      matrices.emplace_back(format, rows, cols, BytePlane{first, cols * Index(bytes)});
    }
    tensor.coded = std::make_shared<const std::vector<QuantizedMatrix>>(std::move(matrices));
  };
  if (tensor.dtype == dtype_name<float>) {
    with(block_format<F32>, sizeof(float));
  } else if (tensor.dtype == dtype_name<bfloat16>) {
    with(block_format<BF16>, sizeof(bfloat16));
  } else if (tensor.dtype == dtype_name<float16>) {
    with(block_format<F16>, sizeof(float16));
  } else {
    fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected F32, BF16, F16 or coded numbers",
         why_not_read(tensor.dtype));
  }
  return tensor;
}

/// The same of a tensor of this shape.
/// @throws Error naming both shapes if it is another, or as above.
inline Tensor coded(Tensor tensor, const std::vector<Index>& shape) {
  require_shape(tensor, shape);
  return coded(std::move(tensor));
}

}  // namespace moe::inline MOE_TARGET::io
