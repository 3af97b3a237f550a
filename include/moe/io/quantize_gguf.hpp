/// @file  A model's MoE blocks to a GGUF file, their experts in one of ggml's types.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/formats/encode.hpp"
#include "moe/formats/encode_ggml.hpp"
#include "moe/formats/encode_k.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_tensors.hpp"
#include "moe/io/gguf_writer.hpp"
#include "moe/io/importance_matrix.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_quantization.hpp"
#include "moe/io/save_gguf.hpp"
#include "moe/io/tensor.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

/// Tensors of whose name this is a part, and the type that they get in place of the one for all.
struct GgufTypeOf {
  std::string part, type;
};

/// How quantize_gguf() writes.
struct QuantizeGgufOptions {
  std::string type = "q8_0";             // one of quantized_gguf_types(), in capitals or not
  std::vector<std::string> keep = {};    // of which one is part of a tensor's name ("ffn_down_exps"): it stays float
  bool overwrite = false;                // a file of this name
  std::vector<GgufTypeOf> type_of = {};  // of several that fit the last counts
  std::optional<ImportanceMatrix> importance = {};  // what types with a search minimise; Q8_0, MXFP4, NVFP4,
                                                    // TQ1_0, TQ2_0 and 16 or 32 bits have none
  std::function<void(const QuantizeProgress&)> progress = {};
  std::function<void(const std::filesystem::path&)> check = {};  // what is written, before it appears; what this throws
                                                                 // is thrown, and that is beside, as OUT.refused
};

