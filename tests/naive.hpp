/// @file  The formulas once more, in double, as plainly as they can be written.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include "moe/routers/detail/select_as_torch.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace moe::test::naive {

using MatrixD = Eigen::MatrixXd;
using VectorD = Eigen::VectorXd;

inline double relu(double x) { return x > 0 ? x : 0; }
inline double silu(double x) { return x / (1 + std::exp(-x)); }
inline double gelu(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
inline double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

using Function = double (*)(double);

/// Any matrix, exactly, as double.
template <class M>
MatrixD exact(const M& m) {
  MatrixD d(m.rows(), m.cols());
  for (Eigen::Index r = 0; r < m.rows(); ++r) {
    for (Eigen::Index c = 0; c < m.cols(); ++c) d(r, c) = static_cast<double>(m(r, c));
  }
  return d;
}

inline MatrixD product(const MatrixD& w, const MatrixD& x) {
  MatrixD y(w.rows(), x.cols());
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    for (Eigen::Index c = 0; c < x.cols(); ++c) {
      double sum = 0;
      for (Eigen::Index k = 0; k < w.cols(); ++k) sum += w(r, k) * x(k, c);
      y(r, c) = sum;
    }
  }
  return y;
}

/// W_down · (act(W_gate · x) ⊙ (W_up · x))
inline MatrixD gated_ffn(const MatrixD& gate, const MatrixD& up, const MatrixD& down, const MatrixD& x, Function act) {
  const MatrixD g = product(gate, x), u = product(up, x);
  MatrixD hidden(g.rows(), g.cols());
  for (Eigen::Index i = 0; i < g.size(); ++i) hidden(i) = act(g(i)) * u(i);
  return product(down, hidden);
}

/// W_out · act(W_in · x + b_in) + b_out
inline MatrixD ffn(const MatrixD& in, const VectorD& b_in, const MatrixD& out, const VectorD& b_out, const MatrixD& x,
                   Function act) {
  MatrixD hidden = product(in, x);
  for (Eigen::Index c = 0; c < hidden.cols(); ++c) {
    for (Eigen::Index r = 0; r < hidden.rows(); ++r) hidden(r, c) = act(hidden(r, c) + (b_in.size() ? b_in(r) : 0));
  }
  MatrixD y = product(out, hidden);
  for (Eigen::Index c = 0; c < y.cols() && b_out.size(); ++c) {
    for (Eigen::Index r = 0; r < y.rows(); ++r) y(r, c) += b_out(r);
  }
  return y;
}

struct Choice {
  Eigen::Index expert;
  double weight;
};

/// The place of the largest number; the first of equals.
inline std::size_t argmax(const std::vector<double>& numbers) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < numbers.size(); ++i) {
    if (numbers[i] > numbers[best]) best = i;
  }
  return best;
}

inline std::vector<double> softmax(const std::vector<double>& l) {
  const double highest = l[argmax(l)];
  std::vector<double> s;
  double sum = 0;
  for (const double v : l) sum += s.emplace_back(std::exp(v - highest));
  for (double& v : s) v /= sum;
  return s;
}

/// The experts of one token, best first; at the end those that are always chosen.
inline std::vector<Choice> choose(const std::vector<double>& logits, const TopKOptions& options,
                                  const std::vector<double>& selection_bias = {}) {
  const double never = -std::numeric_limits<double>::infinity();
  std::vector<double> scores = logits;
  if (options.score == Score::softmax) scores = softmax(logits);
  for (double& s : scores) {
    if (options.score == Score::sigmoid) s = 1 / (1 + std::exp(-s));
    if (options.score == Score::sqrt_softplus) s = std::sqrt(std::log(1 + std::exp(s)));
  }
  const std::size_t selectable = scores.size() - std::size_t(options.always_chosen);
  std::vector<double> rank = options.bias_on == BiasOn::logits ? logits : scores;
  rank.resize(selectable);
  for (std::size_t e = 0; e < selection_bias.size(); ++e) rank[e] += selection_bias[e];

  const std::size_t size = rank.size() / std::size_t(options.num_groups);
  std::vector<double> group(std::size_t(options.num_groups));
  for (std::size_t g = 0; g < group.size(); ++g) {
    std::vector<double> members(rank.begin() + long(g * size), rank.begin() + long((g + 1) * size));
    std::sort(members.begin(), members.end(), std::greater<>());
    for (std::size_t i = 0; i < std::min(size, std::size_t(options.group_top)); ++i) group[g] += members[i];
  }
  std::vector<bool> kept(group.size(), false);
  for (Eigen::Index k = 0; k < options.kept_groups; ++k) {
    const std::size_t g = argmax(group);
    kept[g] = true;
    group[g] = never;
  }
  for (std::size_t e = 0; e < rank.size(); ++e) {
    if (!kept[e / size]) rank[e] = options.rejected_groups == RejectedGroups::ranked_at_zero ? 0 : never;
  }

  if (options.rejected_groups == RejectedGroups::ranked_at_zero && options.kept_groups < options.num_groups) {
    std::vector<moe::detail::RankedItem<double>> all;  // many are 0; which of these is tested by itself
    for (std::size_t e = 0; e < rank.size(); ++e) all.push_back({rank[e], Eigen::Index(e)});
    moe::detail::select_as_torch(all.data(), options.top_k, Eigen::Index(all.size()));
    for (std::size_t i = std::size_t(options.top_k); i < all.size(); ++i) rank[std::size_t(all[i].item)] = never;
  }

  std::vector<Choice> chosen;
  std::vector<double> weights;
  for (Eigen::Index k = 0; k < options.top_k; ++k) {
    const std::size_t e = argmax(rank);
    rank[e] = never;
    chosen.push_back({Eigen::Index(e), 0});
    weights.push_back(scores[e]);
    if (options.weigh_biased && !selection_bias.empty()) weights.back() += selection_bias[e];
  }
  for (std::size_t e = selectable; e < scores.size(); ++e) {
    chosen.push_back({Eigen::Index(e), 0});
    weights.push_back(scores[e]);
  }
  if (options.score == Score::softmax_of_chosen) weights = softmax(weights);
  double sum = 0;
  for (const double w : weights) sum += std::pow(w, options.norm);
  double divisor = std::pow(sum, 1 / options.norm) + options.epsilon;
  if (options.floor > 0) divisor = std::max(divisor, options.floor);
  for (std::size_t k = 0; k < weights.size(); ++k) {
    chosen[k].weight = weights[k] / (options.renormalize ? divisor : 1) * options.scale;
  }
  return chosen;
}

using Expert = std::function<MatrixD(const MatrixD&)>;

/// y = Σ weight · expert(x), or Σ expert(weight · x), for the given logits (num_experts × n_tokens).
inline MatrixD moe(const MatrixD& logits, const TopKOptions& options, const std::vector<double>& selection_bias,
                   const std::vector<Expert>& experts, const MatrixD& x) {
  MatrixD y = MatrixD::Zero(x.rows(), x.cols());
  for (Eigen::Index t = 0; t < x.cols(); ++t) {
    const std::vector<double> l(logits.col(t).begin(), logits.col(t).end());
    for (const auto& [e, weight] : choose(l, options, selection_bias)) {
      const auto& expert = experts[std::size_t(e)];
      if (options.weight_on == WeightOn::output) y.col(t) += weight * expert(x.col(t));
      if (options.weight_on == WeightOn::input) y.col(t) += expert(weight * x.col(t));
    }
  }
  return y;
}

}  // namespace moe::test::naive
