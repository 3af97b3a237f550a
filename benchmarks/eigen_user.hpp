/// @file  What a C++ user writes on Eigen without this library.
///
/// Nothing of moe/ is used here. It is meant to be good: products go straight to where they belong, nothing is copied
/// twice, all threads work. Weights of 16 bits are cast to float where they are used: Eigen's products want one type.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include <Eigen/Core>

namespace moe::bench::eigen_user {

using Eigen::Index;
using Matrix = Eigen::MatrixXf;  // a token is a column

template <class W>
using Weights = Eigen::Map<const Eigen::Matrix<W, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

template <class W>
struct Expert {
  Weights<W> gate, up, down;
};

template <class W>
struct Layer {
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> router;  // (num_experts × d_model)
  Index top_k;
  std::vector<Expert<W>> experts;
  std::vector<Expert<W>> shared;  // none, or one that every token sees
};

struct Route {
  Index token, expert;
  float weight;
};

/// top_k routes a token, side by side: softmax over the chosen, as Mixtral has it. Other formulas would take no other
/// time.
template <class W>
std::vector<Route> route(const Layer<W>& layer, const Eigen::Ref<const Matrix>& x) {
  const Matrix logits = layer.router * x;
  std::vector<Index> order(layer.experts.size());
  std::vector<Route> routes;
  for (Index t = 0; t < x.cols(); ++t) {
    const auto logit = logits.col(t);
    std::iota(order.begin(), order.end(), Index(0));
    std::partial_sort(order.begin(), order.begin() + layer.top_k, order.end(),
                      [&](Index a, Index b) { return logit(a) > logit(b); });
    float sum = 0;
    for (Index k = 0; k < layer.top_k; ++k) sum += std::exp(logit(order[std::size_t(k)]) - logit(order[0]));
    for (Index k = 0; k < layer.top_k; ++k) {
      const Index e = order[std::size_t(k)];
      routes.push_back({.token = t, .expert = e, .weight = std::exp(logit(e) - logit(order[0])) / sum});
    }
  }
  return routes;
}

/// W_down · (silu(W_gate · x) ⊙ (W_up · x)) for `tokens` tokens: 1, or as many as x has.
template <int tokens, class W>
auto answer(const Expert<W>& expert, const Eigen::Ref<const Eigen::Matrix<float, Eigen::Dynamic, tokens>>& x) {
  Eigen::Matrix<float, Eigen::Dynamic, tokens> gate(expert.gate.rows(), x.cols()), up(gate), y(x.rows(), x.cols());
  gate.noalias() = expert.gate.template cast<float>() * x;
  up.noalias() = expert.up.template cast<float>() * x;
  gate.array() *= up.array() / (1 + (-gate.array()).exp());
  y.noalias() = expert.down.template cast<float>() * gate;
  return y;
}

/// Token by token, matrix times vector; the tokens are split over the threads.
template <class W>
void forward_per_token(const Layer<W>& layer, const Eigen::Ref<const Matrix>& x, const std::vector<Route>& routes,
                       Eigen::Ref<Matrix> y, [[maybe_unused]] int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
#endif
  for (Index t = 0; t < x.cols(); ++t) {
    y.col(t).setZero();
    for (const Expert<W>& shared : layer.shared) y.col(t) += answer<1>(shared, x.col(t));
    for (Index r = t * layer.top_k; r < (t + 1) * layer.top_k; ++r) {
      const auto& [token, expert, weight] = routes[std::size_t(r)];
      y.col(t) += weight * answer<1>(layer.experts[std::size_t(expert)], x.col(t));
    }
  }
}

/// Expert by expert: gather its tokens, three matrix products, scatter; Eigen splits each product over its threads.
template <class W>
void forward_grouped(const Layer<W>& layer, const Eigen::Ref<const Matrix>& x, const std::vector<Route>& routes,
                     Eigen::Ref<Matrix> y, int threads) {
  Eigen::setNbThreads(threads);
  std::vector<std::vector<Route>> of_expert(layer.experts.size());
  for (const Route& route : routes) of_expert[std::size_t(route.expert)].push_back(route);

  y.setZero();
  for (const Expert<W>& shared : layer.shared) y += answer<Eigen::Dynamic>(shared, x);
  for (std::size_t e = 0; e < of_expert.size(); ++e) {
    if (of_expert[e].empty()) continue;
    Matrix gathered(x.rows(), Index(of_expert[e].size()));
    for (Index i = 0; i < gathered.cols(); ++i) gathered.col(i) = x.col(of_expert[e][std::size_t(i)].token);
    const Matrix answers = answer<Eigen::Dynamic>(layer.experts[e], gathered);
    for (Index i = 0; i < gathered.cols(); ++i) {
      const auto& [token, expert, weight] = of_expert[e][std::size_t(i)];
      y.col(token) += weight * answers.col(i);
    }
  }
}

}  // namespace moe::bench::eigen_user
