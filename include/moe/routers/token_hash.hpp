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
#include "moe/routers/detail/logits.hpp"
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

/// Experts = table[token id], weighted by the scores of logits W·x + bias, which do not choose: DeepSeek-V4's first
/// layers. Without W each counts for 1 / top_k: Roller et al. 2021, "Hash Layers", arXiv:2106.04426.
/// Reads SideInputs::token_ids.
template <class Scalar_>
class TokenHash {
 public:
  using Scalar = Scalar_;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// Weights as TopKChoice gives them.
  /// @param weight   (num_experts × d_model): row e scores expert e
  /// @param options  what concerns groups is not read
  /// @param bias     (num_experts) added to the logits, or empty
  /// @throws std::invalid_argument unless the sizes fit, and each id has different experts that are there.
  TokenHash(Weight<Scalar> weight, const TopKOptions& options, HashTable table, Vector bias = {})
      : TokenHash(weight.cols(), weight.rows(), options, std::move(table)) {
    weight_ = std::move(weight);
    bias_ = std::move(bias);
    if (bias_.size() > 0) require_equal(bias_.size(), num_experts(), "TokenHash: bias.size()");
  }

  /// All weights 1 / top_k.
  /// @throws std::invalid_argument unless each id has different experts that are there.
  TokenHash(Index d_model, Index num_experts, HashTable table)
      : TokenHash(d_model, num_experts, TopKOptions{.top_k = table.rows()}, std::move(table)) {}

  Index d_model() const { return d_model_; }
  Index num_experts() const { return choice_.num_experts(); }
  Index top_k() const { return choice_.top_k(); }
  const TopKOptions& options() const { return choice_.options(); }
  const TopKChoice<Scalar>& choice() const { return choice_; }
  const HashTable& table() const { return table_; }
  const Weight<Scalar>& weight() const { return weight_; }
  const Vector& bias() const { return bias_; }

  /// To write.
  Eigen::Map<Weight<Scalar>> weight() { return {weight_.data(), weight_.rows(), weight_.cols()}; }
  Eigen::Map<Vector> bias() { return {bias_.data(), bias_.size()}; }

  /// @throws std::invalid_argument unless there is an id for each token, and the table has it.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    require_ids(tokens);
    const auto expert_of = [&](Index t) { return table_.col(tokens.side.token_ids[std::size_t(t)]).data(); };
    if (weight_.size() > 0) {
      choice_.weigh(linear_logits(weight_, bias_, tokens.x, routing, workers), routing, workers, expert_of);
    } else {
      route_equally(tokens.count(), top_k(), routing, workers,
                    [&](Index t, Index* expert) { std::copy_n(expert_of(t), top_k(), expert); });
    }
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("weight", weight_);
    visit("bias", bias_);
  }

 private:
  TokenHash(Index d_model, Index num_experts, const TopKOptions& options, HashTable&& table)
      : d_model_(d_model), table_(std::move(table)), choice_(num_experts, options, {}, "TokenHash") {
    require_equal(table_.rows(), top_k(), "TokenHash: table.rows()");
    for (Index id = 0; id < table_.cols(); ++id) require_experts(id);
  }

  void require_experts(Index id) const {
    for (Index k = 0; k < top_k(); ++k) {
      const Index e = table_(k, id);
      const bool there = e >= 0 && e < num_experts();
      if (there && std::count(&table_(0, id), &table_(k, id), e) == 0) continue;
      const std::string what = "TokenHash: table sends id " + std::to_string(id) + " to expert " + std::to_string(e);
      throw std::invalid_argument(what + (there ? " twice" : ", expected 0 to " + std::to_string(num_experts() - 1)));
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

  Index d_model_;
  HashTable table_;
  Weight<Scalar> weight_;
  Vector bias_;
  TopKChoice<Scalar> choice_;
};

}  // namespace moe::inline MOE_TARGET
