/// @file  How far the MoE blocks of a model answer from those of another one: of a model, and of itself quantised.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/models/random.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/telemetry/change.hpp"

namespace moe::inline MOE_TARGET::io {

/// What became of a block.
struct BlockChange {
  std::string block;          // as the first model calls it,
  std::string other;          // and the second
  Index tokens = 0;           // that it was asked about
  bool recorded = false;      // were they given? Else they were made, as compare_models() says
  OutputChange answers = {};  // of this block alone, on the same tokens
  /// Of its router, where all blocks before it are of one model, and where they are of the other.
  ChoiceChange choices = {};
  std::string why_not = {};  // why the first model's block does not run by itself: nothing is compared
};

/// What the blocks are asked about.
struct CompareOptions {
  Index num_tokens = 64;   // where none are given
  std::uint64_t seed = 1;  // of these
  /// Tokens that matter, by the block that read them: "model.layers.3.mlp.input" (n_tokens × d_model); where the block
  /// asks for them, ".router_input" (the same), ".token_ids" (n_tokens), ".router_state" (n_tokens × state size).
  std::optional<Tensors> recorded = {};
  std::function<void(std::size_t done, std::size_t of, const std::string& block)> progress = {};  // before each
};

namespace detail {

/// What one block of one model makes of tokens.
struct BlockAnswer {
  Matrix<float> y;
  Routing<float> routing;
};

/// Tokens and what routers may be told of them.
struct BlockInput {
  Matrix<float> x, router_input, state;
  std::vector<Index> ids;

  SideInputs<float> side() const {
    return {.token_ids = ids,
            .sequence_length = x.cols(),
            .router_input = {router_input.data(), std::size_t(router_input.size())},
            .previous_state = {state.data(), std::size_t(state.size())}};
  }
};

inline BlockAnswer answer_of(const LoadedLayer<float>& loaded, const BlockInput& input, ExecutorRef executor) {
  Workspace<float> ws;
  ws.side = input.side();
  BlockAnswer answer{loaded.layer.forward(input.x, ws, executor), {}};
  answer.routing = std::move(ws.routing);
  return answer;
}

/// Each token divided by the root of the mean of its squares, as a norm without weights does.
inline Matrix<float> normed(const Matrix<float>& x) {
  Matrix<float> unit = x;
  for (Index t = 0; t < x.cols(); ++t) {
    const float norm = x.col(t).stableNorm();
    if (norm > 0) unit.col(t) *= std::sqrt(float(x.rows())) / norm;
  }
  return unit;
}

/// Experts, and what else is chosen: those that compute nothing, a sink, to skip the layer.
inline Index num_choices(const Routing<float>& a, const Routing<float>& b) {
  Index most = -1;
  for (const Routing<float>* const routing : {&a, &b}) {
    for (const Index expert : routing->expert) most = std::max(most, expert);
  }
  return most + 1;
}

/// What was recorded of a block; nothing if nothing was.
inline std::optional<BlockInput> recorded_input(const Tensors& recorded, const std::string& block) {
  const std::string stem = block.empty() ? "" : block + ".";
  if (!recorded.contains(stem + "input")) return std::nullopt;
  BlockInput input;
  input.x = recorded.read<float>(stem + "input").transpose();
  if (recorded.contains(stem + "router_input")) {
    input.router_input = recorded.read<float>(stem + "router_input").transpose();
  }
  if (recorded.contains(stem + "router_state")) {
    input.state = recorded.read<float>(stem + "router_state").transpose();
  }
  if (recorded.contains(stem + "token_ids")) {
    const Tensor ids = recorded.at(stem + "token_ids");
    if (ids.dtype != "I64") fail(to_string(ids), " has dtype ", ids.dtype, ", expected I64");
    const auto numbers = as<std::int64_t>(ids);
    input.ids.assign(numbers.begin(), numbers.end());
  }
  return input;
}

}  // namespace detail

/// @throws Error naming the tensor, if recordings are of none of the blocks, or do not fit the one that they are of.
inline void check_recorded(const Model& model, const Tensors& recorded) {
  const std::vector<std::string>& blocks = model.moe_blocks();
  constexpr std::string_view end = ".input";
  bool any = false;
  for (const std::string& name : recorded.names()) {
    const bool is_input = name == end.substr(1) || name.ends_with(end);
    const std::string block = is_input ? name.substr(0, name.size() - std::min(name.size(), end.size())) : "";
    if (!is_input || std::ranges::count(blocks, block) == 0) continue;
    any = true;
    const Tensor& tensor = *recorded.find(name);
    const Index d_model = model.shape(block).d_model;
    if (tensor.shape.size() == 2 && tensor.shape[1] == d_model) continue;
    fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", expected [tokens, ", d_model, "] of \"", block,
         "\" of ", model.place());
  }
  if (!any) {
    fail("of what was recorded (", recorded.names().size(), " tensors) none is called as what a block of ",
         model.place(), " reads: \"", blocks.empty() ? "" : blocks.front(), ".input\"");
  }
}

