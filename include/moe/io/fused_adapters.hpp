/// @file  Adapters that PEFT keeps for all experts of a layer in one piece.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/io/error.hpp"
#include "moe/io/peft_config.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/bank.hpp"

namespace moe::inline MOE_TARGET::io {

/// How the file's shapes are to be read, where they leave it open.
struct FusedAdapterOptions {
  /// Rows of gate_up_proj are gate, up, gate, up, …; else all of gate, then all of up. Left out, as the models have
  /// them whose activation the bank has: gpt-oss's alternate.
  std::optional<bool> interleaved = {};
  /// A is the factor of outputs, B that of inputs: PEFT 0.18 of parameters stored (experts × out × in). Where shapes
  /// tell, it may be left out.
  std::optional<bool> turned = {};
};

namespace detail {

/// One of a file's, of some fused parameter: A (experts·rank × one side), B (other side × rank·experts), where rows of
/// A are counted by experts first, columns of B by ranks first.
template <class Scalar>
struct FusedAdapter {
  std::string name;  // with that of its file, for messages
  Weight<Scalar> a, b;
  Index num_experts;

  Index rank() const { return a.rows() / num_experts; }
  bool is_square() const { return a.cols() == b.rows(); }

  /// Whether it fits beside a matrix of this shape, one way or the other.
  bool fits(Index out, Index in) const {
    return (a.cols() == in && b.rows() == out) || (a.cols() == out && b.rows() == in);
  }

  Adapter<Scalar> of_expert(Index expert, bool turned, double alpha) const {
    const auto rows = a.middleRows(expert * rank(), rank());
    const auto columns = b(every, Eigen::seqN(expert, rank(), num_experts));
    if (turned) return {columns.transpose(), rows.transpose(), alpha};
    return {rows, columns, alpha};
  }
};

/// One adapter of gate and up together as one of each, with an A each, the same at first.
template <class Scalar>
void split_gate_and_up(const Adapter<Scalar>& both, bool interleaved, ExpertAdapters<Scalar>& to) {
  const Index ff = both.out() / 2, step = interleaved ? 2 : 1;
  to.gate = {both.a, both.b(Eigen::seqN(0, ff, step), every), both.alpha};
  to.up = {both.a, both.b(Eigen::seqN(interleaved ? 1 : ff, ff, step), every), both.alpha};
}

}  // namespace detail

/// Gives the experts of a bank the adapters that a file has of their fused parameters gate_up_proj and down_proj: its
/// `target_parameters`. Which tensor is whose, its shape tells. Gate and up then have an A each, the same at first.
/// @param experts  "model.layers.3.mlp.experts"
/// @throws Error naming the file and the tensor if there is none, if a shape does not fit, if another one is of these
/// experts, or if none tells whether they are turned and options do not say it; then nothing has been written.
template <class W, class Act>
void adopt_fused_adapters(const std::filesystem::path& folder, const std::string& experts, LoraBank<W, Act>& bank,
                          const FusedAdapterOptions& options = {}) {
  using Scalar = ActivationScalar<W>;
  const Index n = bank.num_experts(), d = bank.d_model(), ff = bank.d_ff();
  const std::filesystem::path file = folder / "adapter_model.safetensors";
  const Tensors tensors = Tensors::open(file);
  const detail::PeftConfig config(folder / "adapter_config.json");
  const WeightTensors weights(tensors, "", 0);
  const auto shape_of = [&](const std::string& name) {
    const Tensor tensor = tensors.at(name);
    if (tensor.shape.size() != 2) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected a matrix");
    }
    return std::pair(tensor.shape[0], tensor.shape[1]);
  };
  const auto weight = [&](const std::string& name, Index rows, Index cols) -> Weight<Scalar> {
    const auto numbers = weights.copy<Scalar>(name, {rows, cols});
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
  };

  std::optional<detail::FusedAdapter<Scalar>> gate_up, down;
  std::set<std::string> taken;
  for (const char* const wrapped : {"", ".base_layer"}) {
    const std::string name = detail::peft_prefix + experts + wrapped;
    if (!tensors.contains(name + ".lora_A.weight")) continue;
    const auto [rows, one_side] = shape_of(name + ".lora_A.weight");
    const Index other_side = shape_of(name + ".lora_B.weight").first;
    const std::string what = utf8(file) + ": adapter \"" + name + "\"";
    if (rows == 0 || rows % n != 0) {
      fail(what, " has ", rows, " rows in lora_A, expected a multiple of ", n, ", one for each expert");
    }
    if (!config.ranks().empty() && std::ranges::count(config.ranks(), rows / n) == 0) {
      fail(what, " has ", rows, " rows in lora_A, which are ", rows / n, " for each of ", n, " experts, and ",
           utf8(folder / "adapter_config.json"), " has rank ", config.ranks().front(),
           ": experts that compute nothing have rows of their own there, as LongCat's: load_lora_layer() knows them");
    }
    detail::FusedAdapter<Scalar> found{what, weight(name + ".lora_A.weight", rows, one_side),
                                       weight(name + ".lora_B.weight", other_side, rows), n};
    if (found.fits(2 * ff, d) == found.fits(d, ff)) {
      fail(what, " is between ", one_side, " and ", other_side, " numbers, expected ", 2 * ff, " and ", d, " or ", d,
           " and ", ff);
    }
    taken.insert({name + ".lora_A.weight", name + ".lora_B.weight"});
    auto& whose = found.fits(2 * ff, d) ? gate_up : down;
    if (whose) fail(what, " is of the same shape as that around it");
    whose = std::move(found);
  }
  if (!gate_up && !down) fail(utf8(file), ": no adapter of \"", experts, "\"");
  for (const std::string& name : tensors.names()) {
    if (name.starts_with(detail::peft_prefix + experts + ".") && taken.count(name) == 0) {
      fail(to_string(tensors.at(name)), " is of these experts, too, expected adapters of all of them together alone");
    }
  }

  std::optional<bool> turned = options.turned;
  const auto look = [&](const auto& fused, Index out) {
    if (!fused || fused->is_square()) return;
    const bool its = fused->a.cols() == out;
    if (turned && *turned != its) fail(fused->name, " is ", its ? "" : "not ", "turned, unlike what was said or found");
    turned = its;
  };
  look(gate_up, 2 * ff);
  look(down, d);
  if (!turned) fail((gate_up ? gate_up : down)->name, " is square: say whether it is turned");

  std::vector<ExpertAdapters<Scalar>> adapters(static_cast<std::size_t>(n));
  for (Index e = 0; e < n; ++e) {
    auto& its = adapters[std::size_t(e)];
    if (down) its.down = down->of_expert(e, *turned, config.alpha(experts + ".down_proj", down->rank()));
    if (!gate_up) continue;
    const double alpha = config.alpha(experts + ".gate_up_proj", gate_up->rank());
    detail::split_gate_and_up(gate_up->of_expert(e, *turned, alpha),
                              options.interleaved.value_or(std::is_same_v<Act, GptOssGlu>), its);
  }
  bank.adapters() = std::move(adapters);
}

}  // namespace moe::inline MOE_TARGET::io
