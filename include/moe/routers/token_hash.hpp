/// @file  The router that looks a token's experts up by its number in the vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/equal_weights.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// (top_k × vocabulary): column i holds the experts of tokens whose id is i. The memory is that of a row-major
/// [vocabulary, top_k] tensor.
using HashTable = Matrix<Index>;

/// For each id, top_k different experts at random.
/// @throws std::invalid_argument unless 1 ≤ top_k ≤ num_experts.
inline HashTable random_hash_table(Index vocabulary, Index num_experts, Index top_k, std::uint64_t seed) {
  require_between(1, top_k, num_experts, "random_hash_table: top_k");
  HashTable table(top_k, vocabulary);
  for (Index id = 0; id < vocabulary; ++id) {
    random_set(num_experts, top_k, seed, static_cast<std::uint64_t>(id * top_k), table.col(id).data());
  }
  return table;
}

/// Experts = table[token id], weighted by the scores of the logits, which do not choose: DeepSeek-V4's first layers.
/// Without logits each counts for 1 / top_k: Roller et al. 2021, "Hash Layers", arXiv:2106.04426.
/// Reads SideInputs::token_ids.
template <class Scalar_>
class HashTableChoice {
 public:
  using Scalar = Scalar_;

  /// Weights as TopKChoice gives them.
  /// @param options  what concerns groups and biases is not read; always_chosen is 0: the table names them all
  /// @throws std::invalid_argument unless the sizes fit, and each id has different experts that are there.
  HashTableChoice(Index num_experts, const TopKOptions& options, HashTable table)
      : table_(std::move(table)), weigher_(num_experts, options, {}, "TokenHash") {
    require_equal(options.always_chosen, 0, "TokenHash: always_chosen");
    require_equal(table_.rows(), top_k(), "TokenHash: table.rows()");
    for (Index id = 0; id < table_.cols(); ++id) require_experts(id);
  }

  Index top_k() const { return weigher_.top_k(); }
  const TopKOptions& options() const { return weigher_.options(); }  ///< Of the weights; which experts, the table says.
  const HashTable& table() const { return table_; }
  const TopKChoice<Scalar>& weigher() const { return weigher_; }

  /// @throws std::invalid_argument unless there are none, or as many as experts.
  Index experts_for(Index num_logits) const {
    return num_logits == 0 ? weigher_.num_experts() : weigher_.experts_for(num_logits);
  }

  /// @throws std::invalid_argument unless there is an id for each token, and the table has it.
  void route(const Tokens<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    require_ids(logits);
    const auto expert_of = [&](Index t) { return &table_(0, logits.side.token_ids[std::size_t(t)]); };
    if (logits.x.rows() > 0) return weigher_.weigh(logits, routing, workers, expert_of);
    route_equally(logits.count(), top_k(), routing, workers,
                  [&](Index t, Index* expert) { std::copy_n(expert_of(t), top_k(), expert); });
  }

 private:
  void require_experts(Index id) const {
    for (Index k = 0; k < top_k(); ++k) {
      const Index e = table_(k, id);
      const bool there = e >= 0 && e < weigher_.num_experts();
      if (there && std::count(&table_(0, id), &table_(k, id), e) == 0) continue;
      const std::string what = "TokenHash: table sends id " + std::to_string(id) + " to expert " + std::to_string(e);
      throw std::invalid_argument(what +
                                  (there ? " twice" : ", expected 0 to " + std::to_string(weigher_.num_experts() - 1)));
    }
  }

  void require_ids(const Tokens<Scalar>& tokens) const {
    const auto ids = tokens.side.token_ids;
    require_equal(std::ssize(ids), tokens.count(), "TokenHash: side.token_ids.size()");
    for (std::size_t t = 0; t < ids.size(); ++t) {
      if (ids[t] >= 0 && ids[t] < table_.cols()) continue;
      throw std::invalid_argument("TokenHash: token " + std::to_string(t) + " has id " + std::to_string(ids[t]) +
                                  ", expected 0 to " + std::to_string(table_.cols() - 1));
    }
  }

  HashTable table_;
  TopKChoice<Scalar> weigher_;
};

/// logits = W·x + bias, or none; then HashTableChoice.
template <class Scalar>
class TokenHash : public LogitsRouter<LinearLogits<Scalar>, HashTableChoice<Scalar>> {
 public:
  /// Weights as TopKChoice gives them.
  /// @param weight   (num_experts × d_model): row e scores expert e
  /// @param options  what concerns groups and biases is not read; always_chosen is 0: the table names them all
  /// @param bias     (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless the sizes fit, and each id has different experts that are there.
  TokenHash(Weight<Scalar> weight, const TopKOptions& options, HashTable table, Vector<Scalar> bias = {})
      : TokenHash::LogitsRouter(LinearLogits<Scalar>(std::move(weight), std::move(bias), "TokenHash"), std::in_place,
                                options, std::move(table)) {}

  /// All weights 1 / top_k.
  /// @throws std::invalid_argument unless each id has different experts that are there.
  TokenHash(Index d_model, Index num_experts, HashTable table)
      : TokenHash::LogitsRouter(LinearLogits<Scalar>::none(d_model), of_equal_weights(num_experts, std::move(table))) {}

 private:
  static HashTableChoice<Scalar> of_equal_weights(Index num_experts, HashTable&& table) {
    const TopKOptions options{.top_k = table.rows()};
    return {num_experts, options, std::move(table)};
  }
};

}  // namespace moe::inline MOE_TARGET
