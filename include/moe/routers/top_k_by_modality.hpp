/// @file  A router of each modality, in front of experts of its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The modality of a token; 0 where nothing is said.
template <class Scalar>
Index modality_of(Index token, const SideInputs<Scalar>& side) {
  return side.modality.empty() ? 0 : Index(side.modality[std::size_t(token)]);
}

namespace detail {

/// @throws std::invalid_argument unless none is said, or one of `count` of each token.
template <class Scalar>
void require_modalities(const SideInputs<Scalar>& side, Index num_tokens, Index count) {
  if (side.modality.empty()) return;
  if (std::ssize(side.modality) != num_tokens) {
    require_equal(std::ssize(side.modality), num_tokens, "TopKByModality: side.modality.size()");
  }
  for (Index t = 0; t < num_tokens; ++t) {
    if (modality_of(t, side) < count) continue;
    throw std::invalid_argument("TopKByModality: token " + std::to_string(t) + " is of modality " +
                                std::to_string(modality_of(t, side)) + ", expected 0 to " + std::to_string(count - 1));
  }
}

/// The tokens of a modality, in memory of the workers.
template <class Scalar>
std::span<const Index> tokens_of(Index modality, const SideInputs<Scalar>& side, Index num_tokens, Scratch& scratch) {
  auto* const token = scratch.array<Index>(num_tokens);
  std::size_t count = 0;
  for (Index t = 0; t < num_tokens; ++t) {
    if (modality_of(t, side) == modality) token[count++] = t;
  }
  return {token, count};
}

/// Rows [first_row, first_row + rows) of some columns side by side, in memory of the workers.
template <class Scalar, class M>
Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> gather_columns(const M& all, std::span<const Index> columns,
                                                            Index first_row, Index rows, Workers& workers) {
  auto some = workers.shared().template matrix<Scalar>(rows, std::ssize(columns));
  workers.for_each_band(some.cols(), 64, [&](Index first, Index last, Scratch&) {
    for (Index i = first; i < last; ++i) some.col(i) = all.col(columns[std::size_t(i)]).segment(first_row, rows);
  });
  return some;
}

}  // namespace detail

/// The logits of a token are those of the part of its modality, in the rows of that part's experts, which are numbered
/// through: those of modality 0, then those of modality 1, …; all other experts have −∞. So a softmax of all of them,
/// such as of a loss, is one of the token's own.
///
/// Reads SideInputs::modality. Of the rest a part is told the seed alone.
template <class Part>
class LogitsByModality {
  static_assert(ComputesLogits<Part>, "moe: this part has no d_model(), num_experts() or compute(): ComputesLogits");

 public:
  using Scalar = typename Part::Scalar;

  /// @throws std::invalid_argument if there is none, or if they differ in d_model.
  explicit LogitsByModality(std::vector<Part> parts) : parts_(std::move(parts)) {
    require(!parts_.empty(), "TopKByModality: needs at least one modality");
    for (std::size_t m = 0; m < parts_.size(); ++m) {
      require_equal(parts_[m].d_model(), d_model(), "TopKByModality: d_model of modality " + std::to_string(m));
    }
  }

  Index d_model() const { return parts_[0].d_model(); }
  Index num_experts() const { return first_expert(num_modalities()); }
  /// The values that SideInputs::modality may have: 0 … num_modalities() − 1.
  Index num_modalities() const { return std::ssize(parts_); }
  const Part& operator[](Index modality) const { return parts_[std::size_t(modality)]; }  ///< The part of one modality.
  Part& operator[](Index modality) { return parts_[std::size_t(modality)]; }              ///< The same, to write.

  /// How many experts those before this modality have.
  Index first_expert(Index modality) const {
    return std::accumulate(parts_.begin(), parts_.begin() + modality, Index(0),
                           [](Index sum, const Part& part) { return sum + Index(part.num_experts()); });
  }

  /// @throws std::invalid_argument if the modality of a token is none of them, or some have none.
  void compute(const Tokens<Scalar>& tokens, MatrixRef<Scalar> logits, Workers& workers) const {
    detail::require_modalities(tokens.side, tokens.count(), num_modalities());
    logits.setConstant(-std::numeric_limits<Scalar>::infinity());
    for (Index m = 0; m < num_modalities(); ++m) {
      const auto its = detail::tokens_of(m, tokens.side, tokens.count(), workers.shared());
      if (its.empty()) continue;
      const Index first = first_expert(m), count = parts_[std::size_t(m)].num_experts();
      const auto x = detail::gather_columns<Scalar>(tokens.x, its, 0, d_model(), workers);
      auto some = workers.shared().template matrix<Scalar>(count, x.cols());
      (*this)[m].compute(Tokens<Scalar>(x, side_of(tokens)), some, workers);
      for (Index i = 0; i < some.cols(); ++i) logits.col(its[std::size_t(i)]).segment(first, count) = some.col(i);
    }
  }

  /// What the part of a modality is told.
  static SideInputs<Scalar> side_of(const Tokens<Scalar>& tokens) { return {.seed = tokens.side.seed}; }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (Index m = 0; m < num_modalities(); ++m) visit.in(std::to_string(m), (*this)[m]);
  }

 private:
  std::vector<Part> parts_;
};

