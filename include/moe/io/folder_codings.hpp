/// @file  How matrices are coded in folders of safetensors: FP8, INT4, MXFP4 and NVFP4, as their software writes them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/error.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/tensor.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// What becomes of tensors that hold all experts.
enum class AllExperts {
  apart,       ///< a tensor for each matrix; where that cannot be, they stay together
  apart_only,  ///< a tensor for each matrix, or nothing
  gpt_oss,     ///< gpt-oss' own form: they stay together, rows of 16 bytes
};

/// One coding of a folder's matrices: what tensors it makes of "module.weight", and what it says in config.json.
struct FolderCoding {
  const char* type;
  Index rows, cols;  // that are coded together
  bool refuses;      // what blocks do not divide; else it stays as it is
  AllExperts all_experts;
  /// Names, dtypes and shapes of what becomes of a tensor of this name, dtype and shape.
  std::vector<Tensor> (*become)(const std::string& name, const std::string& dtype, const std::vector<Index>& shape);
  /// Their bytes, in that order, of one matrix of the tensor; `decoded` gets its numbers back.
  std::vector<std::vector<std::byte>> (*encode)(const Tensor& tensor, const StoredParameter& matrix,
                                                ExecutorRef executor, Weight<float>& decoded);
  OrderedJson (*config)(const std::vector<std::string>& kept);
};

/// A shape whose last sizes are others.
inline std::vector<Index> with_last(std::vector<Index> shape, Index rows, Index cols) {
  shape[shape.size() - 2] = rows;
  shape[shape.size() - 1] = cols;
  return shape;
}

/// A matrix of a tensor as messages name it.
inline std::string name_of(const Tensor& tensor, const StoredParameter& matrix) {
  return to_string(tensor) + (matrix.parameter.empty() ? "" : ", " + matrix.parameter);
}

/// f(map of a matrix of a tensor): where it lies, if its rows do.
template <class F>
auto with_matrix(const Tensor& tensor, const StoredParameter& matrix, const F& f) {
  const auto [rows, cols, first, row_step, col_step] =
      std::tuple(matrix.rows, matrix.cols, matrix.first, matrix.row_step, matrix.col_step);
  return with_floats(tensor, [&, rows = rows, cols = cols, first = first, row_step = row_step,
                              col_step = col_step]<class W>(std::span<const W> numbers) {
    if constexpr (std::is_same_v<W, double>) {
      fail(to_string(tensor), " has dtype F64, expected F32, BF16 or F16");
      return f(WeightMap<float>(nullptr, 0, 0, Eigen::OuterStride<>(0)));
    } else {
      if (col_step == 1) return f(WeightMap<W>(numbers.data() + first, rows, cols, Eigen::OuterStride<>(row_step)));
      using Steps = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
      const Weight<W> in_order = Eigen::Map<const Weight<W>, Eigen::Unaligned, Steps>(numbers.data() + first, rows,
                                                                                      cols, Steps(row_step, col_step));
      return f(WeightMap<W>(in_order.data(), rows, cols, Eigen::OuterStride<>(cols)));
    }
  });
}

template <class T>
std::vector<std::vector<std::byte>> encode_tensor(const Tensor& tensor, const StoredParameter& matrix,
                                                  ExecutorRef executor, Weight<float>& decoded) {
  return with_matrix(tensor, matrix, [&]<class Map>(const Map& w) {
    using W = typename Map::Scalar;
    CodedMatrix coded = encode_matrix<T, W>(w, {}, name_of(tensor, matrix), executor);
    decoded = dequantized(matrix_of<T, W>(coded));
    std::vector<std::vector<std::byte>> parts;
    parts.push_back(std::move(coded.codes));
    parts.push_back(std::move(coded.scales));
    const auto add = [&](const auto& numbers) {
      const auto bytes = std::as_bytes(std::span(numbers));
      parts.emplace_back(bytes.begin(), bytes.end());
    };
    if constexpr (std::is_same_v<T, GroupNvfp4>) add(std::array<float, 1>{coded.factor});
    if constexpr (std::is_same_v<T, GroupInt4<32>> || std::is_same_v<T, GroupInt4<128>>) {
      add(std::array<std::int64_t, 2>{w.rows(), w.cols()});
    }
    return parts;
  });
}

