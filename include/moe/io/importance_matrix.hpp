/// @file  How much each column of experts' weights counts, as llama-imatrix (llama.cpp) records it.
#pragma once

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// Of each weight of a model, how much an error of a column costs: Σ over the tokens that came by of the squares of
/// what they brought there, of each expert by itself.
///
/// The file is a GGUF whose general.type is "imatrix": for each weight a tensor "blk.3.ffn_up_exps.weight.in_sum2"
/// (experts × columns) of these sums, and one "….counts" (experts) of the tokens.
/// (tools/imatrix/imatrix.cpp of llama.cpp)
class ImportanceMatrix {
 public:
  /// @throws Error naming the file, the tensor and both values, if it is no such file, if one of the two tensors of a
  ///         weight is missing or they do not fit, or if a number is none or negative.
  static ImportanceMatrix open(const std::filesystem::path& file) {
    const std::string name = utf8(file);
    const GgufFile gguf = read_gguf(file, Access::copied);
    const GgufValue* const type = find_key(gguf.metadata, "general.type");
    const nlohmann::json said = type == nullptr ? nlohmann::json() : to_json(*type);
    if (said != "imatrix") {
      fail(name, ": its general.type is ", said.dump(), ", expected \"imatrix\": a file of llama-imatrix's, in its ",
           "GGUF form");
    }
    ImportanceMatrix all;
    all.file_ = name;
    std::map<std::string, const Tensor*> counts;
    for (const Tensor& tensor : gguf.tensors) {
      if (tensor.name.ends_with(counts_end)) counts.emplace(stem(tensor.name, counts_end), &tensor);
    }
    for (const Tensor& tensor : gguf.tensors) {
      if (tensor.name.ends_with(counts_end)) continue;
      if (!tensor.name.ends_with(sums_end)) {
        fail(to_string(tensor), " is neither a weight's ", sums_end, " nor its ", counts_end);
      }
      const auto its = counts.find(stem(tensor.name, sums_end));
      if (its == counts.end()) fail(to_string(tensor), " has no ", counts_end, " beside it");
      all.weights_.emplace(its->first, columns_of(tensor, *its->second));
      counts.erase(its);
    }
    if (!counts.empty()) fail(to_string(*counts.begin()->second), " has no ", sums_end, " beside it");
    return all;
  }

  const std::string& file() const { return file_; }

  /// Is there one of this weight?
  bool contains(const std::string& weight) const { return weights_.contains(weight); }

  /// Sums of squares (columns) of one expert's matrix; empty where nothing is known: all columns then count alike.
  /// @throws Error naming both numbers, if the weight has other experts or columns there.
  const std::vector<float>& of(const std::string& weight, Index expert, Index num_experts, Index columns) const {
    static const std::vector<float> nothing;
    const auto found = weights_.find(weight);
    if (found == weights_.end()) return nothing;
    const auto& experts = found->second;
    if (std::ssize(experts) != num_experts) {
      fail(file_, ": \"", weight, "\" is of ", experts.size(), " experts, expected ", num_experts);
    }
    const std::vector<float>& its = experts[std::size_t(expert)];
    if (!its.empty() && std::ssize(its) != columns) {
      fail(file_, ": \"", weight, "\" has ", its.size(), " columns, expected ", columns);
    }
    return its;
  }

 private:
  static constexpr std::string_view sums_end = ".in_sum2", counts_end = ".counts";

  static std::string stem(const std::string& name, std::string_view end) {
    return name.substr(0, name.size() - end.size());
  }

  static std::vector<float> numbers_of(const Tensor& tensor) {
    if (tensor.dtype != dtype_name<float>) fail(to_string(tensor), " has dtype ", tensor.dtype, ", expected F32");
    const auto numbers = as<float>(tensor);
    for (const float number : numbers) {
      if (std::isfinite(number) && number >= 0) continue;
      fail(to_string(tensor), " holds ", number, ", expected finite numbers, none below zero");
    }
    return {numbers.begin(), numbers.end()};
  }

  /// Of each expert; of one that no token came to, nothing.
  static std::vector<std::vector<float>> columns_of(const Tensor& sums, const Tensor& counts) {
    const std::vector<float> all = numbers_of(sums), tokens = numbers_of(counts);
    const Index columns = sums.shape.empty() ? 1 : sums.shape.back();
    if (tokens.empty() || all.size() % tokens.size() != 0 || std::size_t(columns) != all.size() / tokens.size()) {
      fail(to_string(sums), " has shape ", to_string(sums.shape), ", and ", counts.name, " counts for ", tokens.size(),
           " experts");
    }
    std::vector<std::vector<float>> experts;
    for (std::size_t e = 0; e < tokens.size(); ++e) {
      const auto first = all.begin() + std::ptrdiff_t(e) * columns;
      experts.push_back(tokens[e] > 0 ? std::vector<float>(first, first + columns) : std::vector<float>());
    }
    return experts;
  }

  std::string file_;
  std::map<std::string, std::vector<std::vector<float>>> weights_;  // by expert
};

}  // namespace moe::inline MOE_TARGET::io
