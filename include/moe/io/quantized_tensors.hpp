/// @file  The tensors of one coded weight as a QuantizedMatrix.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/affine.hpp"
#include "moe/formats/bitsandbytes.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/integers.hpp"
#include "moe/formats/mx.hpp"
#include "moe/formats/nvfp4.hpp"
#include "moe/formats/repack.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// One weight, as files code it.
struct QuantizedWeight {
  QuantizedMatrix matrix;
  std::shared_ptr<const void> owner;  // keeps its bytes where they are
  std::vector<std::string> tensors;   // of which it was made
  std::string dtype;                  // that its software decodes it to: "F32", "BF16", "F16"
  Coding coding;                      // to_string() says it to people
  std::size_t bytes = 0;              // that these take in the file, of one expert
  std::size_t own_bytes = 0;          // in memory besides: 0 where all is used as it lies
};

/// Of tensors that hold the weights of all experts.
struct OfExperts {
  Index expert, num_experts;
};

namespace detail {

/// Finds the tensors of one module, and checks them.
class WeightReader {
 public:
  WeightReader(const Tensors& tensors, std::string_view module, const Quantization& said,
               const std::optional<OfExperts>& experts)
      : tensors_(tensors), module_(module), said_(said), experts_(experts) {
    weight_ = module_ + ".weight";
    if (!tensors_.contains(weight_) && !any_companion(weight_) &&
        (tensors_.contains(module_) || any_companion(module_))) {
      weight_ = module_;  // as transformers calls what holds all experts
    }
  }

  std::optional<QuantizedWeight> read() {
    if (const Tensor* const weight = tensors_.find(weight_); weight != nullptr && is_plain(weight->dtype)) {
      for (const char* const companion : companions) {
        if (const Tensor* const stray = tensors_.find(weight_ + companion)) refuse_stray(*weight, *stray);
      }
      for (const char* const companion : {".qweight", ".scales", ".SCB"}) {
        if (const Tensor* const stray = tensors_.find(module_ + companion)) refuse_stray(*weight, *stray);
      }
      require_plain_is_right(*weight);
      return {};
    }
    std::optional<QuantizedWeight> found = find_coding();
    if (!found) return {};
    found->tensors = std::move(used_);
    found->bytes = bytes_;
    found->own_bytes = own_bytes_;
    for (const char* const companion : of_activations) {
      for (const std::string& name : {module_ + '.' + companion, weight_ + '_' + companion}) {
        if (has(name)) found->tensors.push_back(name);
      }
    }
    if (owners_.size() == 1) {
      found->owner = owners_[0];
    } else {
      found->owner = std::make_shared<std::vector<std::shared_ptr<const void>>>(std::move(owners_));
    }
    return found;
  }

 private:
  static constexpr std::array companions = {"_packed",    "_blocks",  "_scales",     "_scale",
                                            "_scale_inv", "_scale_2", "_zero_point", "_global_scale",
                                            ".absmax",    "_shape",   "_g_idx"};

  /// How software that codes activations as well does that.
  static constexpr std::array of_activations = {"input_scale", "input_global_scale", "input_zero_point",
                                                "activation_scale"};

  bool any_companion(const std::string& weight) const {
    return std::ranges::any_of(companions,
                               [&](const char* companion) { return tensors_.contains(weight + companion); });
  }
  static bool is_plain(const std::string& dtype) {
    return dtype == "BF16" || dtype == "F16" || dtype == "F32" || dtype == "F64";
  }
  [[noreturn]] static void refuse_stray(const Tensor& weight, const Tensor& stray) {
    fail(to_string(weight), " has dtype ", weight.dtype, ", which needs no scale, and beside it is tensor \"",
         stray.name, "\" of ", stray.dtype, " ", to_string(stray.shape), ": expected coded numbers, or no such tensor");
  }
  void require_plain_is_right(const Tensor& weight) const {
    const Coding promised = said_.of(module_);
    if (promised.plain || promised.optional) return;
    fail(to_string(weight), " has dtype ", weight.dtype, ", and ", said_.where(), " says that it is ",
         to_string(promised), ": expected these, or its name among those that are not converted");
  }

  // ---- tensors

  /// A tensor, of one expert if it is of all; it counts as used.
  Tensor take(const std::string& name) {
    const Tensor* const whole = tensors_.find(name);
    if (whole == nullptr) {
      const Tensor* const first = used_.empty() ? nullptr : tensors_.find(used_.front());
      fail(first == nullptr ? "" : first->file + ": ", module_, ": no tensor \"", name, "\" beside \"",
           used_.empty() ? weight_ : used_.front(), "\": expected it, to decode these numbers");
    }
    check_size(*whole);
    used_.push_back(name);
    keep(whole->owner);
    bytes_ += whole->bytes.size() / std::size_t(experts_ ? std::max<Index>(experts_->num_experts, 1) : 1);
    if (!experts_) return *whole;
    const auto [expert, num_experts] = *experts_;
    if (whole->shape.empty() || whole->shape[0] != num_experts) {
      fail(to_string(*whole), " has shape ", to_string(whole->shape), ", expected [", num_experts, ", …], of ",
           num_experts, " experts");
    }
    Tensor part = *whole;
    part.shape.erase(part.shape.begin());
    const std::size_t size = whole->bytes.size() / std::size_t(num_experts);
    part.bytes = whole->bytes.subspan(std::size_t(expert) * size, size);
    return part;
  }
  bool has(const std::string& name) const { return tensors_.contains(name); }

  void keep(const std::shared_ptr<const void>& owner) {
    if (owner != nullptr && std::ranges::count(owners_, owner) == 0) owners_.push_back(owner);
  }

  /// Memory of our own.
  const std::byte* keep(std::vector<std::byte> bytes) {
    own_bytes_ += bytes.size();
    const auto owned = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    owners_.push_back(owned);
    return owned->data();
  }

  // ---- what is asked of them

  static void require_dtype(const Tensor& tensor, std::initializer_list<std::string_view> may_be) {
    if (std::ranges::count(may_be, tensor.dtype) > 0) return;
    std::string list;
    for (const std::string_view one : may_be) list += (list.empty() ? "" : " or ") + std::string(one);
    fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", list);
  }