/// Of each MoE block: how far its answers are, and how many choices of its router change.
///
/// Answers are those of the block alone, on tokens that were recorded, or else on what the walk brings there. The walk:
/// random tokens x of variance 1 go through the blocks of the first model as through one without attention,
/// x ← x + block(x / rms(x)); the same tokens go through the second. Choices are compared where both walks come to a
/// block. (Routers are float in both: a block's choices change with the answers before it alone, so those of the first
/// never do.)
/// A block of the first model that cannot be loaded, or run by what is said here, is passed over, and said.
/// @throws Error naming both models, if they have not as many blocks, or a block another width; if recordings do not
///         fit; if a block of the second model cannot be loaded or run, and that of the first can.
inline std::vector<BlockChange> compare_models(const Model& before, const Model& after,
                                               const CompareOptions& options = {}, ExecutorRef executor = Serial{}) {
  const std::vector<std::string>& others = after.moe_blocks();
  std::vector<std::string> names = before.moe_blocks();
  if (detail::is_gguf(after.folder())) {  // which is one model, even of a folder that holds two
    std::erase_if(names, [&](const std::string& block) { return &before.config(block) != &before.config(); });
  }
  if (names.size() != others.size()) {
    fail(after.place(), ": has ", others.size(), " MoE blocks, and ", before.place(), " has ", names.size());
  }
  if (options.recorded) check_recorded(before, *options.recorded);
  std::vector<BlockChange> changes;
  detail::BlockInput walk, other_walk;  // what has become of the tokens in either model
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (options.progress) options.progress(i, names.size(), names[i]);
    BlockChange change{.block = names[i], .other = others[i], .tokens = options.num_tokens};
    std::optional<LoadedLayer<float>> loads;
    try {
      loads = load_layer(before, names[i]);
    } catch (const Error& error) {
      change.tokens = 0;
      change.why_not = error.what();
      changes.push_back(std::move(change));
      continue;
    }
    const LoadedLayer<float>&first = *loads, second = load_layer(after, others[i]);
    const Index d_model = first.layer.d_model();
    if (second.layer.d_model() != d_model) {
      fail(after.place(), ": \"", others[i], "\" has tokens of ", second.layer.d_model(), " numbers, and \"", names[i],
           "\" of ", before.place(), " of ", d_model);
    }
    if (walk.x.rows() != d_model) {  // the first block, or that of another tower
      walk = {};
      walk.x = random_tokens<float>(d_model, options.num_tokens, options.seed);
      const Index vocabulary = before.config(names[i]).integer("vocab_size", 1);
      for (Index t = 0; t < options.num_tokens; ++t) {
        const float at = random_number(options.seed + 1, std::uint64_t(t));  // in [-1, 1)
        walk.ids.push_back(std::clamp(Index((at + 1) / 2 * float(vocabulary)), Index(0), vocabulary - 1));
      }
      other_walk = walk;
    }
    const auto step = [&](const LoadedLayer<float>& loaded, detail::BlockInput& its) {
      detail::BlockInput input{detail::normed(its.x), {}, std::move(its.state), its.ids};
      detail::BlockAnswer answer = detail::answer_of(loaded, input, executor);
      its.x += answer.y;
      its.state = Eigen::Map<const Matrix<float>>(answer.routing.state.data(),
                                                  std::ssize(answer.routing.state) / std::max<Index>(its.x.cols(), 1),
                                                  answer.routing.state.empty() ? 0 : its.x.cols());
      return std::pair(std::move(input), std::move(answer));
    };
    const bool is_same_state = walk.x == other_walk.x && walk.state == other_walk.state;
    const auto recorded = options.recorded ? detail::recorded_input(*options.recorded, names[i]) : std::nullopt;
    detail::BlockInput input;
    detail::BlockAnswer answer, given;
    try {
      std::tie(input, answer) = step(first, walk);
      if (recorded) given = detail::answer_of(first, *recorded, executor);
    } catch (const std::invalid_argument& error) {
      change.tokens = 0;
      change.why_not = error.what();
      changes.push_back(std::move(change));
      continue;
    }
    const auto [other_input, other_answer] = step(second, other_walk);
    change.choices = changed_choices(answer.routing, other_answer.routing, options.num_tokens,
                                     detail::num_choices(answer.routing, other_answer.routing));
    if (recorded) {
      change.tokens = recorded->x.cols();
      change.recorded = true;
      change.answers = change_of<float>(given.y, detail::answer_of(second, *recorded, executor).y);
    } else {
      change.answers =
          change_of<float>(answer.y, is_same_state ? other_answer.y : detail::answer_of(second, input, executor).y);
    }
    changes.push_back(std::move(change));
  }
  return changes;
}

}  // namespace moe::inline MOE_TARGET::io