inline std::vector<Tensor> become_fp8(const std::string& name, const std::string&, const std::vector<Index>& shape) {
  const Index rows = shape[shape.size() - 2] / BlockFp8::rows, cols = shape.back() / BlockFp8::cols;
  return {{.name = name, .dtype = "F8_E4M3", .shape = shape},
          {.name = name + "_scale_inv", .dtype = "F32", .shape = with_last(shape, rows, cols)}};
}

template <Index group>
std::vector<Tensor> become_int4(const std::string& name, const std::string& dtype, const std::vector<Index>& shape) {
  return {{.name = name + "_packed", .dtype = "I32", .shape = {shape[0], shape[1] / 8}},
          {.name = name + "_scale", .dtype = dtype, .shape = {shape[0], shape[1] / group}},
          {.name = name + "_shape", .dtype = "I64", .shape = {2}}};
}

inline std::vector<Tensor> become_mxfp4(const std::string& name, const std::string&, const std::vector<Index>& shape) {
  return {{.name = name + "_packed", .dtype = "U8", .shape = {shape[0], shape[1] / 2}},
          {.name = name + "_scale", .dtype = "U8", .shape = {shape[0], shape[1] / 32}}};
}

/// Of all experts, [experts, rows, cols].
inline std::vector<Tensor> become_gpt_oss(const std::string& name, const std::string&,
                                          const std::vector<Index>& shape) {
  return {{.name = name + "_blocks", .dtype = "U8", .shape = {shape[0], shape[1], shape[2] / 32, 16}},
          {.name = name + "_scales", .dtype = "U8", .shape = {shape[0], shape[1], shape[2] / 32}}};
}

inline std::vector<Tensor> become_nvfp4(const std::string& name, const std::string&, const std::vector<Index>& shape) {
  return {{.name = name + "_packed", .dtype = "U8", .shape = {shape[0], shape[1] / 2}},
          {.name = name + "_scale", .dtype = "F8_E4M3", .shape = {shape[0], shape[1] / 16}},
          {.name = name + "_global_scale", .dtype = "F32", .shape = {1}}};
}

inline OrderedJson config_of_fp8(const std::vector<std::string>& kept) {
  return {{"activation_scheme", "dynamic"},
          {"modules_to_not_convert", kept},
          {"quant_method", "fp8"},
          {"weight_block_size", {BlockFp8::rows, BlockFp8::cols}}};
}

/// What compressed-tensors says of all its formats.
inline OrderedJson config_of_compressed_tensors(const char* format, OrderedJson weights,
                                                const std::vector<std::string>& kept) {
  weights["dynamic"] = false;
  weights["num_bits"] = 4;
  weights["symmetric"] = true;
  const OrderedJson group = {{"format", format},
                             {"input_activations", nullptr},
                             {"output_activations", nullptr},
                             {"targets", {"Linear"}},
                             {"weights", weights}};
  return {{"config_groups", {{"group_0", group}}},
          {"format", format},
          {"global_compression_ratio", nullptr},
          {"ignore", kept},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

template <Index group>
OrderedJson config_of_int4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors("pack-quantized", {{"group_size", group}, {"strategy", "group"}, {"type", "int"}},
                                      kept);
}

inline OrderedJson config_of_mxfp4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors(
      "mxfp4-pack-quantized",
      {{"group_size", 32}, {"scale_dtype", "torch.uint8"}, {"strategy", "group"}, {"type", "float"}}, kept);
}

/// Modules that stay are those of gpt-oss' own folders, by the words of these.
inline OrderedJson config_of_gpt_oss(const std::vector<std::string>&) {
  return {{"modules_to_not_convert",
           {"model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"}},
          {"quant_method", "mxfp4"}};
}

inline OrderedJson config_of_nvfp4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors(
      "nvfp4-pack-quantized",
      {{"group_size", 16}, {"scale_dtype", "torch.float8_e4m3fn"}, {"strategy", "tensor_group"}, {"type", "float"}},
      kept);
}

