/// @file  All the ways to compute a layer that are measured here.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "contender.hpp"
#include "eigen_user.hpp"
#include "moe/models/presets.hpp"
#include "moe/moe.hpp"
#include "moe/surgery/pack.hpp"
#include "work.hpp"

namespace moe::bench {

/// One after the other, and again.
template <class T>
class Cycle {
 public:
  explicit Cycle(std::vector<T> items) : items_(std::move(items)) {}

  const T& next() { return items_[turn_++ % items_.size()]; }

 private:
  std::vector<T> items_;
  std::size_t turn_ = 0;
};

/// The router reads its weights, in float, once for all tokens.
inline Work linear_router_work(const MoeShape& shape, Index tokens) {
  return products_work(double(shape.d_model) * double(shape.num_experts), sizeof(float), 1, tokens);
}

/// The experts that were used, and the shared one.
inline Work sparse_work(const MoeShape& shape, double bytes_a_weight, Index used, Index routes, Index tokens) {
  return gated_ffn_work(shape.d_model, shape.d_ff, bytes_a_weight, used, routes) +
         gated_ffn_work(shape.d_model, shape.d_ff_shared, bytes_a_weight, 1, tokens);
}

/// The sparse layer with its router, and with its shared expert if it has one.
template <class Layer>
class Sparse final : public Contender {
 public:
  Sparse(std::vector<Layer> layers, const MoeShape& shape, double bytes_a_weight, Index threads,
         const Numerics& numerics = {})
      : layers_(std::move(layers)), shape_(shape), bytes_a_weight_(bytes_a_weight), executor_(threads) {
    ws_.numerics = numerics;
  }

  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y) override {
    tokens_ = x.cols();
    layers_.next().forward(x, y, ws_, executor_);
  }

  Work experts_work() const override {
    Index used = 0;
    const auto plan = ws_.plan.view();
    for (Index e = 0; e < plan.num_experts(); ++e) used += plan.count(e) > 0;
    return sparse_work(shape_, bytes_a_weight_, used, plan.num_slots(), tokens_);
  }

  Work router_work() const override { return linear_router_work(shape_, tokens_); }

 private:
  Cycle<Layer> layers_;
  MoeShape shape_;
  double bytes_a_weight_;
  OpenMp executor_;
  Workspace<float> ws_;
  Index tokens_ = 0;
};

/// The part of the sparse layer that decides and plans who goes where. There is no part that combines: experts add
/// their answers to y where they make them.
class RoutingAlone final : public Contender {
 public:
  RoutingAlone(std::vector<LinearTopK<float>> routers, Index threads)
      : routers_(std::move(routers)), executor_(threads) {}

  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> /*y*/) override {
    const auto& router = routers_.next();
    Workers workers(executor_, ws_.scratch);
    ws_.routing.clear();
    router.route(x, ws_.routing, workers);
    plan_dispatch(ws_.routing, x.cols(), router.num_experts(), ws_.plan);
  }

  Work experts_work() const override { return {}; }

 private:
  Cycle<LinearTopK<float>> routers_;
  OpenMp executor_;
  Workspace<float> ws_;
};

/// A dense FFN.
template <class W>
class Dense final : public Contender {
 public:
  Dense(const Arena<W>& arena, Index d_ff)
      : d_ff_(d_ff),
        bytes_a_weight_(arena.pool->bytes_a_weight()),
        layers_(dense_layers(arena, d_ff)),
        executor_(arena.threads) {}

  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y) override {
    d_model_ = x.rows();
    layers_.next().forward(x, y, ws_, executor_);
  }

  Work experts_work() const override {
    return gated_ffn_work(d_model_, d_ff_, bytes_a_weight_, 1, ws_.plan.view().num_slots());
  }

 private:
  Index d_ff_, d_model_ = 0;
  double bytes_a_weight_;
  Cycle<DenseLayer<GatedFfnBank<W>>> layers_;
  OpenMp executor_;
  Workspace<float> ws_;
};

