/// @file  Who goes where: the only thing a router says and the only thing dispatch needs to hear.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Where a route's weight is multiplied in: weight · expert(x), or expert(weight · x) as Llama 4 does.
enum class WeightOn { output, input };

namespace detail {

/// Bytes that vectors hold.
template <class... Ts>
std::size_t held_bytes(const std::vector<Ts>&... all) {
  return (std::size_t(0) + ... + (all.capacity() * sizeof(Ts)));
}

}  // namespace detail

/// One of the routes of a Routing.
template <class Scalar>
struct Route {
  Index token, expert;
  Scalar weight;
};

/// A list of routes; route r sends token[r] to expert[r] and counts for weight[r]. It can be walked:
///   for (const auto& [token, expert, weight] : routing)
/// Token-choice routers write top_k routes a token, side by side and best first; expert-choice routers as many as an
/// expert takes.
template <class Scalar>
struct Routing {
  std::vector<Index> token;
  std::vector<Index> expert;
  std::vector<Scalar> weight;
  WeightOn weight_on = WeightOn::output;

  /// 1 for a route that a filter took out, such as for lack of capacity; empty if none was. Dispatch passes over it,
  /// and what the router chose can still be seen.
  std::vector<std::uint8_t> dropped;

  /// (num_experts × n_tokens), column by column: what the router computed before it chose. Losses read it; a router
  /// without logits leaves it empty.
  std::vector<Scalar> logits;

  /// (state size × n_tokens), column by column: what a router hands to that of the next layer, if anything:
  /// SideInputs::previous_state.
  std::vector<Scalar> state;

  Index size() const { return static_cast<Index>(token.size()); }  ///< Routes, dropped or not.
  std::size_t bytes() const { return detail::held_bytes(token, expert, weight, dropped, logits, state); }  ///< Held.

  /// The parts of one route.
  Route<Scalar> operator[](Index route) const {
    return {token[std::size_t(route)], expert[std::size_t(route)], weight[std::size_t(route)]};
  }

  /// Walks over all routes, dropped ones too.
  struct Iterator {
    /// As std::input_iterator asks.
    /// @{
    using iterator_category = std::input_iterator_tag;
    using value_type = Route<Scalar>;
    using difference_type = Index;
    using pointer = const value_type*;
    using reference = value_type;
    /// @}

    const Routing* routing = nullptr;
    Index route = 0;

    /// As std::input_iterator asks.
    /// @{
    value_type operator*() const { return (*routing)[route]; }
    Iterator& operator++() { return ++route, *this; }
    Iterator operator++(int) { return {routing, route++}; }
    bool operator==(const Iterator& other) const { return route == other.route; }
    /// @}
  };
  Iterator begin() const { return {this, 0}; }     ///< For `for (const auto& route : routing)`.
  Iterator end() const { return {this, size()}; }  ///< Behind the last.

  /// Forgets all but the memory.
  void clear() {
    token.clear();
    expert.clear();
    weight.clear();
    dropped.clear();
    logits.clear();
    state.clear();
    weight_on = WeightOn::output;
  }

  /// One route more, at the end.
  void add(Index to_token, Index to_expert, Scalar with_weight) {
    token.push_back(to_token);
    expert.push_back(to_expert);
    weight.push_back(with_weight);
  }

  /// Has a filter taken it out?
  bool is_dropped(Index route) const { return !dropped.empty() && dropped[std::size_t(route)] != 0; }
  /// So many has a filter taken out.
  Index num_dropped() const { return std::count(dropped.begin(), dropped.end(), 1); }

  /// Takes a route out, and leaves it in its place.
  void drop(Index route) {
    dropped.resize(token.size());
    dropped[std::size_t(route)] = 1;
  }

  /// Makes room for routes that are then written by index, in any order.
  void resize(Index num_routes) {
    token.resize(std::size_t(num_routes));
    expert.resize(std::size_t(num_routes));
    weight.resize(std::size_t(num_routes));
  }
};

/// @throws std::invalid_argument if a route names a token or an expert that is not there, or lacks one of its parts.
template <class Scalar>
void require_routes(const Routing<Scalar>& routing, Index num_tokens, Index num_experts) {
  require_equal(std::ssize(routing.expert), routing.size(), "Routing: expert.size()");
  require_equal(std::ssize(routing.weight), routing.size(), "Routing: weight.size()");
  if (!routing.dropped.empty()) require_equal(std::ssize(routing.dropped), routing.size(), "Routing: dropped.size()");
  Index route = 0;
  for (const auto& [t, e, weight] : routing) {
    if (e < 0 || e >= num_experts || t < 0 || t >= num_tokens) {
      throw std::invalid_argument("Routing: route " + std::to_string(route) + " sends token " + std::to_string(t) +
                                  " of " + std::to_string(num_tokens) + " to expert " + std::to_string(e) + " of " +
                                  std::to_string(num_experts));
    }
    ++route;
  }
}

}  // namespace moe::inline MOE_TARGET
