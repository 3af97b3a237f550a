/// @file  A recorded routing to a safetensors file, and back.
#pragma once

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// The routes of so many tokens: what a layer leaves in its workspace, and Replay takes, as SideInputs::recorded and
/// recorded_tokens.
template <class Scalar>
struct RecordedRouting {
  Routing<Scalar> routing;
  Index num_tokens = 0;
};

/// Writes a file, whole or not at all, with a tensor [routes] for each part: token and expert (I64), weight, and
/// dropped (U8) if some are; metadata num_tokens and weight_on (input or output). Logits are left out.
/// @throws Error if the file cannot be written.
template <class Scalar>
void save_routing(const std::filesystem::path& path, const Routing<Scalar>& routing, Index num_tokens) {
  const std::vector<std::int64_t> token(routing.token.begin(), routing.token.end());
  const std::vector<std::int64_t> expert(routing.expert.begin(), routing.expert.end());
  const std::vector<Index> shape{routing.size()};
  std::vector<Tensor> tensors{make_tensor("token", shape, std::span(token)),
                              make_tensor("expert", shape, std::span(expert)),
                              make_tensor("weight", shape, std::span(routing.weight))};
  if (!routing.dropped.empty()) tensors.push_back(make_tensor("dropped", shape, std::span(routing.dropped)));
  write_safetensors(path, tensors,
                    {{"num_tokens", std::to_string(num_tokens)},
                     {"weight_on", routing.weight_on == WeightOn::input ? "input" : "output"}});
}

/// @throws Error naming the file if it is not one of save_routing(): if a part is missing, of another type or length
/// than `expert`, or if a route is of a token that it does not have.
template <class Scalar>
RecordedRouting<Scalar> load_routing(const std::filesystem::path& path) {
  const Tensors tensors = Tensors::open(path);
  const auto shape = tensors.at("expert").shape;
  const auto read = [&]<class T>(const char* name, std::vector<T>& to) {
    using Stored = std::conditional_t<std::is_same_v<T, Index>, std::int64_t, T>;
    const Tensor tensor = tensors.at(name);
    const auto numbers = as<Stored>(tensor, shape);
    to.assign(numbers.begin(), numbers.end());
  };
  RecordedRouting<Scalar> recorded;
  Routing<Scalar>& routing = recorded.routing;
  read("token", routing.token);
  read("expert", routing.expert);
  read("weight", routing.weight);
  if (tensors.contains("dropped")) read("dropped", routing.dropped);

  const auto of = [&](const char* key) {
    const auto found = tensors.metadata().find(key);
    if (found == tensors.metadata().end()) fail(utf8(path), ": no metadata \"", key, "\"");
    return found->second;
  };
  const std::string count = of("num_tokens"), weight_on = of("weight_on");
  const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), recorded.num_tokens);
  if (error != std::errc() || end != count.data() + count.size() || recorded.num_tokens < 0) {
    fail(utf8(path), ": num_tokens is \"", count, "\", expected a number");
  }
  if (weight_on != "input" && weight_on != "output") {
    fail(utf8(path), ": weight_on is \"", weight_on, "\", expected input or output");
  }
  routing.weight_on = weight_on == "input" ? WeightOn::input : WeightOn::output;
  for (const Index t : routing.token) {
    if (t < 0 || t >= recorded.num_tokens) {
      fail(utf8(path), ": a route is of token ", t, ", expected 0 to ", recorded.num_tokens - 1);
    }
  }
  return recorded;
}

}  // namespace moe::inline MOE_TARGET::io
