/// @file  The tensors of one coded weight.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/fp8.hpp"
#include "moe/formats/mx.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/lender.hpp"
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

/// By which words a config promises a coding.
struct Promise {
  std::string_view method;       // quant_method
  std::string_view format = "";  // Coding::format, unless any will do
};

/// Codings that are laid out alike, whoever writes them. A header has one for each layout that it reads.
struct Family {
  std::string_view name;                 // for messages: "packed integers of compressed-tensors"
  std::array<Promise, 5> promises = {};  // any of these
};

inline void require_dtype(const Tensor& tensor, std::initializer_list<std::string_view> may_be) {
  if (std::ranges::count(may_be, tensor.dtype) > 0) return;
  std::string list;
  for (const std::string_view one : may_be) list += (list.empty() ? "" : " or ") + std::string(one);
  fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected ", list);
}

/// (rows × cols) of a matrix of two dimensions.
inline std::pair<Index, Index> matrix_shape(const Tensor& tensor) {
  if (tensor.shape.size() == 2) return {tensor.shape[0], tensor.shape[1]};
  fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected a matrix",
       tensor.shape.size() == 3 ? ": it holds all experts'" : "");
}

template <class T>
void require_finite(const Tensor& scales) {
  const Index count = element_count(scales);
  for (Index i = 0; i < count; ++i) {
    const bool is_nan = std::is_same_v<T, moe::detail::E8m0> && scales.bytes[std::size_t(i)] == std::byte(255);
    const float scale = moe::detail::number_at<T>(scales.bytes.data(), i);
    if (std::isfinite(scale) && !is_nan) continue;
    fail(to_string(scales), " holds ", is_nan || std::isnan(scale) ? "NaN" : "an infinite number", " at ", i, " of ",
         count, ", expected finite scales: the file is damaged");
  }
}

/// Where 255 is no number: of numbers that reach 1, 2^128 makes infinite ones.
inline void require_finite_exponents(const Tensor& scales) {
  const auto found = std::ranges::find(scales.bytes, std::byte(255));
  if (found == scales.bytes.end()) return;
  fail(to_string(scales), " holds 255 at ", found - scales.bytes.begin(), " of ", scales.bytes.size(),
       ", which is no scale, expected 0 to 254: the file is damaged");
}