/// Of each token, what the TopKChoice of its modality chooses of that one's experts, numbered through as in
/// LogitsByModality. Reads SideInputs::modality.
template <class Scalar_>
class ChoiceByModality {
 public:
  using Scalar = Scalar_;

  /// @throws std::invalid_argument if there is none, or if they differ in the number of routes of a token or in
  /// weight_on.
  explicit ChoiceByModality(std::vector<TopKChoice<Scalar>> choices) : choices_(std::move(choices)) {
    require(!choices_.empty(), "TopKByModality: needs at least one modality");
    for (std::size_t m = 0; m < choices_.size(); ++m) {
      const std::string of = " of modality " + std::to_string(m);
      require_equal(choices_[m].top_k(), top_k(), "TopKByModality: top_k" + of);
      require(choices_[m].options().weight_on == choices_[0].options().weight_on,
              "TopKByModality: weight_on" + of + " is another one than that of modality 0");
    }
  }

  /// The values that SideInputs::modality may have: 0 … num_modalities() − 1.
  Index num_modalities() const { return std::ssize(choices_); }
  Index top_k() const { return choices_[0].top_k(); }  // routes of a token
  /// The choice of one modality.
  const TopKChoice<Scalar>& operator[](Index modality) const { return choices_[std::size_t(modality)]; }
  TopKChoice<Scalar>& operator[](Index modality) { return choices_[std::size_t(modality)]; }  ///< The same, to write.

  /// @throws std::invalid_argument unless they are as many as all of them have experts.
  Index experts_for(Index num_logits) const {
    const Index num_experts =
        std::accumulate(choices_.begin(), choices_.end(), Index(0),
                        [](Index sum, const TopKChoice<Scalar>& choice) { return sum + choice.num_experts(); });
    require_equal(num_logits, num_experts, "LogitsRouter: logits.num_experts(), against that of the choice,");
    return num_experts;
  }

  /// @throws std::invalid_argument if the modality of a token is none of them, or some have none.
  void route(const Tokens<Scalar>& logits, Routing<Scalar>& routing, Workers& workers) const {
    detail::require_modalities(logits.side, logits.count(), num_modalities());
    routing.resize(top_k() * logits.count());
    routing.weight_on = choices_[0].options().weight_on;
    const auto modality = [&](Index t) { return modality_of(t, logits.side); };
    for_each_token(
        logits.count(), modality, workers, [&](const TopKChoice<Scalar>& its, Index first_expert, Scratch& scratch) {
          return [&, first_expert, choice = typename TopKChoice<Scalar>::Choice(its, scratch)](Index t) mutable {
            const auto own = logits.x.col(t).segment(first_expert, its.num_experts());
            auto* const expert = &routing.expert[std::size_t(t * top_k())];
            choice.read(own);
            choice.choose(own, expert);
            choice.weigh(expert, &routing.weight[std::size_t(t * top_k())]);
            for (Index k = 0; k < top_k(); ++k) expert[k] += first_expert;
            std::fill_n(&routing.token[std::size_t(t * top_k())], top_k(), t);
          };
        });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (Index m = 0; m < num_modalities(); ++m) visit.in(std::to_string(m), (*this)[m]);
  }

  /// The modality that has this expert.
  Index modality_of_expert(Index expert) const {
    Index modality = 0;
    for (; expert >= (*this)[modality].num_experts(); ++modality) expert -= (*this)[modality].num_experts();
    return modality;
  }

  /// Runs make(choice, first expert, scratch)(t) for each token t and the choice of its modality(t).
  template <class Modality, class Make>
  void for_each_token(Index num_tokens, const Modality& modality, Workers& workers, const Make& make) const {
    workers.for_each_band(num_tokens, 16, [&](Index first, Index last, Scratch& scratch) {
      Index first_expert = 0;
      for (Index m = 0; m < num_modalities(); ++m) {
        auto run = make((*this)[m], first_expert, scratch);
        for (Index t = first; t < last; ++t) {
          if (modality(t) == m) run(t);
        }
        first_expert += (*this)[m].num_experts();
      }
    });
  }

 private:
  std::vector<TopKChoice<Scalar>> choices_;
};

/// LogitsByModality of linear layers, then ChoiceByModality: a LinearTopK for each modality, whose experts stand side
/// by side in JoinedExperts, of any widths. ERNIE 4.5 VL, with text and vision: Baidu 2025, ERNIE 4.5 technical report.
template <class Scalar>
class TopKByModality : public LogitsRouter<LogitsByModality<LinearLogits<Scalar>>, ChoiceByModality<Scalar>> {
 public:
  /// @param routers  that of modality 0 first
  /// @throws std::invalid_argument if there is none, or if they differ in d_model, in the number of routes of a token
  /// or in weight_on.
  explicit TopKByModality(const std::vector<LinearTopK<Scalar>>& routers)
      : TopKByModality::LogitsRouter(LogitsByModality(all_of(routers, [](const auto& r) { return r.logits(); })),
                                     ChoiceByModality(all_of(routers, [](const auto& r) { return r.choice(); }))) {}

 private:
  template <class Get>
  static auto all_of(const std::vector<LinearTopK<Scalar>>& routers, const Get& get) {
    std::vector<decltype(get(routers[0]))> parts;
    for (const auto& router : routers) parts.push_back(get(router));
    return parts;
  }
};

}  // namespace moe::inline MOE_TARGET
