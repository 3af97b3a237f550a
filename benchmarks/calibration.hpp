/// @file  How fast this machine is at what a rank does by itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <numeric>
#include <vector>

#include "cluster_model.hpp"
#include "machine.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/combine.hpp"
#include "moe/models/presets.hpp"
#include "moe/runtime/workers.hpp"
#include "timing.hpp"
#include "weight_pool.hpp"

namespace moe::bench {

namespace detail {

/// The median of what f returns (seconds), called until that adds up to `budget`, and three times at least.
template <class F>
double median_seconds(double budget, const F& f) {
  f();
  std::vector<double> seconds;
  for (double spent = 0; spent < budget || seconds.size() < 3; spent += seconds.back()) seconds.push_back(f());
  return median(seconds);
}

/// Every slot another token: what arrives at a rank.
inline DispatchPlan<float> plan_of(Index experts, Index tokens_an_expert, PlanMemory<float>& memory) {
  const auto slots = std::size_t(experts * tokens_an_expert);
  memory.offset.resize(std::size_t(experts) + 1);
  for (std::size_t e = 0; e < memory.offset.size(); ++e) memory.offset[e] = Index(e) * tokens_an_expert;
  memory.token.resize(slots);
  std::iota(memory.token.begin(), memory.token.end(), Index(0));
  memory.route = memory.token;
  memory.weight.assign(slots, 1);
  memory.weight_on = WeightOn::input;
  return memory.view();
}

}  // namespace detail

/// Numbers of tokens between which time is close to a straight line: kernels work on tiles of tokens, so it jumps after
/// multiples of 8 (later of 32) tokens.
inline std::vector<Index> token_grid(Index most) {
  std::vector<Index> grid{1, 2, 3, 4, 5, 6, 7};
  for (Index tile = 8; tile <= most; tile += tile < 32 ? 8 : tile < 256 ? 32 : tile) {
    grid.push_back(tile);
    grid.push_back(tile + 1);
  }
  return grid;
}

/// As many experts of width d_ff as no cache holds: half a gigabyte, or twice the last cache.
inline Index experts_beyond_cache(Index d_model, Index d_ff, double bytes_a_weight) {
  const double wanted = std::max(512e6, 2 * last_cache_bytes());
  return Index(std::ceil(wanted / (double(count_gated_ffn_params(d_model, d_ff)) * bytes_a_weight)));
}

/// Runs experts on from 1 to `most_tokens` tokens each; from call to call others, of which no cache holds all. Goes
/// through the grid three times, for `budget` seconds and three calls at least at each of its points; of three medians
/// the least counts: what disturbs, disturbs for a while.
/// @param pool  experts of width d_ff, as many as it has room for
template <class W>
ExpertTime measure_experts(const std::shared_ptr<const WeightPool<W>>& pool, Index d_ff, Index most_tokens,
                           ExecutorRef executor, double budget) {
  const Index all = pool->units() / d_ff, d_model = pool->d_model();
  const Index enough = std::min(all, experts_beyond_cache(d_model, d_ff, sizeof(W)));
  std::vector<Scratch> scratch;
  const auto seconds_with = [&](Index tokens) {
    const Index used = std::clamp<Index>(128 / tokens, 1, enough);
    const Matrix<float> x = random_tokens(d_model, used * tokens);
    Matrix<float> y = Matrix<float>::Zero(d_model, used * tokens);
    PlanMemory<float> memory;
    const auto plan = detail::plan_of(used, tokens, memory);
    Index next = 0;
    const double seconds = detail::median_seconds(budget, [&] {
      const auto bank = experts_in(pool, next * d_ff, d_ff, used);
      next = next + 2 * used <= all ? next + used : 0;
      Workers workers(executor, scratch);
      return seconds_of([&] { bank.apply(x, plan, y, workers); });
    });
    return seconds / double(used);
  };

  std::vector<ExpertTime::Point> points;
  for (const Index tokens : token_grid(most_tokens)) {
    points.push_back({double(tokens), seconds_with(tokens)});
    if (tokens >= 256 && points.back().seconds > budget) break;  // from here on time grows as tokens do
  }
  for (int again = 0; again < 2; ++again) {
    for (auto& point : points) point.seconds = std::min(point.seconds, seconds_with(Index(point.tokens)));
  }
  return ExpertTime(std::move(points));
}

/// Bytes read and written a second where columns are copied and added: as many as `routes` of them.
inline double measure_moving(Index d_model, Index routes, ExecutorRef executor, double budget) {
  const Matrix<float> from = random_tokens(d_model, routes);
  Matrix<float> tokens(d_model, routes), answers(d_model, routes);
  PlanMemory<float> memory;
  const auto plan = detail::plan_of(1, routes, memory);
  std::vector<Scratch> scratch;
  const double seconds = detail::median_seconds(budget, [&] {
    return seconds_of([&] {
      Workers workers(executor, scratch);
      workers.for_each_band(routes, 1, [&](Index first, Index last, Scratch&) {
        for (Index i = first; i < last; ++i) {
          tokens.col(i) = from.col(i);
          answers.col(i).setZero();
        }
      });
      combine(tokens, plan, answers, workers);
    });
  });
  return 6 * double(routes * d_model) * sizeof(float) / seconds;
}

}  // namespace moe::bench