/// The sparse layer written by hand.
template <class W>
class ByHand final : public Contender {
 public:
  ByHand(const Arena<W>& arena, Kind kind) : arena_(arena), kind_(kind), layers_(layers_of(arena)) {}

  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y) override {
    const auto& layer = layers_.next();
    const int threads = static_cast<int>(arena_.threads);
    tokens_ = x.cols();
    routes_ = eigen_user::route(layer, x);
    if (kind_ == Kind::eigen_per_token) {
      eigen_user::forward_per_token(layer, x, routes_, y, threads);
    } else {
      eigen_user::forward_grouped(layer, x, routes_, y, threads);
    }
  }

  Work experts_work() const override {
    std::vector<char> used(std::size_t(arena_.shape.num_experts));
    for (const auto& route : routes_) used[std::size_t(route.expert)] = 1;
    return sparse_work(arena_.shape, sizeof(W), std::count(used.begin(), used.end(), 1), Index(routes_.size()),
                       tokens_);
  }

  Work router_work() const override { return linear_router_work(arena_.shape, tokens_); }

 private:
  static std::vector<eigen_user::Expert<W>> mapped(const GatedFfnBank<W>& bank) {
    const auto map = [](const WeightMap<W>& w) { return eigen_user::Weights<W>(w.data(), w.rows(), w.cols()); };
    std::vector<eigen_user::Expert<W>> experts;
    for (Index e = 0; e < bank.num_experts(); ++e) {
      experts.push_back({map(bank.w_gate()[e]), map(bank.w_up()[e]), map(bank.w_down()[e])});
    }
    return experts;
  }

  static std::vector<eigen_user::Layer<W>> layers_of(const Arena<W>& arena) {
    std::vector<eigen_user::Layer<W>> layers;
    for (Index l = 0; l < arena.num_layers(); ++l) {
      layers.push_back({.router = router_of(arena.shape, l).weight(),
                        .top_k = arena.shape.top_k,
                        .experts = mapped(experts_of(arena, l)),
                        .shared = {}});
      if (arena.shape.d_ff_shared > 0) layers.back().shared = mapped(shared_expert_of(arena, l));
    }
    return layers;
  }

  Arena<W> arena_;
  Kind kind_;
  Cycle<eigen_user::Layer<W>> layers_;
  std::vector<eigen_user::Route> routes_;
  Index tokens_ = 0;
};

/// @param change  makes of a bank what is timed
template <class W, class F = std::identity>
std::unique_ptr<Contender> make_sparse(const Arena<W>& arena, const Numerics& numerics = {}, const F& change = {}) {
  const auto make = [&](const auto& layer_of) -> std::unique_ptr<Contender> {
    using Layer = decltype(layer_of(Index(0)));
    std::vector<Layer> layers;
    for (Index l = 0; l < arena.num_layers(); ++l) layers.push_back(layer_of(l));
    return std::make_unique<Sparse<Layer>>(std::move(layers), arena.shape, arena.pool->bytes_a_weight(), arena.threads,
                                           numerics);
  };
  const auto plain = [&](Index l) { return MoeLayer(router_of(arena.shape, l), change(experts_of(arena, l))); };
  if (arena.shape.d_ff_shared == 0) return make(plain);
  return make([&](Index l) {
    return WithSharedExpert(plain(l), change(shared_expert_of(arena, l)), shared_gate_of(arena.shape));
  });
}

/// @return null where the kind computes with no such weights
template <class W>
std::unique_ptr<Contender> make_contender(Kind kind, const Arena<W>& arena) {
  switch (kind) {
    case Kind::moe:
    case Kind::moe_fast:
    case Kind::moe_invariant:
      return make_sparse(arena, numerics_of(kind));
    case Kind::moe_packed:
      if constexpr (std::is_same_v<W, Quantized>) {
        return make_sparse(arena, numerics_of(kind), [](const GatedFfnBank<W>& bank) { return packed(bank); });
      }
      break;
    case Kind::dense_active:
      return std::make_unique<Dense<W>>(arena, active_units(arena.shape));
    case Kind::dense_total:
      return std::make_unique<Dense<W>>(arena, total_units(arena.shape));
    case Kind::eigen_per_token:
    case Kind::eigen_grouped:
      if constexpr (!std::is_same_v<W, Quantized>) return std::make_unique<ByHand<W>>(arena, kind);
      break;
  }
  return nullptr;
}

template <class W>
std::unique_ptr<Contender> make_routing_alone(const Arena<W>& arena) {
  std::vector<LinearTopK<float>> routers;
  for (Index l = 0; l < arena.num_layers(); ++l) routers.push_back(router_of(arena.shape, l));
  return std::make_unique<RoutingAlone>(std::move(routers), arena.threads);
}

}  // namespace moe::bench