inline constexpr auto folder_codings = std::to_array<FolderCoding>({
    {"fp8", 128, 128, false, AllExperts::apart, become_fp8, encode_tensor<BlockFp8>, config_of_fp8},
    {"int4_g32", 1, 32, true, AllExperts::apart_only, become_int4<32>, encode_tensor<GroupInt4<32>>,
     config_of_int4<32>},
    {"int4_g128", 1, 128, true, AllExperts::apart_only, become_int4<128>, encode_tensor<GroupInt4<128>>,
     config_of_int4<128>},
    {"mxfp4", 1, 32, true, AllExperts::apart_only, become_mxfp4, encode_tensor<GroupMxfp4>, config_of_mxfp4},
    {"nvfp4", 1, 16, true, AllExperts::apart_only, become_nvfp4, encode_tensor<GroupNvfp4>, config_of_nvfp4},
});

/// What "mxfp4" is of a gpt_oss.
inline constexpr FolderCoding mxfp4_of_gpt_oss_folders = {
    "mxfp4", 1, 32, true, AllExperts::gpt_oss, become_gpt_oss, encode_tensor<GroupMxfp4>, config_of_gpt_oss};

inline const FolderCoding& folder_coding(const std::string& type) {
  const auto found = std::ranges::find(folder_codings, type, [](const FolderCoding& c) { return std::string(c.type); });
  if (found != folder_codings.end()) return *found;
  std::string list;
  for (const FolderCoding& coding : folder_codings) list += std::string(list.empty() ? "" : ", ") + coding.type;
  fail("no type is called \"", type, "\", expected one of ", list);
}

/// Why a matrix of so many rows and columns cannot be coded; empty if it can.
inline std::string why_not_divided(const FolderCoding& coding, Index rows, Index cols) {
  if (rows % coding.rows == 0 && cols % coding.cols == 0) return {};
  const bool of_rows = cols % coding.cols == 0;
  return std::string(of_rows ? "the number of rows is " : "the length of a row is ") +
         std::to_string(of_rows ? rows : cols) + ", no multiple of " +
         std::to_string(of_rows ? coding.rows : coding.cols);
}

/// FolderCoding::encode().
/// @throws Error naming the tensor, if a number is not finite, or what it was coded to is not.
inline std::vector<std::vector<std::byte>> encoded(const FolderCoding& coding, const Tensor& tensor,
                                                   const StoredParameter& matrix, ExecutorRef executor,
                                                   Weight<float>& decoded) {
  try {
    auto parts = coding.encode(tensor, matrix, executor, decoded);
    if (decoded.allFinite()) return parts;
    with_matrix(tensor, matrix, [&]<class Map>(const Map& w) {
      using W = typename Map::Scalar;
      for (Index r = 0; r < w.rows(); ++r) {
        for (Index c = 0; c < w.cols(); ++c) {
          if (std::isfinite(decoded(r, c))) continue;
          fail(name_of(tensor, matrix), ": ", why_not_coded<W>(w, r, c, coding.rows, coding.cols, coding.type),
               ": keep it as it is (--keep)");
        }
      }
    });
    return parts;
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

/// The numbers of a matrix, row after row, in the type that they have.
inline std::vector<std::byte> numbers_of(const Tensor& tensor, const StoredParameter& matrix) {
  return with_matrix(tensor, matrix, [&]<class Map>(const Map& w) {
    const Weight<typename Map::Scalar> in_order = w;
    const auto bytes = std::as_bytes(std::span(in_order.data(), std::size_t(in_order.size())));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  });
}

/// ‖decoded − w‖² and ‖w‖² of a matrix.
inline std::pair<double, double> squared_norms(const Tensor& tensor, const StoredParameter& matrix,
                                               const Weight<float>& decoded) {
  return with_matrix(tensor, matrix, [&](const auto& w) {
    double off = 0, all = 0;
    for (Index r = 0; r < w.rows(); ++r) {
      for (Index c = 0; c < w.cols(); ++c) {
        const double was = double(float(w(r, c))), change = double(decoded(r, c)) - was;
        off += encoding::product(change, change);
        all += encoding::product(was, was);
      }
    }
    return std::pair(off, all);
  });
}

}  // namespace detail

/// Names of the types that quantize_model() writes: "fp8, int4_g32, …".
inline std::string quantized_folder_types() {
  std::string list;
  for (const detail::FolderCoding& coding : detail::folder_codings)
    list += std::string(list.empty() ? "" : ", ") + coding.type;
  return list;
}

}  // namespace moe::inline MOE_TARGET::io