  /// (rows × cols) of a matrix of two dimensions.
  static std::pair<Index, Index> matrix_shape(const Tensor& tensor) {
    if (tensor.shape.size() == 2) return {tensor.shape[0], tensor.shape[1]};
    fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected a matrix",
         tensor.shape.size() == 3 ? ": it holds all experts'" : "");
  }

  template <class T>
  static void require_finite(const Tensor& scales) {
    const Index count = element_count(scales);
    for (Index i = 0; i < count; ++i) {
      const bool is_nan = std::is_same_v<T, moe::detail::E8m0> && scales.bytes[std::size_t(i)] == std::byte(255);
      const float scale = moe::detail::number_at<T>(scales.bytes.data(), i);
      if (std::isfinite(scale) && !is_nan) continue;
      fail(to_string(scales), " holds ", is_nan || std::isnan(scale) ? "NaN" : "an infinite number", " at ", i, " of ",
           count, ", expected finite scales: the file is damaged");
    }
  }

  /// f(T()) of the type that scales are of, all of them finite.
  template <class F>
  static auto with_scales(const Tensor& scales, const F& f) {
    const auto checked = [&]<class T>(T type) {
      require_finite<T>(scales);
      return f(type);
    };
    if (scales.dtype == "BF16") return checked(bfloat16());
    if (scales.dtype == "F16") return checked(float16());
    require_dtype(scales, {"F32", "BF16", "F16"});
    return checked(float());
  }

  template <class T>
  static std::string dtype_of() {
    return std::string(dtype_name<T>);
  }

