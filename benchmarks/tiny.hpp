/// @file  One token through layers so small that what stands around the products counts, against loops by hand.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "eigen_fixed.hpp"
#include "eigen_user.hpp"
#include "moe/core/check.hpp"
#include "moe/moe.hpp"
#include "timing.hpp"
#include "weight_pool.hpp"

namespace moe::bench {

/// One layer, hot in the caches, several times: by MoeLayer, by Eigen with sizes that the compiler does not know, and
/// with sizes that it does.
template <class W, int d_model, int d_ff, int num_experts, int top_k>
class Tiny {
 public:
  Tiny()
      : layer_(router(), GatedFfnBank<W>(stack(d_ff, d_model, 1), stack(d_ff, d_model, 2), stack(d_model, d_ff, 3))) {
    const auto& bank = std::as_const(layer_).experts();
    const auto map = [](const WeightMap<W>& w) { return eigen_user::Weights<W>(w.data(), w.rows(), w.cols()); };
    by_hand_ = {.router = std::as_const(layer_).router().weight(), .top_k = top_k, .experts = {}, .shared = {}};
    for (Index e = 0; e < num_experts; ++e) {
      by_hand_.experts.push_back({map(bank.w_gate()[e]), map(bank.w_up()[e]), map(bank.w_down()[e])});
    }
    copy_to(rows_);
    copy_to(columns_);
    copy_to(columns_in_place_);
  }

  /// What is timed: the i-th token of `x` by each.
  std::map<std::string, std::function<void(Index)>> contenders() {
    const auto fixed = [this](const auto& layer, Matrix<float>& y) {
      return [this, &layer, &y](Index i) {
        using Token = Eigen::Matrix<float, d_model, 1>;
        layer.forward(Eigen::Map<const Token>(x_.col(i).data()), Eigen::Map<Token>(y.col(i).data()));
      };
    };
    return {{"moe", [this](Index i) { layer_.forward(x_.middleCols(i, 1), y_[0].middleCols(i, 1), ws_); }},
            {"eigen_per_token",
             [this](Index i) {
               const auto x = x_.middleCols(i, 1);
               eigen_user::forward_per_token(by_hand_, x, eigen_user::route(by_hand_, x), y_[1].middleCols(i, 1), 1);
             }},
            {"fixed_rows", fixed(rows_, y_[2])},
            {"fixed_columns", fixed(columns_, y_[3])},
            {"fixed_columns_in_place", fixed(columns_in_place_, y_[4])}};
  }

  static constexpr Index tokens = 64;  // in turn

  /// @throws std::invalid_argument unless all that have the same formula gave the same answers.
  void check() const {
    for (std::size_t c = 2; c < y_.size(); ++c) {
      require((y_[c] - y_[0]).norm() <= 1e-5F * y_[0].norm(), "tiny: contenders give different answers");
    }
  }

 private:
  static LinearTopK<float> router() { return {random_weight(num_experts, d_model, 0), {.top_k = top_k}}; }

  static WeightStack<W> stack(Index rows, Index cols, std::uint32_t seed) {
    WeightStack<W> weights(num_experts, rows, cols);
    for (Index e = 0; e < num_experts; ++e) {
      weights.owned(e) = random_weight(rows, cols, seed + 1000003U * std::uint32_t(e)).template cast<W>();
    }
    return weights;
  }

  template <class Layer>
  void copy_to(Layer& to) {
    const auto& layer = std::as_const(layer_);
    to.router = layer.router().weight();
    to.experts.resize(num_experts);
    for (Index e = 0; e < num_experts; ++e) {
      to.experts[std::size_t(e)].gate = layer.experts().w_gate()[e];
      to.experts[std::size_t(e)].up = layer.experts().w_up()[e];
      to.experts[std::size_t(e)].down = layer.experts().w_down()[e];
    }
  }

  template <eigen_fixed::Product product>
  using Fixed = eigen_fixed::Layer<W, d_model, d_ff, num_experts, top_k, product>;

  MoeLayer<LinearTopK<float>, GatedFfnBank<W>> layer_;
  eigen_user::Layer<W> by_hand_;
  Fixed<eigen_fixed::Product::rows> rows_;
  Fixed<eigen_fixed::Product::columns> columns_;
  Fixed<eigen_fixed::Product::columns_in_place> columns_in_place_;
  Matrix<float> x_ = random_tokens(d_model, tokens);
  std::array<Matrix<float>, 5> y_{Matrix<float>(d_model, tokens), Matrix<float>(d_model, tokens),
                                  Matrix<float>(d_model, tokens), Matrix<float>(d_model, tokens),
                                  Matrix<float>(d_model, tokens)};
  Workspace<float> ws_;
};

/// Nanoseconds a token, medians of calls in turn.
using TinyTimes = std::map<std::string, double>;

/// The time of MoeLayer by that of the fastest of the others.
inline double ratio(const TinyTimes& times) {
  double best = std::numeric_limits<double>::infinity();
  for (const auto& [name, time] : times) {
    if (name != "moe") best = std::min(best, time);
  }
  return times.at("moe") / best;
}

}  // namespace moe::bench