namespace detail {

/// A type of ggml's that numbers are coded in.
struct GgufCoding {
  std::string_view type;
  void (*encode)(const float* x, Index count, std::byte* to, const float* importance);  // whole blocks of a row
  bool weighs = false;                                                                  // does it look at importance?
};

template <class Block>
constexpr GgufCoding coding_of_blocks() {
  return {Block::name, encode<Block>, weighs<Block>};
}

template <class W>
constexpr GgufCoding coding_of_numbers() {
  return {dtype_name<W>, [](const float* x, Index count, std::byte* to, const float*) {
            for (Index i = 0; i < count; ++i) {
              const auto number = static_cast<W>(x[i]);
              std::memcpy(to + i * Index(sizeof number), &number, sizeof number);
            }
          }};
}

inline constexpr auto gguf_codings = std::to_array<GgufCoding>({
    coding_of_blocks<Q8_0>(),
    coding_of_blocks<Q4_0>(),
    coding_of_blocks<Q4_1>(),
    coding_of_blocks<Q5_0>(),
    coding_of_blocks<Q5_1>(),
    coding_of_blocks<Q2_K>(),
    coding_of_blocks<Q3_K>(),
    coding_of_blocks<Q4_K>(),
    coding_of_blocks<Q5_K>(),
    coding_of_blocks<Q6_K>(),
    coding_of_blocks<IQ4_NL>(),
    coding_of_blocks<GgmlMxfp4>(),
    coding_of_blocks<GgmlNvfp4>(),
    coding_of_blocks<TQ1_0>(),
    coding_of_blocks<TQ2_0>(),
    coding_of_numbers<float16>(),
    coding_of_numbers<bfloat16>(),
    coding_of_numbers<float>(),
});

/// "q4_k" of "Q4_K".
inline std::string in_small_letters(std::string_view text) {
  std::string small(text);
  for (char& c : small) c = char(std::tolower(static_cast<unsigned char>(c)));
  return small;
}

/// Those whose blocks make whole rows of so many numbers: "q8_0, q4_0, …".
inline std::string gguf_types_of_rows(Index cols) {
  std::string list;
  for (const GgufCoding& coding : gguf_codings) {
    if (cols % find_ggml_type(coding.type)->numbers != 0) continue;
    list += (list.empty() ? "" : ", ") + in_small_letters(coding.type);
  }
  return list;
}

/// llama.cpp's mixtures of types: FFNs' last matrices in Q6_K in some layers, of which errors grow most, all else in
/// one.
struct GgufRecipe {
  std::string_view name, type;
};
inline constexpr auto gguf_recipes = std::to_array<GgufRecipe>({{"q4_k_m", "q4_k"}, {"q5_k_m", "q5_k"}});

inline const GgufRecipe* find_recipe(const std::string& type) {
  const auto* const found = std::ranges::find(gguf_recipes, in_small_letters(type), &GgufRecipe::name);
  return found == gguf_recipes.end() ? nullptr : found;
}

inline const GgufCoding& gguf_coding(const std::string& type) {
  const auto* const found = std::ranges::find(gguf_codings, in_small_letters(type),
                                              [](const GgufCoding& coding) { return in_small_letters(coding.type); });
  if (found == gguf_codings.end()) {
    fail("no type is called \"", type, "\" that GGUF's experts could be, expected one of ", gguf_types_of_rows(0));
  }
  return *found;
}

/// The first and the last eighth of the layers, and every third between. (use_more_bits of llama.cpp's llama-quant.cpp)
constexpr bool is_of_more_bits(Index layer, Index num_layers) {
  const Index eighth = num_layers / 8;
  return layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2;
}

/// The type that a tensor gets.
inline const GgufCoding& coding_for(const QuantizeGgufOptions& options, const std::string& module, Index num_layers) {
  const auto fits = [&](const GgufTypeOf& its) { return module.find(its.part) != module.npos; };
  const auto last = std::ranges::find_if(options.type_of.rbegin(), options.type_of.rend(), fits);
  if (last != options.type_of.rend()) return gguf_coding(last->type);
  const GgufRecipe* const recipe = find_recipe(options.type);
  if (recipe == nullptr) return gguf_coding(options.type);
  const bool more = module.find("ffn_down") != module.npos && is_of_more_bits(layer_number(module), num_layers);
  return gguf_coding(more ? "q6_k" : std::string(recipe->type));
}

/// Is it the weight of experts, all or shared ones: "blk.3.ffn_up_exps.weight"?
inline bool is_of_gguf_experts(std::string_view name) {
  const std::string_view end = end_in_layer(name);
  return end.starts_with("ffn_") && (end.ends_with("_exps.weight") || end.ends_with("_shexp.weight")) &&
         !end.starts_with("ffn_gate_inp");
}

/// What its numbers take where they are.
inline std::size_t bytes_of(const GgufSource::Part& part) {
  const Tensor& from = part.from;
  const double bits = from.coded ? from.coded->front().format().bits : dtype_bits(from.dtype);
  return std::size_t(double(part.place.rows * part.place.cols) * bits / 8);
}

/// What is done with a tensor that will be in the file.
struct GgufTensorPlan {
  Tensor tensor;  // without bytes
  std::string block;
  std::size_t place;         // of gguf_sources(block)
  const GgufCoding* coding;  // null if it stays
};

/// A tensor as messages name it: where its numbers are, and what the file that is written would call it.
inline std::string source_of(const GgufSource& source, std::size_t part = 0) {
  const std::string name = "tensor \"" + source.tensor.name + "\"";
  if (source.parts.empty()) return name;
  const Tensor& from = source.parts[part].from;
  return to_string(from) + (from.name == source.tensor.name ? "" : ", for \"" + source.tensor.name + "\"");
}

/// Why experts' weights are not quantised; empty if they are.
/// @throws Error if they cannot be.
inline std::string why_kept(const GgufSource& source, const GgmlType& type, bool is_asked) {
  const Tensor& tensor = source.tensor;
  if (is_asked) return "asked to stay";
  if (element_count(tensor) == 0) return "has no elements";
  if (tensor.dtype == type.name && type.numbers > 1) return "is " + in_small_letters(type.name) + " already";
  for (const GgufSource::Part& part : source.parts) {
    const std::string& dtype = part.from.dtype;
    if (part.from.coded || dtype == "F32" || dtype == "BF16" || dtype == "F16" || dtype == "F64") continue;
    fail(to_string(part.from), " has dtype ", dtype, ", expected F32, BF16, F16 or coded numbers", why_not_read(dtype));
  }
  if (const Index cols = tensor.shape.empty() ? 1 : tensor.shape.back(); cols % type.numbers != 0) {
    const std::string_view end = end_in_layer(tensor.name);
    fail(source_of(source), ": the length of a row is ", cols, ", no multiple of ", type.numbers, ", the block of ",
         in_small_letters(type.name), ": keep it as it is (--keep ", end.substr(0, end.rfind('.')),
         "), or take another type: ", gguf_types_of_rows(cols));
  }
  return {};
}

inline std::vector<GgufTensorPlan> plan_gguf(const Model& model, const QuantizeGgufOptions& options,
                                             ModelQuantization& report) {
  std::vector<GgufTensorPlan> plan;
  std::vector<std::string> parts = options.keep;
  for (const auto& [part, type] : options.type_of) parts.push_back(part);
  std::vector<bool> is_found(parts.size());
  bool any = false;
  Index num_layers = 0;
  for (const std::string& block : model.moe_blocks()) num_layers = std::max(num_layers, layer_number(block) + 1);
  for (const std::string& block : model.moe_blocks()) {
    if (&model.config(block) != &model.config()) {
      const std::string type = model.config(block).text("model_type");
      report.kept.emplace_back(block, "is left out: it is of a " + type + ", which is another model beside the file's");
      continue;
    }
    const std::vector<GgufSource> sources = gguf_sources(model, block);
    std::set<std::string> coded;  // anew
    const auto coding_of = [&](const GgufSource& source) -> const GgufCoding* {
      const std::string& name = source.tensor.name;
      if (!is_of_gguf_experts(name)) return nullptr;
      const std::string module = name.substr(0, name.rfind('.'));
      bool is_asked = false;
      for (std::size_t k = 0; k < parts.size(); ++k) {
        if (module.find(parts[k]) == module.npos) continue;
        is_found[k] = true;
        is_asked = is_asked || k < options.keep.size();
      }
      const GgufCoding& coding = coding_for(options, module, num_layers);
      if (const std::string reason = why_kept(source, *find_ggml_type(coding.type), is_asked); !reason.empty()) {
        report.kept.emplace_back(name, reason);
        return nullptr;
      }
      coded.insert(name);
      return &coding;
    };
    std::vector<const GgufCoding*> codings;
    for (const GgufSource& source : sources) codings.push_back(coding_of(source));
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const Tensor& its = sources[i].tensor;
      const GgufCoding* const coding = codings[i];
      Tensor tensor{.name = its.name, .dtype = its.dtype, .shape = its.shape};
      if (coded.contains(sources[i].scaled)) continue;  // the new codes are of what it made of the old ones
      for (const GgufSource::Part& part : sources[i].parts) report.bytes_before += bytes_of(part);
      if (coding != nullptr) {
        tensor.dtype = coding->type;
        if (options.importance && !options.importance->contains(its.name)) report.unweighed.push_back(its.name);
        const std::string type = in_small_letters(coding->type);
        if (options.importance && !coding->weighs && std::ranges::count(report.unweighing, type) == 0) {
          report.unweighing.push_back(type);
        }
      }
      any = any || coding != nullptr;
      report.bytes_after += ggml_bytes(tensor, *find_ggml_type(tensor.dtype));
      plan.push_back({std::move(tensor), block, i, coding});
    }
  }
  for (std::size_t k = 0; k < is_found.size(); ++k) {
    if (is_found[k]) continue;
    fail("\"", parts[k], k < options.keep.size() ? "\" was asked to stay" : "\" was given a type",
         ", and is in no name of experts' weights: GGUF calls them ",
         "\"blk.3.ffn_down_exps\", \"blk.3.ffn_down_shexp\" and so on");
  }
  if (!any) {
    fail(model.place(), ": no tensor is a weight of experts that could be ", in_small_letters(options.type),
         report.kept.empty() ? "" : ": \"" + report.kept[0].first + "\" " + report.kept[0].second);
  }
  const std::size_t num_coded = std::size_t(std::ranges::count_if(plan, [](const auto& its) { return its.coding; }));
  if (report.unweighed.size() == num_coded) {
    fail(options.importance->file(), ": says nothing of \"", report.unweighed.front(),
         "\", nor of any other weight: is it of this model?");
  }
  return plan;
}

