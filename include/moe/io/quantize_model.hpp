/// @file  A model's folder with its experts in FP8, INT4, MXFP4 or NVFP4, as the software of these formats writes it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/formats/encode_matrix.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/atomic_folder.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_quantization.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/save_model.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

/// How quantize_model() writes.
struct QuantizeModelOptions {
  std::string type = "fp8";            // one of quantized_folder_types
  bool all_linears = false;            // attention and dense FFNs as well, not experts alone
  std::vector<std::string> keep = {};  // of which one is part of a module's name: it stays as it is
  bool overwrite = false;              // a model's folder of this name, with all that is in it
  std::function<void(const QuantizeProgress&)> progress = {};
  std::function<void(const std::filesystem::path&)> check = {};  // what is written, before it appears; what this throws
                                                                 // is thrown, and all is as it was
};

namespace detail {

/// One coding of a folder's matrices: what tensors it makes of "module.weight", and what it says in config.json.
struct FolderCoding {
  const char* type;
  Index rows, cols;  // that are coded together
  bool refuses;      // what blocks do not divide; else it stays as it is
  /// Names, dtypes and shapes of what becomes of a tensor of this name, dtype and shape.
  std::vector<Tensor> (*become)(const std::string& name, const std::string& dtype, const std::vector<Index>& shape);
  /// Their bytes, in that order, of one matrix; `decoded` gets its numbers back.
  std::vector<std::vector<std::byte>> (*encode)(const Tensor& tensor, Index matrix, ExecutorRef executor,
                                                Weight<float>& decoded);
  nlohmann::ordered_json (*config)(const std::vector<std::string>& kept);
};

inline std::string beside(const std::string& weight, const char* suffix) { return weight + suffix; }

/// A shape whose last sizes are others.
inline std::vector<Index> with_last(std::vector<Index> shape, Index rows, Index cols) {
  shape[shape.size() - 2] = rows;
  shape[shape.size() - 1] = cols;
  return shape;
}

/// f(map of matrix number `matrix` of a tensor of two or three dimensions).
template <class F>
auto with_matrix(const Tensor& tensor, Index matrix, const F& f) {
  return with_floats(tensor, [&]<class W>(std::span<const W> numbers) {
    const Index rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
    if constexpr (std::is_same_v<W, double>) {
      fail(to_string(tensor), " has dtype F64, expected F32, BF16 or F16");
      return f(WeightMap<float>(nullptr, 0, 0, Eigen::OuterStride<>(0)));
    } else {
      return f(WeightMap<W>(numbers.data() + matrix * rows * cols, rows, cols, Eigen::OuterStride<>(cols)));
    }
  });
}

template <class T>
std::vector<std::vector<std::byte>> encode_tensor(const Tensor& tensor, Index matrix, ExecutorRef executor,
                                                  Weight<float>& decoded) {
  return with_matrix(tensor, matrix, [&]<class Map>(const Map& w) {
    using W = typename Map::Scalar;
    CodedMatrix coded = encode_matrix<T, W>(w, {}, to_string(tensor), executor);
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

inline std::vector<Tensor> become_nvfp4(const std::string& name, const std::string&, const std::vector<Index>& shape) {
  return {{.name = name + "_packed", .dtype = "U8", .shape = {shape[0], shape[1] / 2}},
          {.name = name + "_scale", .dtype = "F8_E4M3", .shape = {shape[0], shape[1] / 16}},
          {.name = name + "_global_scale", .dtype = "F32", .shape = {1}}};
}

inline nlohmann::ordered_json config_of_fp8(const std::vector<std::string>& kept) {
  return {{"activation_scheme", "dynamic"},
          {"modules_to_not_convert", kept},
          {"quant_method", "fp8"},
          {"weight_block_size", {BlockFp8::rows, BlockFp8::cols}}};
}

/// What compressed-tensors says of all its formats.
inline nlohmann::ordered_json config_of_compressed_tensors(const char* format, nlohmann::ordered_json weights,
                                                           const std::vector<std::string>& kept) {
  weights["dynamic"] = false;
  weights["num_bits"] = 4;
  weights["symmetric"] = true;
  const nlohmann::ordered_json group = {{"format", format},
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
nlohmann::ordered_json config_of_int4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors("pack-quantized", {{"group_size", group}, {"strategy", "group"}, {"type", "int"}},
                                      kept);
}

inline nlohmann::ordered_json config_of_mxfp4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors(
      "mxfp4-pack-quantized",
      {{"group_size", 32}, {"scale_dtype", "torch.uint8"}, {"strategy", "group"}, {"type", "float"}}, kept);
}

inline nlohmann::ordered_json config_of_nvfp4(const std::vector<std::string>& kept) {
  return config_of_compressed_tensors(
      "nvfp4-pack-quantized",
      {{"group_size", 16}, {"scale_dtype", "torch.float8_e4m3fn"}, {"strategy", "tensor_group"}, {"type", "float"}},
      kept);
}

inline constexpr auto folder_codings = std::to_array<FolderCoding>({
    {"fp8", 128, 128, false, become_fp8, encode_tensor<BlockFp8>, config_of_fp8},
    {"int4_g32", 1, 32, true, become_int4<32>, encode_tensor<GroupInt4<32>>, config_of_int4<32>},
    {"int4_g128", 1, 128, true, become_int4<128>, encode_tensor<GroupInt4<128>>, config_of_int4<128>},
    {"mxfp4", 1, 32, true, become_mxfp4, encode_tensor<GroupMxfp4>, config_of_mxfp4},
    {"nvfp4", 1, 16, true, become_nvfp4, encode_tensor<GroupNvfp4>, config_of_nvfp4},
});

/// The parts of a name between its dots.
inline std::vector<std::string_view> parts_of(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    parts.push_back(name.substr(at, dot - at));
    at = dot + 1;
  }
  return parts;
}

/// "model.layers.0.mlp.experts.3.up_proj.weight" and its like, also of all experts at once.
inline bool is_of_experts(std::string_view name) {
  const auto parts = parts_of(name);
  return std::ranges::any_of(parts, [](std::string_view part) {
    return part == "experts" || part == "local_experts" || part == "shared_expert" || part == "shared_experts" ||
           part == "shared_mlp";
  });
}

/// Weights of experts, all or shared ones, of a model whose type is known, by the names of their tensors: what a loader
/// reads as such.
/// @throws Error naming the tensor and its shape, if it is one that no reader would take once its numbers are coded.
inline std::set<std::string> expert_weights(const Model& model) {
  std::set<std::string> found;
  for (const std::string& block : model.moe_blocks()) {
    const Architecture& its = model.architecture(block);
    const Config& config = model.config(block);
    const MoeShape shape = moe_shape(config, its, block);
    const WeightTensors tensors(model.tensors(), block, shape.num_experts);
    const Names names = find_names(tensors, expert_spellings, its.experts, its.gated);
    const Index in = shape.d_latent > 0 ? shape.d_latent : shape.d_model;
    const bool turned = names.layout == Layout::fused && is_turned(tensors, names, in, shape.d_ff);
    if (turned || names.layout == Layout::rows) {
      const Tensor& tensor = model.tensors().at(tensors.full_name(names.down));
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", ",
           turned ? "(experts × in × out)" : "rows that are multiplied from behind",
           ", and numbers are coded along what a row multiplies: take an OUT that ends in .gguf");
    }
    for (const StoredParameter& stored :
         BlockForm(tensors, config, its, names, shape).list(shape.num_experts, shape.d_ff)) {
      const std::string& parameter = stored.parameter;
      const bool is_of_one = parameter.starts_with("experts.") || parameter.starts_with("shared_expert.");
      if (is_of_one && parameter.ends_with("_proj.weight")) found.insert(stored.tensor);
    }
  }
  return found;
}

/// The weight of a linear module, as far as names tell: no embedding, head, norm, router or convolution.
inline bool is_linear(std::string_view name) {
  const auto parts = parts_of(name);
  if (parts.back() != "weight" || parts.size() < 2) return false;
  const std::string_view module = parts[parts.size() - 2];
  for (const std::string_view other : {"embed", "norm", "conv", "router", "wte", "wpe", "lm_head", "patch"}) {
    if (module.find(other) != module.npos) return false;
  }
  return module != "gate" && module != "shared_expert_gate" && module != "head" && module != "classifier";
}

/// A file of safetensors that is written tensor by tensor, in any order, of which all but the bytes is known before.
class SafetensorsInTurn {
 public:
  SafetensorsInTurn(const std::filesystem::path& path, const std::vector<Tensor>& tensors, const Metadata& metadata)
      : path_(path), stream_(create(path)) {
    if (!stream_) fail(utf8(path_), ": cannot be written: ", last_error().message());
    std::vector<const Tensor*> order;
    for (const Tensor& tensor : tensors) order.push_back(&tensor);
    std::ranges::sort(order, {},
                      [](const Tensor* t) { return std::pair(-dtype_bits(t->dtype), std::string_view(t->name)); });
    nlohmann::json header = nlohmann::json::object();
    if (!metadata.empty()) header[metadata_key] = metadata;
    std::size_t begin = 0;
    for (const Tensor* tensor : order) {
      const std::size_t end = begin + std::size_t(element_count(*tensor) * dtype_bits(tensor->dtype) / 8);
      const nlohmann::json entry = {{"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {begin, end}}};
      if (!header.emplace(tensor->name, entry).second) {
        fail(utf8(path_), ": two tensors are called \"", tensor->name, "\"");
      }
      place_.emplace(tensor->name, begin);
      begin = end;
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    const std::uint64_t length = text.size();
    write_at(0, std::as_bytes(std::span(&length, 1)));
    write_at(sizeof length, std::as_bytes(std::span(text)));
    data_ = sizeof length + text.size();
  }

  /// Bytes of a tensor, from its byte `first` on.
  void write(const std::string& tensor, std::span<const std::byte> bytes, std::size_t first = 0) {
    write_at(data_ + place_.at(tensor) + first, bytes);
  }

  void close() {
    if (!flush_to_disk(stream_.get()) || std::fclose(stream_.release()) != 0) {
      fail(utf8(path_), ": cannot be written: ", last_error().message());
    }
  }

 private:
  void write_at(std::size_t at, std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
#if defined(_WIN32)
    const bool there = ::_fseeki64(stream_.get(), static_cast<long long>(at), SEEK_SET) == 0;
#else
    const bool there = at == next_ || ::fseeko(stream_.get(), static_cast<off_t>(at), SEEK_SET) == 0;
#endif
    if (!there || std::fwrite(bytes.data(), 1, bytes.size(), stream_.get()) != bytes.size()) {
      fail(utf8(path_), ": cannot be written: ", last_error().message());
    }
    next_ = at + bytes.size();
  }

  std::filesystem::path path_;
  Stream stream_;
  std::map<std::string, std::size_t> place_;
  std::size_t data_ = 0, next_ = 0;
};

/// What is done with each tensor of a model.
struct QuantizePlan {
  const FolderCoding* coding;
  std::map<std::string, std::vector<std::string>> tensors_of;  // by file
  std::map<std::string, std::vector<Tensor>> become;           // of those that are quantised, by name
  std::vector<std::string> kept_modules;                       // linear ones that are not
};

inline const FolderCoding& folder_coding(const std::string& type) {
  const auto found = std::ranges::find(folder_codings, type, [](const FolderCoding& c) { return std::string(c.type); });
  if (found != folder_codings.end()) return *found;
  std::string list;
  for (const FolderCoding& coding : folder_codings) list += std::string(list.empty() ? "" : ", ") + coding.type;
  fail("no type is called \"", type, "\", expected one of ", list);
}

/// @param experts  names of experts' weights; null: of a model whose type is not known, so names alone tell
inline QuantizePlan plan_quantization(const Tensors& tensors, const std::set<std::string>* experts,
                                      const QuantizeModelOptions& options, ModelQuantization& report) {
  QuantizePlan plan{&folder_coding(options.type), {}, {}, {}};
  const FolderCoding& coding = *plan.coding;
  std::vector<bool> is_found(options.keep.size());
  tensors.for_each_below("", [&](const Tensor& tensor) {
    if (dtype_bits(tensor.dtype) == 0) fail(to_string(tensor), " has unknown dtype ", tensor.dtype);
    plan.tensors_of[tensor.file].push_back(tensor.name);
    report.bytes_before += tensor.bytes.size();
    const bool is_float = tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16";
    const bool linear = is_linear(tensor.name) && tensor.shape.size() == 2;
    const bool of_experts = experts != nullptr ? experts->contains(tensor.name) : is_of_experts(tensor.name);
    const bool fused = of_experts && tensor.shape.size() == 3;
    const std::string module =
        tensor.name.ends_with(".weight") ? tensor.name.substr(0, tensor.name.size() - 7) : tensor.name;
    const bool wanted = fused || (linear && (of_experts || options.all_linears));
    bool is_asked = false;
    for (std::size_t k = 0; wanted && k < options.keep.size(); ++k) {
      if (module.find(options.keep[k]) == module.npos) continue;
      is_asked = is_found[k] = true;
    }
    std::string reason;
    if (is_asked) {
      reason = "asked to stay";
    } else if (wanted) {
      if (!is_float) {
        fail(to_string(tensor), " has dtype ", tensor.dtype,
             ", expected F32, BF16 or F16: what is quantised already is not quantised again");
      }
      if (fused && coding.refuses) {
        fail(to_string(tensor), " has shape ", to_string(tensor.shape),
             ", all experts at once, expected a tensor for each: ", coding.type,
             " has no form for them; take fp8, or an OUT that ends in .gguf");
      }
      const Index rows = tensor.shape[tensor.shape.size() - 2], cols = tensor.shape.back();
      if (tensor.bytes.empty()) {
        reason = "has no elements";
      } else if (rows % coding.rows != 0 || cols % coding.cols != 0) {
        const bool of_rows = cols % coding.cols == 0;
        const std::string what = std::string(of_rows ? "the number of rows is " : "the length of a row is ") +
                                 std::to_string(of_rows ? rows : cols) + ", no multiple of " +
                                 std::to_string(of_rows ? coding.rows : coding.cols);
        if (coding.refuses) {
          fail(to_string(tensor), ": ", what, ", the block of ", coding.type, ": keep it as it is (--keep ", module,
               "), or take another type");
        }
        reason = what;
      }
    }
    if (wanted && reason.empty()) {
      plan.become.emplace(tensor.name, coding.become(tensor.name, tensor.dtype, tensor.shape));
      return;
    }
    if (!reason.empty()) report.kept.emplace_back(tensor.name, reason);
    if (tensor.shape.size() >= 2 && (tensor.name.ends_with(".weight") || fused)) plan.kept_modules.push_back(module);
  });
  for (std::size_t k = 0; k < is_found.size(); ++k) {
    if (is_found[k]) continue;
    fail("\"", options.keep[k], "\" was asked to stay, and is in no name of a weight that would not: as \"",
         plan.become.empty() ? "" : plan.become.begin()->first, "\"");
  }
  if (plan.become.empty()) {
    fail("no tensor is a weight of experts", options.all_linears ? " or of another linear module" : "",
         " that could be ", options.type,
         report.kept.empty() ? "" : ": of \"" + report.kept[0].first + "\" " + report.kept[0].second);
  }
  return plan;
}

/// Is the model of a type that can be loaded?
inline bool is_known_model(const std::filesystem::path& folder) {
  const Config config = Config::open(config_file_in(folder));
  return config.has("model_type") && find_architecture(config.text("model_type")) != nullptr;
}

/// FolderCoding::encode().
/// @throws Error naming the tensor, if a number is not finite, or what it was coded to is not.
inline std::vector<std::vector<std::byte>> encoded(const FolderCoding& coding, const Tensor& tensor, Index matrix,
                                                   ExecutorRef executor, Weight<float>& decoded) {
  try {
    auto parts = coding.encode(tensor, matrix, executor, decoded);
    if (decoded.allFinite()) return parts;
    with_matrix(tensor, matrix, [&]<class Map>(const Map& w) {
      using W = typename Map::Scalar;
      for (Index r = 0; r < w.rows(); ++r) {
        for (Index c = 0; c < w.cols(); ++c) {
          if (std::isfinite(decoded(r, c))) continue;
          fail(to_string(tensor), ": ", why_not_coded<W>(w, r, c, coding.rows, coding.cols, coding.type),
               ": keep it as it is (--keep)");
        }
      }
    });
    return parts;
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

/// ‖decoded − w‖² and ‖w‖² of matrix `matrix`.
inline std::pair<double, double> squared_norms(const Tensor& tensor, Index matrix, const Weight<float>& decoded) {
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

/// Writes a model as its folder has it, file by file, but for weights of experts (or all linear modules): these become
/// `type`, under the names that transformers ("fp8") and compressed-tensors (the others) give them, with the bits that
/// these would have. config.json says so, and names every module that stays. Memory: one matrix, and what is made of
/// it.
///
/// Nothing is half written: the folder appears when all is in it.
/// @throws Error naming the tensor and both sizes, if a row is no multiple of a block of compressed-tensors' (in fp8
///         such a matrix stays as it is, as with transformers); if the model is quantised already, or has no experts;
///         if a number is not finite, or what it is coded to is not; if `out` is there; if it cannot be written. Then
///         all is as it was.
inline ModelQuantization quantize_model(const std::filesystem::path& in, const std::filesystem::path& out,
                                        const QuantizeModelOptions& options = {}, ExecutorRef executor = Serial{}) {
  ModelQuantization report;
  detail::folder_coding(options.type);  // before anything is read
  detail::SettingsFile settings(detail::config_file_in(in));
  if (settings.settings.contains("quantization_config") && !settings.settings["quantization_config"].is_null()) {
    const auto& its = settings.settings["quantization_config"];
    fail(utf8(in / "config.json"), ": has a quantization_config (",
         its.is_object() && its.contains("quant_method") ? its["quant_method"].dump() : its.dump(),
         "), expected a model that is not quantised");
  }
  const Tensors tensors = Tensors::open(in);
  std::set<std::string> experts;
  const bool is_known = detail::is_known_model(in);
  if (is_known) experts = detail::expert_weights(Model(in));
  const detail::QuantizePlan plan = detail::plan_quantization(tensors, is_known ? &experts : nullptr, options, report);
  settings.settings["quantization_config"] = plan.coding->config(plan.kept_modules);
  std::size_t done = 0;
  const auto write_file = [&](const std::filesystem::path& to, const std::vector<std::string>& names,
                              std::map<std::string, std::string>& shard_of) {
    std::vector<Tensor> all;
    for (const std::string& name : names) {
      if (const auto found = plan.become.find(name); found != plan.become.end()) {
        all.insert(all.end(), found->second.begin(), found->second.end());
      } else {
        const Tensor& tensor = *tensors.find(name);
        all.push_back({.name = name, .dtype = tensor.dtype, .shape = tensor.shape});
      }
    }
    for (const Tensor& tensor : all) {
      shard_of[tensor.name] = utf8(to.filename());
      report.bytes_after += std::size_t(element_count(tensor) * dtype_bits(tensor.dtype) / 8);
    }
    Metadata metadata = tensors.metadata();
    if (!metadata.contains("format")) metadata["format"] = "pt";
    detail::SafetensorsInTurn file(to, all, metadata);
    Weight<float> decoded;
    for (const std::string& name : names) {
      if (options.progress) options.progress({done, report.bytes_before, name});
      const Tensor tensor = tensors.at(name);
      const auto found = plan.become.find(name);
      if (found == plan.become.end()) {
        file.write(name, tensor.bytes);
      } else {
        const bool fused = tensor.shape.size() == 3;
        const std::vector<Index> shape(tensor.shape.end() - 2, tensor.shape.end());
        for (Index matrix = 0; matrix < (fused ? tensor.shape[0] : 1); ++matrix) {
          const auto parts = detail::encoded(*plan.coding, tensor, matrix, executor, decoded);
          for (std::size_t i = 0; i < parts.size(); ++i) {
            file.write(found->second[i].name, parts[i], std::size_t(matrix) * parts[i].size());
          }
          const auto [off, all_squares] = detail::squared_norms(tensor, matrix, decoded);
          report.matrices.push_back(
              {name, fused ? matrix : -1, shape, off == 0 ? 0 : std::sqrt(off / all_squares), options.type});
        }
      }
      done += tensor.bytes.size();
    }
    file.close();
  };
  write_folder_atomically(out, options.overwrite, "config.json", [&](const std::filesystem::path& folder) {
    detail::copy_other_files(in, folder);
    settings.write(folder / "config.json");
    std::map<std::string, std::string> shard_of;
    for (const auto& [file, names] : plan.tensors_of) {
      write_file(folder / std::filesystem::path(reinterpret_cast<const char8_t*>(file.c_str())).filename(), names,
                 shard_of);
    }
    if (plan.tensors_of.size() > 1) write_index(folder, shard_of, report.bytes_after);
    if (options.progress) options.progress({done, report.bytes_before, {}});
    if (options.check) options.check(folder);
  });
  std::ranges::stable_sort(report.matrices, {}, &MatrixQuantization::tensor);
  return report;
}

}  // namespace moe::inline MOE_TARGET::io
