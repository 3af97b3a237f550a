/// @file  Measures a layer whose experts live on many ranks, beside one process with all of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "compare.hpp"
#include "contenders.hpp"
#include "moe/distributed/expert_parallel.hpp"
#include "moe/layers/any_layer.hpp"
#include "ranks/ranks.hpp"
#include "timing.hpp"

namespace moe::bench {

/// One rank's calls of the layer on all ranks.
struct RankCalls {
  distributed::Traffic traffic;
  double seconds = 0;

  double share_of(double part) const { return part / seconds; }
  double bytes_a_call() const { return double(traffic.bytes) / double(traffic.calls); }
};

struct RowOnRanks {
  std::string kind, title;
  Index tokens = 0;                // of all ranks together
  double seconds = 0;              // median; of each call the slowest rank's
  std::vector<RankCalls> calls{};  // of each rank; none of a row that rank 0 measures alone
  bool measured = true;            // if not, `seconds` is how long a call would have taken

  /// The rank with the most routes, by the mean.
  double load_imbalance() const {
    Index most = 0, all = 0;
    for (const RankCalls& rank : calls) {
      most = std::max(most, rank.traffic.routes);
      all += rank.traffic.routes;
    }
    return double(most) * double(calls.size()) / double(all);
  }
};

/// Which experts there are on a rank, seen as a layer of its own; other parts are on all ranks.
inline MoeShape shape_on_rank(MoeShape shape, const distributed::Placement& placement, int rank) {
  shape.num_experts = static_cast<Index>(placement.experts_of(rank).size());
  return shape;
}

/// Enough layers that no rank's cache holds its part of them, as far as there may be so many communicators.
inline Index layers_on_ranks(MoeShape shape, double bytes_a_weight, int num_ranks) {
  shape.num_experts = std::max(Index(1), shape.num_experts / num_ranks);
  return std::min(Index(64), layers_beyond_cache(shape, bytes_a_weight));
}

/// Collective: as make_sparse, where `own` holds this rank's experts.
template <class W>
std::unique_ptr<Contender> make_sparse_on_ranks(const Arena<W>& own, const MoeShape& shape, Index num_layers,
                                                const distributed::Placement& placement,
                                                const distributed::ExpertParallelOptions& options) {
  std::vector<AnyLayer<float>> layers;
  for (Index l = 0; l < num_layers; ++l) {
    std::optional<GatedFfnBank<W>> experts;
    if (own.shape.num_experts > 0) experts = experts_of(own, l);
    MoeLayer layer(router_of(shape, l),
                   distributed::ExpertParallel(std::move(experts), placement, MPI_COMM_WORLD, options));
    if (shape.d_ff_shared == 0) {
      layers.emplace_back(std::move(layer));
    } else {
      layers.emplace_back(WithSharedExpert(std::move(layer), shared_expert_of(own, l), shared_gate_of(shape)));
    }
  }
  return std::make_unique<Sparse<AnyLayer<float>>>(std::move(layers), shape, sizeof(W), own.threads);
}

class ComparisonOnRanks {
 public:
  /// @param traffic     what `on_ranks` adds its own to
  /// @param max_tokens  of one rank
  ComparisonOnRanks(const Ranks& ranks, std::unique_ptr<Contender> on_ranks, distributed::Traffic& traffic,
                    Index d_model, Index max_tokens, const Patience& patience)
      : ranks_(ranks), traffic_(traffic), patience_(patience), d_model_(d_model), max_tokens_(max_tokens) {
    const int n = ranks.size();
    const std::string title = "sparse, on " + std::to_string(n) + (n == 1 ? " rank" : " ranks");
    entries_.push_back({"moe_on_ranks", title, true, std::move(on_ranks), Supply(d_model, max_tokens, ranks.rank())});
  }

  /// Collective: rank 0 runs it on the tokens of all ranks, while the others sleep.
  /// @param contender  of rank 0
  void add_on_rank_0(const std::string& kind, const std::string& title, std::unique_ptr<Contender> contender) {
    const Index most = contender ? max_tokens_ * ranks_.size() : 0;
    entries_.push_back({kind, title, false, std::move(contender), Supply(d_model_, most, 0)});
  }

  /// Collective.
  /// @param tokens  of one rank
  std::vector<RowOnRanks> rows_for(Index tokens) {
    std::vector<Entry*> measured;
    std::vector<std::function<double()>> things;
    for (int i = 0; i < 2 && may_call(entries_[0], tokens); ++i) call(entries_[0], tokens);  // its memory grows
    traffic_ = {};
    seconds_on_ranks_ = 0;
    for (Entry& entry : entries_) {
      if (!may_call(entry, tokens)) continue;
      measured.push_back(&entry);
      things.emplace_back([this, &entry, tokens] { return call(entry, tokens); });
    }
    const auto seconds = time_in_turn(things, patience_.each_token_count);
    std::vector<RowOnRanks> rows;
    for (std::size_t i = 0; i < measured.size(); ++i) {
      measured[i]->last_tokens = tokens;
      measured[i]->last_seconds = median(seconds[i]);
    }
    for (const Entry& entry : entries_) {
      rows.push_back({entry.kind, entry.title, tokens * ranks_.size(), expected_seconds(entry, tokens)});
      rows.back().measured = std::find(measured.begin(), measured.end(), &entry) != measured.end();
    }
    rows[0].calls = ranks_.of_all(RankCalls{traffic_, seconds_on_ranks_});
    return rows;
  }

 private:
  struct Supply {
    Supply(Index d_model, Index max_tokens, Index number) : x(d_model, max_tokens, number), y(d_model, max_tokens) {}
    Tokens x;
    Matrix<float> y;
  };
  struct Entry {
    std::string kind, title;
    bool on_all;
    std::unique_ptr<Contender> contender;
    Supply supply;
    Index last_tokens = 1;
    double last_seconds = 0;
  };

  static double expected_seconds(const Entry& entry, Index tokens) {
    return entry.last_seconds * double(tokens) / double(entry.last_tokens);
  }

  bool may_call(const Entry& entry, Index tokens) const {
    return expected_seconds(entry, tokens) <= patience_.one_call;
  }

  /// The slowest rank's seconds, so that all ranks decide alike what comes next.
  double call(Entry& entry, Index tokens) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // threads of OpenMP spin so long after their work
    ranks_.meet();
    if (!entry.contender) return ranks_.max(0.0);
    const Index count = entry.on_all ? tokens : tokens * ranks_.size();
    const auto x = entry.supply.x.next(count);
    const double seconds = seconds_of([&] { entry.contender->forward(x, entry.supply.y.leftCols(count)); });
    if (entry.on_all) seconds_on_ranks_ += seconds;
    return ranks_.max(seconds);
  }

  const Ranks& ranks_;
  distributed::Traffic& traffic_;
  Patience patience_;
  Index d_model_, max_tokens_;
  std::vector<Entry> entries_;
  double seconds_on_ranks_ = 0;
};

}  // namespace moe::bench
