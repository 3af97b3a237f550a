/// @file  Which experts the calls of a model's layers used, one call after the other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/store/policies.hpp"

namespace moe::inline MOE_TARGET::io {

/// Layers are 0, 1, … here, in the order of their numbers in the model, of which some may be dense.
struct Trace {
  /// One call of a layer.
  struct Call {
    Index layer;
    Index begin, end;  // of its routes
  };

  std::vector<Index> layer_numbers;  // in the model, ascending
  std::vector<Call> calls;           // in the order in which they were made
  std::vector<Index> token, expert;  // of each route; call by call

  /// Those that a call used, ascending, each once: of a cleared vector, which it fills.
  void experts_of(const Call& call, std::vector<ExpertId>& experts) const {
    experts.clear();
    for (Index r = call.begin; r < call.end; ++r) experts.push_back({call.layer, expert[std::size_t(r)]});
    std::ranges::sort(experts);
    experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  }

  /// Different ones, of all layers.
  Index num_tokens() const {
    std::vector<Index> all = token;
    std::ranges::sort(all);
    return std::unique(all.begin(), all.end()) - all.begin();
  }
};

/// For files: layers and experts are fewer than these.
inline constexpr Index most_traced_layers = 1024, most_traced_experts = 16384;

/// Records a run: add() after each forward() of each layer, with what is in its workspace.
class TraceRecorder {
 public:
  /// Tokens are numbered through, layer by layer: in each the first is 0. Dropped routes are left out.
  /// @param layer  its number in the model
  /// @throws std::invalid_argument if the layer is none, or a route leads nowhere.
  template <class Scalar>
  void add(Index layer, const Routing<Scalar>& routing, Index num_tokens) {
    require_between(0, layer, most_traced_layers - 1, "TraceRecorder: layer");
    require_routes(routing, num_tokens, most_traced_experts);
    Index& first_token = tokens_[layer];
    const Index begin = std::ssize(trace_.token);
    for (Index r = 0; r < routing.size(); ++r) {
      if (routing.is_dropped(r)) continue;
      trace_.token.push_back(first_token + routing.token[std::size_t(r)]);
      trace_.expert.push_back(routing.expert[std::size_t(r)]);
    }
    trace_.calls.push_back({layer, begin, std::ssize(trace_.token)});
    first_token += num_tokens;
  }

  /// So far.
  Trace trace() const {
    Trace all = trace_;
    for (const auto& [number, tokens] : tokens_) all.layer_numbers.push_back(number);
    for (Trace::Call& call : all.calls) {
      call.layer = std::ranges::lower_bound(all.layer_numbers, call.layer) - all.layer_numbers.begin();
    }
    return all;
  }

 private:
  Trace trace_;                    // whose layers are numbers in the model yet
  std::map<Index, Index> tokens_;  // that a layer has seen
};

/// Writes a file, whole or not at all: lines "call,token,layer,expert", one a route, below a line with these words.
/// @throws Error if the file cannot be written.
inline void save_trace(const std::filesystem::path& path, const Trace& trace) {
  write_file_atomically(path, [&](const auto& append) {
    std::string text = "call,token,layer,expert\n";
    const auto write = [&] {
      append(std::as_bytes(std::span(text)));
      text.clear();
    };
    for (std::size_t c = 0; c < trace.calls.size(); ++c) {
      const Trace::Call& call = trace.calls[c];
      const std::string layer = std::to_string(trace.layer_numbers[std::size_t(call.layer)]);
      for (Index r = call.begin; r < call.end; ++r) {
        text += std::to_string(c) + "," + std::to_string(trace.token[std::size_t(r)]) + "," + layer + "," +
                std::to_string(trace.expert[std::size_t(r)]) + "\n";
      }
      if (text.size() > (std::size_t(1) << 20)) write();
    }
    write();
  });
}

/// The experts that most routes of a trace lead to, best first; of two that are alike, the first by layer and expert.
/// @param number  of experts, if there are so many
inline std::vector<ExpertId> hottest(const Trace& trace, Index number) {
  std::map<ExpertId, Index> routes;
  for (const Trace::Call& call : trace.calls) {
    for (Index r = call.begin; r < call.end; ++r) ++routes[{call.layer, trace.expert[std::size_t(r)]}];
  }
  std::vector<ExpertId> experts;
  for (const auto& [id, count] : routes) experts.push_back(id);
  std::ranges::stable_sort(experts, std::ranges::greater(), [&](const ExpertId& id) { return routes.at(id); });
  experts.resize(std::min(experts.size(), std::size_t(std::max<Index>(number, 0))));
  return experts;
}

}  // namespace moe::inline MOE_TARGET::io
