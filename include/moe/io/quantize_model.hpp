/// @file  A model's folder with its experts in FP8, INT4, MXFP4 or NVFP4, as the software of these formats writes it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/atomic_folder.hpp"
#include "moe/io/error.hpp"
#include "moe/io/folder_codings.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_quantization.hpp"
#include "moe/io/quantize_plan.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/write_model.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

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

}  // namespace detail

/// Writes a model as its folder has it, file by file, but for weights of experts (or all linear modules): these become
/// `type`, under the names that transformers ("fp8") and compressed-tensors (the others) give them, with the bits that
/// these would have; what holds all experts ("experts.gate_up_proj") is taken apart for that. config.json says so, and
/// names every module that stays. Memory: one matrix, and what is made of it.
///
/// Nothing is half written: the folder appears when all is in it.
/// @throws Error naming the tensor and both sizes, if a row is no multiple of a block of compressed-tensors' (in fp8
///         such a matrix stays as it is, as with transformers); if the model is quantised already, or has no experts;
///         if a number is not finite, or what it is coded to is not; if experts are in a form that no software reads
///         once it is coded; if `out` is there; if it cannot be written. Then all is as it was.
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
  std::map<std::string, detail::ExpertWeight> experts;
  const bool is_known = detail::is_known_model(in);
  if (is_known) experts = detail::expert_weights(Model(in));
  const detail::QuantizePlan plan =
      detail::QuantizePlanner(tensors, detail::coding_for_model(settings.settings, options),
                              is_known ? &experts : nullptr, options, report)
          .plan();
  settings.settings["quantization_config"] = plan.coding->config(plan.kept_modules);
  std::size_t done = 0;
  const auto write_file = [&](const std::filesystem::path& to, const std::vector<std::string>& names,
                              std::map<std::string, std::string>& shard_of) {
    std::vector<Tensor> all;
    for (const std::string& name : names) {
      if (const auto found = plan.become.find(name); found != plan.become.end()) {
        const std::vector<Tensor> its = detail::tensors_of(found->second);
        all.insert(all.end(), its.begin(), its.end());
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
        for (const detail::BecomingMatrix& its : found->second) {
          if (!its.is_coded) {
            file.write(its.become[0].name, detail::numbers_of(tensor, its.matrix));
            continue;
          }
          const auto parts = detail::encoded(*plan.coding, tensor, its.matrix, executor, decoded);
          for (std::size_t i = 0; i < parts.size(); ++i) {
            file.write(its.become[i].name, parts[i], std::size_t(its.part) * parts[i].size());
          }
          const auto [off, all_squares] = detail::squared_norms(tensor, its.matrix, decoded);
          report.matrices.push_back({its.name,
                                     its.expert,
                                     {its.matrix.rows, its.matrix.cols},
                                     off == 0 ? 0 : std::sqrt(off / all_squares),
                                     options.type});
        }
      }
      done += tensor.bytes.size();
    }
    file.close();
  };
  write_folder_atomically(
      out, options.overwrite, "config.json",
      [&](const std::filesystem::path& folder) {
        detail::copy_other_files(in, folder);
        settings.write(folder / "config.json");
        std::map<std::string, std::string> shard_of;
        for (const auto& [file, names] : plan.tensors_of) {
          write_file(folder / std::filesystem::path(reinterpret_cast<const char8_t*>(file.c_str())).filename(), names,
                     shard_of);
        }
        if (plan.tensors_of.size() > 1) write_index(folder, shard_of, report.bytes_after);
        if (options.progress) options.progress({done, report.bytes_before, {}});
      },
      options.check);
  std::ranges::stable_sort(report.matrices, {}, &MatrixQuantization::tensor);
  return report;
}

}  // namespace moe::inline MOE_TARGET::io