  /// Scales of a matrix: how many of its numbers share one is in `coding` then.
  BytePlane plane_of(const Tensor& scales, Index rows, Index cols, Coding& coding, const Coding& promised) const {
    const Index size = dtype_bits(scales.dtype) / 8, count = element_count(scales);
    if (count == 1 && promised.rows.value_or(0) != 1) {
      const bool one_block = promised.rows && promised.cols && *promised.rows > 1;
      coding.rows = one_block && scales.shape.size() == 2 ? *promised.rows : 0;
      coding.cols = one_block && scales.shape.size() == 2 ? *promised.cols : 0;
      if (!one_block || (*promised.rows >= rows && *promised.cols >= cols)) {
        return {scales.bytes.data(), 0, std::max<Index>(rows, 1), std::max<Index>(cols, 1)};
      }
    }
    if (scales.shape == std::vector<Index>{rows} || scales.shape == std::vector<Index>{rows, 1}) {
      coding.rows = 1;
      coding.cols = promised.rows == 1 && promised.cols.value_or(0) >= cols ? promised.cols : std::optional<Index>(0);
      if (!promised.rows || *promised.rows <= 1) return {scales.bytes.data(), size, 1, std::max<Index>(cols, 1)};
    }
    if (scales.shape.size() != 2 || count == 0) {
      fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [1], [", rows, "], [", rows,
           ", 1] or blocks of a matrix (", rows, " × ", cols, ")");
    }
    const Index down = scales.shape[0], across = scales.shape[1];
    const auto fits = [&](Index block_rows, Index block_cols) {
      return block_rows > 0 && block_cols > 0 && (rows + block_rows - 1) / block_rows == down &&
             (cols + block_cols - 1) / block_cols == across;
    };
    Index block_rows = 0, block_cols = 0;
    if (promised.rows.value_or(0) > 0 && promised.cols.value_or(0) > 0) {
      block_rows = *promised.rows, block_cols = *promised.cols;
    } else if (down == rows && cols % across == 0) {
      block_rows = 1, block_cols = cols / across;
    } else if (fits(128, 128)) {
      block_rows = block_cols = 128;
    } else if (rows % down == 0 && cols % across == 0) {
      block_rows = rows / down, block_cols = cols / across;
    }
    if (!fits(block_rows, block_cols)) {
      fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected one for each of ",
           block_rows > 0 ? std::to_string(block_rows) + " × " + std::to_string(block_cols) : "some",
           " numbers of a matrix (", rows, " × ", cols, ")",
           promised.rows ? ", as " + said_.where() + " says" : std::string());
    }
    require_whole_bytes(scales, block_cols, cols);
    coding.rows = block_rows;
    coding.cols = block_cols;
    return {scales.bytes.data(), across * size, block_rows, block_cols};
  }

  /// Codes of whatever bits begin with a byte at each group's first number.
  static void require_whole_bytes(const Tensor& scales, Index group, Index cols) {
    if (group >= cols || group % 8 == 0) return;
    fail(to_string(scales), " has shape ", to_string(scales.shape), ", one for ", group,
         " numbers of a row, expected a multiple of 8");
  }

  /// @throws Error naming both, if the tensors are coded otherwise than is said.
  void require_promised(const Tensor& tensor, const Coding& found, const Coding& promised) const {
    const auto differs = [](const auto& said, const auto& is) { return said && is && *said != *is; };
    const bool other_type = !promised.type.empty() && promised.type != found.type;
    if (promised.plain) return;  // tensors speak for themselves
    if (!other_type && !differs(promised.rows, found.rows) && !differs(promised.cols, found.cols) &&
        !differs(promised.zeros, found.zeros)) {
      return;
    }
    fail(to_string(tensor), " (", tensor.dtype, " ", to_string(tensor.shape), ") is ", to_string(found), ", and ",
         said_.where(), " says that it is ", to_string(promised), ": expected one and the same");
  }

  // ---- families

  std::optional<QuantizedWeight> find_coding() {
    if (has(weight_ + "_packed")) return packed();
    if (has(weight_ + "_blocks")) return gpt_oss();
    if (has(module_ + ".qweight")) return gptq_or_awq();
    if (has(module_ + "._weight_qdata")) return torchao();
    const Tensor* const weight = tensors_.find(weight_);
    if (weight == nullptr) return {};
    const std::string& dtype = weight->dtype;
    if (dtype == "F8_E4M3") return fp8();
    if (dtype == "U32" || has(module_ + ".scales")) return mlx();
    if (dtype == "U8" && has(weight_ + ".absmax")) return bitsandbytes();
    if (dtype == "U8" && has(weight_ + "_scale_2")) return modelopt_nvfp4();
    if (dtype == "I8" && has(module_ + ".SCB")) return int8_of_bitsandbytes();
    if (dtype == "I8" && has(module_ + ".scale")) return fp4_in_bytes(module_ + ".scale");
    if (dtype == "I8" && has(weight_ + "_scale_inv")) return fp4_in_bytes(weight_ + "_scale_inv");
    if (dtype == "I8" && has(weight_ + "_scale")) return int8();
    fail(to_string(*weight), " has dtype ", dtype,
         ", expected F32, BF16, F16, or F8_E4M3, I8, U8 or U32 with scales beside it", " (", weight_,
         "_scale or the like)");
  }

  QuantizedWeight made(const NumberFormat& format, Index rows, Index cols, const BytePlane& codes,
                       const BytePlane& scales, const BytePlane& zeros, float factor, std::string dtype,
                       Coding coding) {
    return {
        QuantizedMatrix(format, rows, cols, codes, scales, zeros, factor), {}, {}, std::move(dtype), std::move(coding)};
  }

  /// DeepSeek's and transformers' "_scale_inv", compressed-tensors' and ModelOpt's "_scale", DeepSeek-V4's ".scale".
  QuantizedWeight fp8() {
    const Tensor weight = take(weight_);
    const auto shape = matrix_shape(weight);
    const Index rows = shape.first, cols = shape.second;
    const std::string beside = has(weight_ + "_scale_inv") ? weight_ + "_scale_inv"
                               : has(weight_ + "_scale")   ? weight_ + "_scale"
                               : has(module_ + ".scales")  ? module_ + ".scales"
                               : has(module_ + ".scale")   ? module_ + ".scale"
                                                           : weight_ + "_scale_inv";
    const Tensor scales = take(beside);
    Coding promised = said_.of(module_);
    if (promised.type == "FP8" && scales.dtype == "U8") promised.rows = 1, promised.cols = 32;
    Coding coding{.type = scales.dtype == "U8" ? "MXFP8" : "FP8"};
    if (promised.type != "FP8" || scales.dtype != "U8") require_promised(weight, coding, promised);
    const BytePlane its_scales = plane_of(scales, rows, cols, coding, promised);
    if (scales.dtype != "U8" || promised.type != "FP8") require_promised(weight, coding, promised);
    const BytePlane codes{weight.bytes.data(), cols};
    if (scales.dtype == "U8") {
      require_finite_exponents(scales);
      return made(mxfp8, rows, cols, codes, its_scales, {}, 1, "BF16", coding);
    }
    if (scales.dtype == "F8_E8M0") {
      require_finite<moe::detail::E8m0>(scales);
      return made(moe::fp8<moe::detail::E8m0>, rows, cols, codes, its_scales, {}, 1, "F32", coding);
    }
    return with_scales(scales, [&]<class T>(T) {
      return made(moe::fp8<T, T>, rows, cols, codes, its_scales, {}, 1, dtype_of<T>(), coding);
    });
  }

  /// Where 255 is no number: of numbers that reach 1, 2^128 makes infinite ones.
  static void require_finite_exponents(const Tensor& scales) {
    const auto found = std::ranges::find(scales.bytes, std::byte(255));
    if (found == scales.bytes.end()) return;
    fail(to_string(scales), " holds 255 at ", found - scales.bytes.begin(), " of ", scales.bytes.size(),
         ", which is no scale, expected 0 to 254: the file is damaged");
  }

  /// compressed-tensors.
  QuantizedWeight packed() {
    if (const Tensor* const weight = tensors_.find(weight_)) {
      fail(to_string(*weight), " has dtype ", weight->dtype, ", and beside it is \"", weight_,
           "_packed\": expected one of the two");
    }
    const Tensor codes = take(weight_ + "_packed");
    if (codes.dtype == "U8") {
      const Tensor* const scales = tensors_.find(weight_ + "_scale");
      const bool is_nvfp4 = has(weight_ + "_global_scale") || (scales != nullptr && scales->dtype == "F8_E4M3");
      return is_nvfp4 ? nvfp4(codes, GlobalScale::divides) : microscaled(codes);
    }
    require_dtype(codes, {"I32", "U8"});
    return packed_int(codes);
  }

  QuantizedWeight nvfp4(const Tensor& codes, GlobalScale global) {
    const auto [rows, bytes] = matrix_shape(codes);
    const Tensor scales = take(weight_ + "_scale");
    require_dtype(scales, {"F8_E4M3"});
    require_finite<moe::detail::E4m3>(scales);
    const Tensor factors = take(weight_ + (global == GlobalScale::divides ? "_global_scale" : "_scale_2"));
    require_dtype(factors, {"F32"});
    require_finite<float>(factors);
    if (element_count(factors) != 1) {
      fail(to_string(factors), " has shape ", to_string(factors.shape), ", expected one number");
    }
    const float factor = moe::detail::number_at<float>(factors.bytes.data(), 0);
    if (global == GlobalScale::divides && factor == 0) {
      fail(to_string(factors), " is 0, by which scales are divided: expected another number");
    }
    const Index cols = 2 * bytes, groups = (cols + 15) / 16;
    require_shape(scales, {rows, groups});
    const Coding coding{.type = "NVFP4", .rows = 1, .cols = 16};
    require_promised(codes, coding, said_.of(module_));
    const BytePlane its_scales{scales.bytes.data(), groups, 1, 16};
    if (global == GlobalScale::divides) {
      return made(moe::nvfp4<GlobalScale::divides, bfloat16>, rows, cols, {codes.bytes.data(), bytes}, its_scales, {},
                  factor, "BF16", coding);
    }
    return made(moe::nvfp4<GlobalScale::multiplies, float>, rows, cols, {codes.bytes.data(), bytes}, its_scales, {},
                factor, "F32", coding);
  }

  QuantizedWeight modelopt_nvfp4() { return nvfp4(take(weight_), GlobalScale::multiplies); }

  /// MXFP4 or MXFP6, told apart by how many bytes 32 numbers take.
  QuantizedWeight microscaled(const Tensor& codes) {
    const auto [rows, bytes] = matrix_shape(codes);
    const Tensor scales = take(weight_ + "_scale");
    require_dtype(scales, {"U8", "F8_E8M0"});
    const Index groups = scales.shape.size() == 2 ? scales.shape[1] : 0;
    const bool six = bytes == 24 * groups;
    if ((!six && bytes != 16 * groups) || scales.shape[0] != rows) {
      fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [", rows, ", ", bytes / 16,
           "], a scale for each 16 bytes of ", to_string(codes.shape), ", or for each 24");
    }
    const Coding coding{.type = six ? "MXFP6" : "MXFP4", .rows = 1, .cols = 32};
    require_promised(codes, coding, said_.of(module_));
    if (six) require_finite_exponents(scales);
    return made(six ? mxfp6 : mxfp4, rows, 32 * groups, {codes.bytes.data(), bytes},
                {scales.bytes.data(), groups, 1, 32}, {}, 1, "BF16", coding);
  }

  /// [rows, groups, 16] and [rows, groups].
  QuantizedWeight gpt_oss() {
    const Tensor blocks = take(weight_ + "_blocks"), scales = take(weight_ + "_scales");
    require_dtype(blocks, {"U8"});
    require_dtype(scales, {"U8"});
    if (blocks.shape.size() != 3 || blocks.shape[2] != 16) {
      fail(to_string(blocks), " has shape ", to_string(blocks.shape), " an expert, expected [rows, groups, 16]");
    }
    const Index rows = blocks.shape[0], groups = blocks.shape[1];
    require_shape(scales, {rows, groups});
    const Coding coding{.type = "MXFP4", .rows = 1, .cols = 32};
    require_promised(blocks, coding, said_.of(module_));
    return made(mxfp4, rows, 32 * groups, {blocks.bytes.data(), 16 * groups}, {scales.bytes.data(), groups, 1, 32}, {},
                1, "BF16", coding);
  }

  /// DeepSeek-V4's experts, beside FP8 elsewhere.
  QuantizedWeight fp4_in_bytes(const std::string& its_scales) {
    const Tensor weight = take(weight_), scales = take(its_scales);
    const auto [rows, bytes] = matrix_shape(weight);
    require_dtype(scales, {"F8_E8M0", "U8"});
    if (bytes % 16 != 0) {
      fail(to_string(weight), " has shape ", to_string(weight.shape), ", expected rows of a multiple of 16 bytes");
    }
    require_shape(scales, {rows, bytes / 16});
    if (scales.dtype == "F8_E8M0") require_finite<moe::detail::E8m0>(scales);
    const Coding coding{.type = "MXFP4", .rows = 1, .cols = 32};
    if (const Coding promised = said_.of(module_); promised.type != "FP8") require_promised(weight, coding, promised);
    return made(mxfp4, rows, 2 * bytes, {weight.bytes.data(), bytes}, {scales.bytes.data(), bytes / 16, 1, 32}, {}, 1,
                "BF16", coding);
  }

  // ---- integers

  /// f(constant) of bits from 2 to 8.
  template <class F>
  static QuantizedWeight with_bits(int bits, const F& f) {
    switch (bits) {
      case 2:
        return f(std::integral_constant<int, 2>());
      case 3:
        return f(std::integral_constant<int, 3>());
      case 4:
        return f(std::integral_constant<int, 4>());
      case 5:
        return f(std::integral_constant<int, 5>());
      case 6:
        return f(std::integral_constant<int, 6>());
      case 7:
        return f(std::integral_constant<int, 7>());
      default:
        return f(std::integral_constant<int, 8>());
    }
  }
  static int bits_in(const std::string& type) { return type.starts_with("INT") ? std::atoi(type.c_str() + 3) : 0; }
  static std::string int_type(int bits) { return "INT" + std::to_string(bits); }

  /// How many bits codes of rows of 32-bit words have.
  static int bits_of_words(const Tensor& codes, Index words, Index cols) {
    int found = 0;
    for (int bits = 2; bits <= 8; ++bits) {
      if ((cols * bits + 31) / 32 != words) continue;
      if (found != 0) {
        fail(to_string(codes), " has rows of ", words, " words for ", cols, " numbers, which may be of ", found, " or ",
             bits, " bits each: expected a config that says it");
      }
      found = bits;
    }
    if (found != 0) return found;
    fail(to_string(codes), " has rows of ", words, " words for ", cols,
         " numbers, expected 2 to 8 bits for each: ", (cols * 2 + 31) / 32, " to ", (cols * 8 + 31) / 32, " words");
  }

  QuantizedWeight packed_int(const Tensor& codes) {
    const auto packed_shape = matrix_shape(codes);
    const Index rows = packed_shape.first, words = packed_shape.second;
    const Tensor shape = take(weight_ + "_shape"), scales = take(weight_ + "_scale");
    require_dtype(shape, {"I64", "I32"});
    if (element_count(shape) != 2) fail(to_string(shape), " has shape ", to_string(shape.shape), ", expected [2]");
    const auto size = [&](Index i) {
      return shape.dtype == "I64" ? Index(kernels::load_as<std::int64_t>(shape.bytes.data() + 8 * i))
                                  : Index(kernels::load_as<std::int32_t>(shape.bytes.data() + 4 * i));
    };
    const Index cols = size(1);
    if (size(0) != rows || cols < 1 || cols > 16 * words) {
      fail(to_string(shape), " says ", size(0), " × ", cols, ", and ", to_string(codes), " has shape ",
           to_string(codes.shape), ", expected ", rows, " rows of ", 4 * words, " to ", 16 * words, " numbers");
    }
    const Coding promised = said_.of(module_);
    const int said_bits = bits_in(promised.type);  // a short row may be of several
    const int bits = said_bits >= 2 && said_bits <= 8 && (cols * said_bits + 31) / 32 == words
                         ? said_bits
                         : bits_of_words(codes, words, cols);
    Coding coding{.type = int_type(bits)};
    require_promised(codes, coding, promised);
    const BytePlane codes_plane{codes.bytes.data(), 4 * words};
    const std::string index = weight_ + "_g_idx";
    if (has(index)) return packed_int_by_index(codes, codes_plane, scales, rows, cols, bits, coding);
    const BytePlane its_scales = plane_of(scales, rows, cols, coding, group_of(promised));
    const Index groups =
        its_scales.row_bytes == 0 ? 1 : (cols + its_scales.cols_together - 1) / its_scales.cols_together;
    const BytePlane zeros = packed_zeros(rows, groups, bits, its_scales, coding);
    require_promised(codes, coding, promised);
    return with_scales(scales, [&]<class T>(T) {
      return with_bits(bits, [&](auto b) {
        return made(packed_integers<b, T, T>, rows, cols, codes_plane, its_scales, zeros, 1, dtype_of<T>(), coding);
      });
    });
  }

  /// The group's size alone counts, not what a whole matrix would be.
  static Coding group_of(const Coding& promised) { return {.rows = promised.rows, .cols = promised.cols}; }

  BytePlane packed_zeros(Index rows, Index groups, int bits, const BytePlane& scales, Coding& coding) {
    const std::string name = weight_ + "_zero_point";
    coding.zeros = has(name);
    if (!has(name)) return {};
    const Tensor zeros = take(name);
    const Index num = scales.row_bytes == 0 ? 1 : rows;
    const BytePlane like{nullptr, groups, scales.rows_together, scales.cols_together};
    if (zeros.dtype == "I8") {  // not packed
      if (element_count(zeros) != num * groups) require_shape(zeros, {num, groups});
      std::vector<std::byte> bytes(zeros.bytes.begin(), zeros.bytes.end());
      const int middle = 1 << (bits - 1);
      for (std::size_t i = 0; i < bytes.size(); ++i) {
        const int zero = std::int8_t(bytes[i]);
        if (zero < -middle || zero >= middle) {
          fail(to_string(zeros), " holds ", zero, " at ", i, ", expected ", -middle, " to ", middle - 1, " of ", bits,
               " bits");
        }
        bytes[i] = std::byte(zero + middle);
      }
      return plane_with(like, std::move(bytes));
    }
    require_dtype(zeros, {"I32", "I8"});
    require_shape(zeros, {(num * bits + 31) / 32, groups});
    return plane_with(like, zeros_down(zeros.bytes.data(), num, groups, bits));
  }

  BytePlane plane_with(BytePlane plane, std::vector<std::byte> bytes) {
    plane.data = keep(std::move(bytes));
    if (plane.row_bytes == 1 && plane.rows_together > 1) plane.row_bytes = 0;
    return plane;
  }

  QuantizedWeight packed_int_by_index(const Tensor& codes, const BytePlane& codes_plane, const Tensor& scales,
                                      Index rows, Index cols, int bits, Coding coding) {
    const Index groups = scales.shape.size() == 2 && scales.shape[0] == rows ? scales.shape[1] : 0;
    if (groups == 0) require_shape(scales, {rows, groups});
    const Coding promised = said_.of(module_);
    coding.rows = 1;
    coding.cols = promised.cols ? promised.cols : (cols + groups - 1) / groups;
    const Index size = dtype_bits(scales.dtype) / 8;
    const BytePlane its_scales{scales.bytes.data(), groups * size, 1, 1};
    const BytePlane zeros = packed_zeros(rows, groups, bits, its_scales, coding);
    require_promised(codes, coding, promised);
    const std::int32_t* const index = indices(take(weight_ + "_g_idx"), cols, groups);
    return with_scales(scales, [&]<class T>(T) {
      return with_bits(bits, [&](auto b) {
        QuantizedWeight weight =
            made(indexed_integers<b, T, T>, rows, cols, codes_plane, its_scales, zeros, 1, dtype_of<T>(), coding);
        weight.matrix.group_of = index;
        return weight;
      });
    });
  }

  /// Each within [0, groups).
  const std::int32_t* indices(const Tensor& tensor, Index cols, Index groups) {
    require_dtype(tensor, {"I32"});
    require_shape(tensor, {cols});
    const Tensor index = aligned(tensor);
    keep(index.owner);
    const auto* const numbers = reinterpret_cast<const std::int32_t*>(index.bytes.data());
    for (Index i = 0; i < cols; ++i) {
      if (numbers[i] >= 0 && numbers[i] < groups) continue;
      fail(to_string(tensor), " holds ", numbers[i], " at ", i, ", expected a group from 0 to ", groups - 1);
    }
    return numbers;
  }

  /// compressed-tensors' int-quantized.
  QuantizedWeight int8() {
    const Tensor weight = take(weight_), scales = take(weight_ + "_scale");
    const auto [rows, cols] = matrix_shape(weight);
    const Coding promised = said_.of(module_);
    Coding coding{.type = bits_in(promised.type) > 0 ? promised.type : "INT8"};  // fewer bits are bytes as well
    require_promised(weight, coding, promised);
    const BytePlane its_scales = plane_of(scales, rows, cols, coding, group_of(promised));
    const BytePlane zeros = signed_zeros(weight_ + "_zero_point", scales, its_scales, bits_in(coding.type));
    if (zeros.data != nullptr || !has(weight_ + "_zero_point")) coding.zeros = zeros.data != nullptr;  // else either
    require_promised(weight, coding, promised);
    return signed_bytes(weight, scales, its_scales, zeros, coding);
  }

  QuantizedWeight signed_bytes(const Tensor& weight, const Tensor& scales, const BytePlane& its_scales,
                               const BytePlane& zeros, const Coding& coding) {
    return with_scales(scales, [&]<class T>(T) {
      return made(moe::int8<T, T>, weight.shape[0], weight.shape[1], {weight.bytes.data(), weight.shape[1]}, its_scales,
                  zeros, 1, dtype_of<T>(), coding);
    });
  }

  /// As many as there are scales; none, if all are 0.
  BytePlane signed_zeros(const std::string& name, const Tensor& scales, const BytePlane& like, int bits) {
    if (!has(name)) return {};
    const Tensor zeros = take(name);
    require_dtype(zeros, {"I8"});
    if (element_count(zeros) != element_count(scales)) require_shape(zeros, scales.shape);
    const int middle = 1 << (bits - 1);
    for (std::size_t i = 0; i < zeros.bytes.size(); ++i) {
      const int zero = std::int8_t(zeros.bytes[i]);
      if (zero >= -middle && zero < middle) continue;
      fail(to_string(zeros), " holds ", zero, " at ", i, ", expected ", -middle, " to ", middle - 1, " of ", bits,
           " bits");
    }
    if (std::ranges::count(zeros.bytes, std::byte(0)) == std::ssize(zeros.bytes)) return {};  // written all the same
    BytePlane plane = like;
    plane.data = zeros.bytes.data();
    plane.row_bytes = like.row_bytes / (dtype_bits(scales.dtype) / 8);
    return plane;
  }

  /// torchao's int8 and float8, as transformers stores them.
  QuantizedWeight torchao() {
    const Tensor weight = take(module_ + "._weight_qdata"), scales = take(module_ + "._weight_scale");
    const auto [rows, cols] = matrix_shape(weight);
    Coding coding{.type = weight.dtype == "I8" ? "INT8" : "FP8"};
    const BytePlane its_scales = plane_of(scales, rows, cols, coding, {});
    require_dtype(weight, {"I8", "F8_E4M3"});
    require_promised(weight, coding, said_.of(module_));
    if (weight.dtype == "I8") {
      const BytePlane zeros = signed_zeros(module_ + "._weight_zero_point", scales, its_scales, 8);
      coding.zeros = zeros.data != nullptr;
      return signed_bytes(weight, scales, its_scales, zeros, coding);
    }
    return with_scales(scales, [&, r = rows, c = cols]<class T>(T) {
      return made(moe::fp8<T, T>, r, c, {weight.bytes.data(), c}, its_scales, {}, 1, dtype_of<T>(), coding);
    });
  }

  // ---- packed along the other axis

  QuantizedWeight gptq_or_awq() {
    const Tensor codes = take(module_ + ".qweight"), zeros = take(module_ + ".qzeros"),
                 scales = take(module_ + ".scales");
    require_dtype(codes, {"I32"});
    require_dtype(zeros, {"I32"});
    require_dtype(scales, {"F16", "BF16", "F32"});
    const auto [down, across] = matrix_shape(codes);
    const auto [groups, rows] = matrix_shape(scales);
    if (groups < 1) fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected a group or more");
    const bool is_awq = across != rows;
    if (is_awq && 8 * across != rows) {
      fail(to_string(codes), " has shape ", to_string(codes.shape), ", expected […, ", rows, "] of GPTQ or [in, ",
           rows / 8, "] of AWQ, for scales of ", to_string(scales.shape));
    }
    if (!said_.method().empty() && said_.method() != (is_awq ? "awq" : "gptq")) {
      fail(to_string(codes), " (I32 ", to_string(codes.shape), ") is packed as ", is_awq ? "AWQ" : "GPTQ",
           " does, and ", said_.where(), " says that the method is \"", said_.method(),
           "\": expected one and the same");
    }
    return is_awq ? awq(codes, zeros, scales) : gptq(codes, zeros, scales);
  }

  /// What a group of all columns is called: as it is said, if that is one.
  static Index whole_row(const Coding& promised, Index cols) {
    return !promised.cols ? 0 : *promised.cols == 0 || *promised.cols >= cols ? *promised.cols : cols;
  }

  QuantizedWeight gptq(const Tensor& codes, const Tensor& zeros, const Tensor& scales) {
    const Index words = codes.shape[0], rows = codes.shape[1], groups = scales.shape[0];
    const Coding promised = said_.of(module_);
    const Tensor* const index = tensors_.find(module_ + ".g_idx");
    int bits = bits_in(promised.type);
    if (index != nullptr && index->shape.size() == 1 && bits == 0) bits = bits_of_words(codes, words, index->shape[0]);
    if (bits == 0)
      fail(to_string(codes), ": how many bits its numbers have is said by nothing: expected a g_idx beside it");
    const Index cols = words * 32 / bits;
    Coding coding{.type = int_type(bits), .rows = 1, .cols = (cols + groups - 1) / groups};
    if (promised.cols.value_or(0) > 0 && (cols + *promised.cols - 1) / *promised.cols == groups)
      coding.cols = promised.cols;
    if (groups == 1) coding.cols = whole_row(promised, cols);
    if (words * 32 % bits != 0 || (index != nullptr && index->shape != std::vector<Index>{cols})) {
      fail(to_string(codes), " has shape ", to_string(codes.shape), ", which is ", cols, " numbers of ", bits,
           " bits in a column, expected ",
           index == nullptr ? "a whole number" : std::to_string(element_count(*index)) + ", as its g_idx has");
    }
    if (rows * bits % 32 != 0)
      fail(to_string(codes), " has shape ", to_string(codes.shape), ", expected a multiple of 32 columns");
    require_shape(zeros, {groups, rows * bits / 32});
    require_promised(codes, coding, promised);
    const Index size = dtype_bits(scales.dtype) / 8, group = groups == 1 ? std::max<Index>(cols, 1) : *coding.cols;
    const BytePlane codes_plane{keep(turned(codes.bytes.data(), words, rows, 4)), words * 4};
    const BytePlane its_scales{keep(turned(scales.bytes.data(), groups, rows, std::size_t(size))), groups * size, 1,
                               group};
    const BytePlane its_zeros{keep(zeros_of_gptq(zeros.bytes.data(), groups, rows, bits, promised.layout != "v2")),
                              groups, 1, group};
    coding.zeros = true;
    const std::int32_t* by_index = index == nullptr ? nullptr : indices(take(module_ + ".g_idx"), cols, groups);
    if (by_index == nullptr) require_whole_bytes(scales, group, cols);
    for (Index i = 0; group % 8 == 0 && by_index != nullptr && i <= cols; ++i) {
      if (i == cols)
        by_index = nullptr;  // groups are runs
      else if (by_index[i] != i / group)
        break;
    }
    return with_scales(scales, [&]<class T>(T) {
      return with_bits(bits, [&](auto b) {
        QuantizedWeight weight = made(by_index == nullptr ? packed_integers<b, T, T> : indexed_integers<b, T, T>, rows,
                                      cols, codes_plane, its_scales, its_zeros, 1, dtype_of<T>(), coding);
        weight.matrix.group_of = by_index;
        return weight;
      });
    });
  }

  QuantizedWeight awq(const Tensor& codes, const Tensor& zeros, const Tensor& scales) {
    const Index cols = codes.shape[0], rows = scales.shape[1], groups = scales.shape[0];
    require_shape(zeros, {groups, rows / 8});
    const Coding promised = said_.of(module_);
    if (cols % groups != 0 || cols % 2 != 0) {
      fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected ", groups,
           " groups to divide rows of ", cols, " numbers");
    }
    const Index group = cols / groups, size = dtype_bits(scales.dtype) / 8;
    require_whole_bytes(scales, group, cols);
    Coding coding{.type = "INT4", .rows = 1, .cols = groups == 1 ? whole_row(promised, cols) : group};
    require_promised(codes, coding, promised);
    const BytePlane codes_plane{keep(rows_of_awq(codes.bytes.data(), rows, cols)), cols / 2};
    const BytePlane its_scales{keep(turned(scales.bytes.data(), groups, rows, std::size_t(size))), groups * size, 1,
                               group};
    const BytePlane its_zeros{keep(zeros_of_awq(zeros.bytes.data(), groups, rows)), groups, 1, group};
    coding.zeros = true;
    return with_scales(scales, [&]<class T>(T) {
      return made(packed_integers<4, T, T>, rows, cols, codes_plane, its_scales, its_zeros, 1, dtype_of<T>(), coding);
    });
  }

  // ---- bitsandbytes

  QuantizedWeight int8_of_bitsandbytes() {
    const Tensor weight = take(weight_), scales = take(module_ + ".SCB");
    const auto [rows, cols] = matrix_shape(weight);
    require_dtype(scales, {"F32"});
    require_shape(scales, {rows});
    require_finite<float>(scales);
    if (has(module_ + ".weight_format")) take(module_ + ".weight_format");
    const Coding coding{.type = "INT8", .rows = 1, .cols = 0};
    require_promised(weight, coding, said_.of(module_));
    return made(int8_of_127, rows, cols, {weight.bytes.data(), cols},
                {scales.bytes.data(), 4, 1, std::max<Index>(cols, 1)}, {}, one_of_127, "F32", coding);
  }

  QuantizedWeight bitsandbytes() {
    const Tensor weight = take(weight_), sizes = take(weight_ + ".absmax"), map = take(weight_ + ".quant_map");
    const bool is_nf4 = has(weight_ + ".quant_state.bitsandbytes__nf4");
    const Tensor text = take(weight_ + ".quant_state.bitsandbytes__" + (is_nf4 ? "nf4" : "fp4"));
    const std::string where = to_string(text);
    const nlohmann::json state =
        parse_json({reinterpret_cast<const char*>(text.bytes.data()), text.bytes.size()}, where);
    const std::vector<Index> shape = to_sizes(member(state, "shape", where), "shape", where);
    const std::vector<Index> block =
        to_sizes(nlohmann::json::array({member(state, "blocksize", where)}), "blocksize", where);
    if (shape.size() != 2) fail(where, " has shape ", to_string(shape), ", expected two sizes");
    const Tensor whole{.name = weight.name, .dtype = "F4", .shape = shape, .file = weight.file};
    const Index count = element_count(whole);
    if (Index(weight.bytes.size()) != (count + 1) / 2) {
      fail(to_string(weight), " has ", weight.bytes.size(), " bytes, expected ", (count + 1) / 2, " for ",
           to_string(shape), " numbers of 4 bits");
    }
    if (block[0] < 1 || block[0] % 2 != 0) fail(where, " has blocksize ", block[0], ", expected an even number");
    const Index blocks = (count + block[0] - 1) / block[0];
    require_dtype(map, {"F32"});
    require_shape(map, {16});
    require_finite<float>(map);
    require_shape(sizes, {blocks});
    const std::byte* scales = sizes.bytes.data();
    if (sizes.dtype == "U8") {
      scales = keep(nested_sizes(sizes, state, where));
    } else {
      require_dtype(sizes, {"F32", "U8"});
      require_finite<float>(sizes);
    }
    const std::byte* table = map.bytes.data();
    if (!is_nf4) {  // the software does not read the table, and its zero with a sign is one
      std::vector<std::byte> signed_map(map.bytes.begin(), map.bytes.end());
      const float zero = -0.F;
      std::memcpy(signed_map.data() + 8 * sizeof zero, &zero, sizeof zero);
      table = keep(std::move(signed_map));
    }
    const std::string dtype = to_text(member(state, "dtype", where), "dtype", where);
    const Coding coding{.type = is_nf4 ? "NF4" : "FP4", .rows = 1, .cols = block[0]};
    require_promised(weight, coding, said_.of(module_));
    const BytePlane codes{weight.bytes.data(), shape[1] / 2}, its_scales{scales, 0, 1, block[0]}, its_table{table};
    if (dtype == "float32")
      return made(table4<float>, shape[0], shape[1], codes, its_scales, its_table, 1, "F32", coding);
    if (dtype == "float16")
      return made(table4<float16>, shape[0], shape[1], codes, its_scales, its_table, 1, "F16", coding);
    if (dtype == "bfloat16") {
      return made(table4<bfloat16>, shape[0], shape[1], codes, its_scales, its_table, 1, "BF16", coding);
    }
    fail(where, " has dtype \"", dtype, "\", expected float32, float16 or bfloat16");
  }

  /// Sizes of blocks that are coded themselves.
  std::vector<std::byte> nested_sizes(const Tensor& sizes, const nlohmann::json& state, const std::string& where) {
    const Tensor maxima = take(weight_ + ".nested_absmax"), map = take(weight_ + ".nested_quant_map");
    require_dtype(maxima, {"F32"});
    require_dtype(map, {"F32"});
    require_shape(map, {256});
    require_finite<float>(maxima);
    require_finite<float>(map);
    const Index together =
        to_sizes(nlohmann::json::array({member(state, "nested_blocksize", where)}), "nested_blocksize", where)[0];
    const nlohmann::json& said_offset = member(state, "nested_offset", where);
    if (!said_offset.is_number()) fail(where, " has nested_offset ", describe(said_offset), ", expected a number");
    const float offset = said_offset.get<float>();
    const Index count = element_count(sizes);
    if (together < 1 || (count + together - 1) / together != element_count(maxima)) {
      fail(to_string(maxima), " has shape ", to_string(maxima.shape), ", expected one for each ", together, " of ",
           count);
    }
    std::vector<std::byte> bytes(std::size_t(count) * sizeof(float));
    for (Index i = 0; i < count; ++i) {
      const float size = moe::detail::number_at<float>(map.bytes.data(), Index(sizes.bytes[std::size_t(i)]));
      const float of = moe::detail::number_at<float>(maxima.bytes.data(), i / together);
      const float number = kernels::product(size * of - kernels::Lanes<float>{})[0] + offset;
      std::memcpy(bytes.data() + std::size_t(i) * sizeof number, &number, sizeof number);
    }
    return bytes;
  }

  // ---- MLX

  QuantizedWeight mlx() {
    const Tensor weight = take(weight_), scales = take(module_ + ".scales");
    require_dtype(weight, {"U32"});
    const auto [rows, words] = matrix_shape(weight);
    const auto [down, groups] = matrix_shape(scales);
    if (down != rows || groups < 1) require_shape(scales, {rows, std::max<Index>(groups, 1)});
    const Coding promised = said_.of(module_);
    if (!has(module_ + ".biases")) return microscaled_mlx(weight, scales, promised);
    const Tensor biases = take(module_ + ".biases");
    require_shape(biases, scales.shape);
    require_dtype(biases, {scales.dtype});
    const int bits = bits_in(promised.type);
    if (bits == 0) {
      fail(to_string(weight), " is affine, of ", words * 32 / groups, " bits a group, and ",
           said_.where().empty() ? "no config" : said_.where(),
           " says how many a number has: expected bits and group_size");
    }
    const Index cols = words * 32 / bits;
    Coding coding{.type = int_type(bits), .rows = 1, .cols = cols / groups, .zeros = true};
    if (words * 32 % bits != 0 || cols % groups != 0 || *coding.cols % 8 != 0) {
      fail(to_string(weight), " has shape ", to_string(weight.shape), ", which is ", cols, " numbers of ", bits,
           " bits a row, expected a whole number for each of ", groups, " groups");
    }
    require_promised(weight, coding, promised);
    const Index size = dtype_bits(scales.dtype) / 8, group = *coding.cols;
    return with_scales(scales, [&, r = rows, w = words, n = groups]<class T>(T) {
      require_finite<T>(biases);
      return with_bits(bits, [&](auto b) {
        return made(affine<b, T>, r, cols, {weight.bytes.data(), 4 * w}, {scales.bytes.data(), n * size, 1, group},
                    {biases.bytes.data(), n * size, 1, group}, 1, dtype_of<T>(), coding);
      });
    });
  }

  QuantizedWeight microscaled_mlx(const Tensor& weight, const Tensor& scales, const Coding& promised) {
    require_dtype(scales, {"U8"});
    const Index rows = weight.shape[0], words = weight.shape[1], groups = scales.shape[1], bits = words * 32 / groups;
    const bool fp8 = bits == 256, fp4 = bits == 128;
    if (words * 32 % groups != 0 || (!fp8 && !fp4 && bits != 64)) {
      fail(to_string(scales), " has shape ", to_string(scales.shape), ", expected [", rows, ", ", words / 4,
           "] of MXFP4, [", rows, ", ", words / 2, "] of NVFP4 or [", rows, ", ", words / 8, "] of MXFP8");
    }
    const Index group = fp8 || fp4 ? 32 : 16;
    const Coding coding{.type = fp8 ? "MXFP8" : fp4 ? "MXFP4" : "NVFP4", .rows = 1, .cols = group};
    require_promised(weight, coding, promised);
    if (fp8) require_finite_exponents(scales);
    if (!fp8 && !fp4) require_finite<moe::detail::E4m3>(scales);
    return made(fp8   ? mxfp8
                : fp4 ? mxfp4
                      : moe::nvfp4<GlobalScale::none, bfloat16>,
                rows, group * groups, {weight.bytes.data(), 4 * words}, {scales.bytes.data(), groups, 1, group}, {}, 1,
                "BF16", coding);
  }

  const Tensors& tensors_;
  std::string module_, weight_;
  const Quantization& said_;
  std::optional<OfExperts> experts_;
  std::vector<std::string> used_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::size_t bytes_ = 0, own_bytes_ = 0;
};

}  // namespace detail

/// The weight of a module, in place where a row's codes lie together, else repacked once; none, if it is not coded.
/// @param module   "model.layers.0.mlp.experts.3.gate_proj", whose tensors are ".weight", ".weight_scale", …; or
///                 "model.layers.0.mlp.experts.gate_up_proj" of all experts, itself or "_blocks" and "_scales"
/// @param said     what the model's config promises; tensors must be that
/// @param experts  which of them, where tensors hold those of all
/// @throws Error naming file, tensor, and what was found and expected, if tensors lack or do not fit each other or what
///         is said, or scales are no finite numbers.
inline std::optional<QuantizedWeight> quantized_weight(const Tensors& tensors, std::string_view module,
                                                       const Quantization& said = {},
                                                       const std::optional<OfExperts>& experts = {}) {
  return detail::WeightReader(tensors, module, said, experts).read();
}

}  // namespace moe::inline MOE_TARGET::io
