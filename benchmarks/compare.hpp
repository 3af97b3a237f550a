/// @file  Measures all contenders in one arena, for one number of tokens after the other.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "contenders.hpp"
#include "row.hpp"
#include "timing.hpp"
#include "work.hpp"

namespace moe::bench {

/// How long measuring may take, in seconds.
struct Patience {
  double each_token_count = 3;
  double one_call = 10;  // a call that would take longer is not made
};

/// A sparse layer, and how far its answers are off, if that is known.
struct Measured {
  Kind kind;
  std::unique_ptr<Contender> contender;
  std::optional<double> error = {};
};

class Comparison {
 public:
  /// @param sparse  the sparse layer, of each kind of products that it is measured with, Kind::moe first; all others
  ///                are made of what is in the arena
  template <class W>
  Comparison(const Arena<W>& arena, std::vector<Measured> sparse, WeightType weights, Index max_tokens,
             const Limits& limits, const Patience& patience)
      : tokens_(arena.shape.d_model, max_tokens),
        y_(arena.shape.d_model, max_tokens),
        weights_(weights),
        limits_(limits),
        patience_(patience) {
    for (Measured& layer : sparse) entries_.push_back({layer.kind, std::move(layer.contender), layer.error});
    entries_.push_back({Kind::dense_active, make_contender(Kind::dense_active, arena)});
    entries_.push_back({Kind::dense_total, make_contender(Kind::dense_total, arena)});
    entries_.push_back({std::nullopt, make_routing_alone(arena)});  // here its weights are as cold as in the layer
    for (const Kind kind : {Kind::eigen_per_token, Kind::eigen_grouped}) {
      if (auto by_hand = make_contender(kind, arena)) entries_.push_back({kind, std::move(by_hand)});
    }
  }

  /// A row for each kind.
  std::vector<Row> rows_for(Index tokens) {
    std::vector<Entry*> measured;
    std::vector<std::function<double()>> things;
    for (Entry& entry : entries_) {
      entry.work = {};
      if (expected_seconds(entry, tokens) > patience_.one_call) continue;
      measured.push_back(&entry);
      things.emplace_back([this, &entry, tokens] { return call(entry, tokens); });
    }
    const auto seconds = time_in_turn(things, patience_.each_token_count);
    for (std::size_t i = 0; i < measured.size(); ++i) measured[i]->last = {tokens, median(seconds[i])};
    return rows(tokens);
  }

 private:
  /// What one call does is nearly what another does; only which experts are used differs.
  struct CallWork {
    Work experts, router;
    Index calls = 0;
  };
  struct Last {
    Index tokens = 1;
    double seconds = 0;
  };
  struct Entry {
    std::optional<Kind> kind;  // none: routing alone
    std::unique_ptr<Contender> contender;
    std::optional<double> error{};
    CallWork work{};
    Last last{};
  };

  static double expected_seconds(const Entry& entry, Index tokens) {
    return entry.last.seconds * double(tokens) / double(entry.last.tokens);
  }

  double call(Entry& entry, Index tokens) {
    const auto x = tokens_.next(tokens);
    const double seconds = seconds_of([&] { entry.contender->forward(x, y_.leftCols(tokens)); });
    entry.work.experts = entry.work.experts + entry.contender->experts_work();
    entry.work.router = entry.work.router + entry.contender->router_work();
    ++entry.work.calls;
    return seconds;
  }

  Row row_of(const Entry& entry, Index tokens) const {
    Row row{.kind = *entry.kind, .tokens = tokens, .error = entry.error};
    row.measured = entry.work.calls > 0;
    row.seconds = row.measured ? entry.last.seconds : expected_seconds(entry, tokens);
    if (!row.measured) return row;
    const double one = 1 / double(entry.work.calls);
    row.experts = one * entry.work.experts;
    const Limits limits = limits_of(row.kind, weights_, limits_);
    row.limit_share = limit_seconds(row.experts + one * entry.work.router, limits) / row.seconds;
    return row;
  }

  std::vector<Row> rows(Index tokens) const {
    std::vector<Row> rows;
    double routing_seconds = 0;
    for (const Entry& entry : entries_) {
      if (entry.kind) {
        rows.push_back(row_of(entry, tokens));
      } else {
        routing_seconds = entry.last.seconds;
      }
    }
    for (Row& row : rows) {
      if (row.kind == Kind::moe && row.measured) row.routing_share = routing_seconds / row.seconds;
    }
    return rows;
  }

  std::vector<Entry> entries_;
  Tokens tokens_;
  Matrix<float> y_;
  WeightType weights_;
  Limits limits_;
  Patience patience_;
};

}  // namespace moe::bench