/// f(T()) of the type that scales are of, all of them finite.
template <class F>
auto with_scales(const Tensor& scales, const F& f) {
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
std::string dtype_of() {
  return std::string(dtype_name<T>);
}

/// Codes of whatever bits begin with a byte at each group's first number.
inline void require_whole_bytes(const Tensor& scales, Index group, Index cols) {
  if (group >= cols || group % 8 == 0) return;
  fail(to_string(scales), " has shape ", to_string(scales.shape), ", one for ", group,
       " numbers of a row, expected a multiple of 8");
}

inline QuantizedWeight made(const NumberFormat& format, Index rows, Index cols, const BytePlane& codes,
                            const BytePlane& scales, const BytePlane& zeros, float factor, std::string dtype,
                            Coding coding) {
  return {
      QuantizedMatrix(format, rows, cols, codes, scales, zeros, factor), {}, {}, std::move(dtype), std::move(coding)};
}

/// Finds the tensors of one module, and checks them.
class CodedModule {
 public:
  /// @param lender  who makes what is not used as it lies, when it has been read; null: it is made now
  CodedModule(const Tensors& all, std::string_view its_name, const Quantization& promised,
              const std::optional<OfExperts>& experts, ExpertLender* lender)
      : tensors(all), said(promised), name(its_name), weight(name + ".weight"), experts_(experts), lender_(lender) {
    if (!tensors.contains(weight) && !any_companion(weight) && (tensors.contains(name) || any_companion(name))) {
      weight = name;  // as transformers calls what holds all experts
    }
  }

  /// Is the weight there as numbers that need no scale?
  /// @throws Error if it is, and scales are there as well, or something else is said of it.
  bool is_plain() const {
    const Tensor* const its = tensors.find(weight);
    if (its == nullptr || !is_float(its->dtype)) return false;
    for (const char* const companion : companions) {
      if (const Tensor* const stray = tensors.find(weight + companion)) refuse_stray(*its, *stray);
    }
    for (const char* const companion : {".qweight", ".scales", ".SCB"}) {
      if (const Tensor* const stray = tensors.find(name + companion)) refuse_stray(*its, *stray);
    }
    require_plain_is_right(*its);
    return true;
  }

  /// A tensor, of one expert if it is of all; it counts as used.
  /// @throws Error naming its shape, if it has no elements: so no size of it is more than the file has bits.
  Tensor take(const std::string& full) {
    const Tensor* const whole = tensors.find(full);
    if (whole == nullptr) {
      const Tensor* const first = used_.empty() ? nullptr : tensors.find(used_.front());
      fail(first == nullptr ? "" : first->file + ": ", name, ": no tensor \"", full, "\" beside \"",
           used_.empty() ? weight : used_.front(), "\": expected it, to decode these numbers");
    }
    check_size(*whole);
    if (element_count(*whole) == 0) {
      fail(to_string(*whole), " (", whole->dtype, ") has shape ", to_string(whole->shape),
           ", in which there is nothing: expected codes and scales of some numbers");
    }
    used_.push_back(full);
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
  bool has(const std::string& full) const { return tensors.contains(full); }

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

  /// Bytes that are made of those of a tensor: nothing lies there yet, if a lender makes them.
  const std::byte* made(PromisedWeights weights) {
    if (lender_ != nullptr) return lender_->promise(std::move(weights));
    std::vector<std::byte> bytes(weights.size);
    weights.make(weights.source.data(), bytes.data());
    return keep(std::move(bytes));
  }

  /// Where a few bytes of a file stay, for what is made with them.
  const std::byte* here(Bytes bytes) const { return lender_ == nullptr ? bytes.data() : lender_->keep(bytes); }

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
           promised.rows ? ", as " + said.where() + " says" : std::string());
    }
    require_whole_bytes(scales, block_cols, cols);
    coding.rows = block_rows;
    coding.cols = block_cols;
    return {scales.bytes.data(), across * size, block_rows, block_cols};
  }

  /// @throws Error naming both, if the tensors are laid out otherwise than the software does that is said to have
  ///         written them.
  void require_family(const Tensor& tensor, const Family& family) const {
    if (said.method().empty()) return;
    const Coding promised = said.of(name);
    if (promised.plain) return;  // tensors speak for themselves
    for (const Promise& one : family.promises) {
      const bool any_format = one.format.empty() || promised.format.empty() || one.format == promised.format;
      if (one.method == said.method() && any_format) return;
    }
    const std::string format = promised.format.empty() ? "" : ", and the format \"" + promised.format + "\"";
    const std::string coding = promised.type.empty() ? "" : " (" + to_string(promised) + ")";
    fail(to_string(tensor), " (", tensor.dtype, " ", to_string(tensor.shape), ") is ", family.name, ", and ",
         said.where(), " says that the quant_method is \"", said.method(), "\"", format, coding,
         ": expected one and the same");
  }

  /// @throws Error naming both, if the tensors are coded otherwise than is said.
  void require_promised(const Tensor& tensor, const Coding& found, const Coding& promised) const {
    const auto differs = [](const auto& one, const auto& other) { return one && other && *one != *other; };
    const bool other_type = !promised.type.empty() && promised.type != found.type;
    if (promised.plain) return;  // tensors speak for themselves
    if (!other_type && !differs(promised.rows, found.rows) && !differs(promised.cols, found.cols) &&
        !differs(promised.zeros, found.zeros)) {
      return;
    }
    fail(to_string(tensor), " (", tensor.dtype, " ", to_string(tensor.shape), ") is ", to_string(found), ", and ",
         said.where(), " says that it is ", to_string(promised), ": expected one and the same");
  }

  /// With what was taken and kept for it.
  QuantizedWeight finished(QuantizedWeight found) {
    found.tensors = std::move(used_);
    found.bytes = bytes_;
    found.own_bytes = own_bytes_;
    for (const char* const companion : of_activations) {
      for (const std::string& beside : {name + '.' + companion, weight + '_' + companion}) {
        if (has(beside)) found.tensors.push_back(beside);
      }
    }
    if (owners_.size() == 1) {
      found.owner = owners_[0];
    } else {
      found.owner = std::make_shared<std::vector<std::shared_ptr<const void>>>(std::move(owners_));
    }
    return found;
  }

  const Tensors& tensors;
  const Quantization& said;
  std::string name;    // "model.layers.0.mlp.experts.3.gate_proj"
  std::string weight;  // name + ".weight", or where there is none, name

 private:
  static constexpr std::array companions = {"_packed",    "_blocks",  "_scales",     "_scale",
                                            "_scale_inv", "_scale_2", "_zero_point", "_global_scale",
                                            ".absmax",    "_shape",   "_g_idx"};

  /// How software that codes activations as well does that.
  static constexpr std::array of_activations = {"input_scale", "input_global_scale", "input_zero_point",
                                                "activation_scale"};

  bool any_companion(const std::string& of) const {
    return std::ranges::any_of(companions, [&](const char* companion) { return tensors.contains(of + companion); });
  }
  static bool is_float(const std::string& dtype) {
    return dtype == "BF16" || dtype == "F16" || dtype == "F32" || dtype == "F64";
  }
  [[noreturn]] static void refuse_stray(const Tensor& weight, const Tensor& stray) {
    fail(to_string(weight), " has dtype ", weight.dtype, ", which needs no scale, and beside it is tensor \"",
         stray.name, "\" of ", stray.dtype, " ", to_string(stray.shape), ": expected coded numbers, or no such tensor");
  }
  void require_plain_is_right(const Tensor& its) const {
    const Coding promised = said.of(name);
    if (promised.plain || promised.optional) return;
    fail(to_string(its), " has dtype ", its.dtype, ", and ", said.where(), " says that it is ", to_string(promised),
         ": expected these, or its name among those that are not converted");
  }

  std::optional<OfExperts> experts_;
  ExpertLender* lender_;
  std::vector<std::string> used_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::size_t bytes_ = 0, own_bytes_ = 0;
};

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