/// The bytes of a matrix, row after row, and the error of what they stand for.
struct GgufMatrix {
  std::vector<std::byte> bytes;
  double error;
};

/// @param x           (rows × cols), row after row
/// @param importance  (cols), or empty
/// @param who         for messages
inline GgufMatrix encode_for_gguf(const GgufCoding& coding, const std::vector<float>& x, Index rows, Index cols,
                                  const std::vector<float>& importance, const std::string& who, ExecutorRef executor) {
  const GgmlType& type = *find_ggml_type(coding.type);
  const Index row_bytes = cols / type.numbers * type.bytes;
  GgufMatrix all{std::vector<std::byte>(std::size_t(rows * row_bytes)), 0};
  const QuantizedMatrix coded(*type.format, rows, cols, {all.bytes.data(), row_bytes});
  std::vector<std::pair<double, double>> squares(static_cast<std::size_t>(rows));  // of what a row is off, and of it
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch);
  workers.for_each(rows, [&](Index r, Scratch& memory) {
    const float* const row = x.data() + r * cols;
    const auto place = [&](Index c) { return "(" + std::to_string(r) + ", " + std::to_string(c) + ")"; };
    for (Index c = 0; c < cols; ++c) {
      if (!std::isfinite(row[c])) fail(who, ": the number at ", place(c), " is ", row[c], ", expected a finite one");
    }
    coding.encode(row, cols, all.bytes.data() + r * row_bytes, importance.empty() ? nullptr : importance.data());
    float* const is = memory.array<float>(cols);
    coded.decode(r, 0, cols, is);
    auto& [off, norm] = squares[std::size_t(r)];
    for (Index c = 0; c < cols; ++c) {
      if (!std::isfinite(is[c])) {
        const WeightMap<float> w(x.data(), rows, cols, Eigen::OuterStride<>(cols));
        fail(who, ": ", why_not_coded<float>(w, r, c, 1, type.numbers, in_small_letters(coding.type)));
      }
      const double was = double(row[c]), change = double(is[c]) - was;
      off += encoding::product(change, change);
      norm += encoding::product(was, was);
    }
  });
  double off = 0, norm = 0;
  for (const auto& [change, square] : squares) {
    off += change;
    norm += square;
  }
  all.error = off == 0 ? 0 : std::sqrt(off / norm);
  return all;
}

/// Where the file will be: that which a link leads to.
/// @throws Error unless nothing is there; or, if that may go, a file.
inline std::filesystem::path replaceable_file(const std::filesystem::path& file, bool overwrite) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (status.type() == std::filesystem::file_type::not_found) return file;
  if (!overwrite) fail(utf8(file), ": is there already: choose another name, or ask to overwrite it");
  if (!std::filesystem::is_regular_file(status)) fail(utf8(file), ": is no file, and will not be overwritten");
  const std::filesystem::path itself = std::filesystem::canonical(file, error);
  if (error) fail(utf8(file), ": ", error.message());
  return itself;
}

}  // namespace detail

/// Names of the types that quantize_gguf() writes: "q8_0, q4_0, …".
inline std::string quantized_gguf_types() {
  std::string list = detail::gguf_types_of_rows(0);
  for (const detail::GgufRecipe& recipe : detail::gguf_recipes) list += ", " + std::string(recipe.name);
  return list;
}

/// Writes the MoE blocks of a model as save_gguf() does, weights of experts (ffn_*_exps, ffn_*_shexp) in `type`, in the
/// bytes that encode() makes of each row, and all else as gguf_tensors() gives it. Weights that are coded in the model
/// are decoded first, and errors are of these numbers; those that are of `type` in a GGUF file stay. Memory: one
/// matrix, and what is made of it; of a model whose weights are repacked, one block's. The same bits for any number of
/// threads.
///
/// Nothing is half written: the file appears when all is in it.
/// @throws Error naming the tensor and both sizes, if a row is no multiple of the type's block; if the model has no
///         experts, or GGUF cannot say what its blocks compute; if a number is not finite, or too large for the type;
///         if `out` is there; if it cannot be written. Then all is as it was.
inline ModelQuantization quantize_gguf(const Model& model, const std::filesystem::path& out,
                                       const QuantizeGgufOptions& options = {}, ExecutorRef executor = Serial{}) {
  if (detail::find_recipe(options.type) == nullptr) detail::gguf_coding(options.type);  // before anything is read
  for (const GgufTypeOf& its : options.type_of) detail::gguf_coding(its.type);
  const std::filesystem::path path = detail::replaceable_file(out, options.overwrite);
  ModelQuantization report;
  const auto plan = detail::plan_gguf(model, options, report);
  std::vector<Tensor> tensors;
  for (const auto& planned : plan) tensors.push_back(planned.tensor);
  constexpr std::uint32_t version_of_blocks = 2;  // GGML_QNT_VERSION of ggml.h
  const GgufFile file = detail::gguf_file_of(
      model, tensors, {{"general.quantization_version", gguf_value(version_of_blocks)}}, utf8(out));
  std::size_t done = 0;
  std::string block;
  std::vector<detail::GgufSource> sources;
  const auto write_bytes = [&](std::size_t i, const auto& append) {
    const auto& planned = plan[i];
    if (options.progress) options.progress({done, report.bytes_before, planned.tensor.name});
    if (i == 0 || planned.block != block) {
      block = planned.block;
      sources.clear();  // before there are others
      sources = detail::gguf_sources(model, block);
    }
    const detail::GgufSource& source = sources[planned.place];
    if (planned.coding == nullptr && detail::is_gguf(model.folder())) append(source.tensor.bytes);
    for (std::size_t e = 0; e < source.parts.size(); ++e) {
      const auto& [from, place] = source.parts[e];
      const auto size = std::size_t(place.rows * place.cols);
      if (planned.coding != nullptr) {
        static const std::vector<float> all_alike;
        const auto& importance = options.importance ? options.importance->of(planned.tensor.name, Index(e),
                                                                             std::ssize(source.parts), place.cols)
                                                    : all_alike;
        std::vector<float> numbers(size);
        detail::copy_numbers(from, place, reinterpret_cast<std::byte*>(numbers.data()), "F32");
        const bool of_all = planned.tensor.shape.size() == 3;
        const std::string who = source_of(source, e) + (of_all ? ", expert " + std::to_string(e) : "");
        const auto matrix =
            detail::encode_for_gguf(*planned.coding, numbers, place.rows, place.cols, importance, who, executor);
        append(matrix.bytes);
        report.matrices.push_back({planned.tensor.name,
                                   of_all ? Index(e) : -1,
                                   {place.rows, place.cols},
                                   matrix.error,
                                   detail::in_small_letters(planned.coding->type)});
      } else if (!detail::is_gguf(model.folder())) {
        std::vector<std::byte> bytes(size * std::size_t(dtype_bits(planned.tensor.dtype)) / 8);
        detail::copy_numbers(from, place, bytes.data(), planned.tensor.dtype);
        append(bytes);
      }
      done += detail::bytes_of(source.parts[e]);
    }
    if (i + 1 == plan.size()) detail::replaceable_file(out, options.overwrite);  // still
  };
  write_gguf(path, file.metadata, file.tensors, write_bytes, [&](const std::filesystem::path& written) {
    if (options.progress) options.progress({done, report.bytes_before, {}});
    if (options.check) options.check(written);
  });
  return report;
}

}  // namespace moe::inline MOE_TARGET::io
