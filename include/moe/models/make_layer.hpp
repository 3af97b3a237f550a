/// @file  From a published shape to a layer with random weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/presets.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/sparse_mixer.hpp"

namespace moe::inline MOE_TARGET {

/// In what size, and of which random numbers.
struct MakeLayerOptions {
  double scale = 1;  // multiplies d_model and every d_ff, which stay whole and at least 1; experts and top_k stay
  std::uint64_t seed = 1;
};

/// The same layer in another size.
/// @throws std::invalid_argument unless scale > 0, and leaves each width an int.
inline MoeShape scaled(MoeShape shape, double scale) {
  require(scale > 0, "scaled: scale is " + std::to_string(scale) + ", expected more than 0");
  const auto times = [&](Index width) {
    if (width == 0) return width;
    const double most = std::numeric_limits<int>::max();  // so that numbers of a matrix can be counted
    require(scale * double(width) <= most, "scaled: scale is " + std::to_string(scale) + ", expected at most " +
                                               std::to_string(most / double(width)) + " where a width is " +
                                               std::to_string(width));
    return std::max<Index>(1, static_cast<Index>(std::lround(scale * double(width))));
  };
  shape.d_model = times(shape.d_model);
  shape.d_ff = times(shape.d_ff);
  shape.d_ff_shared = times(shape.d_ff_shared);
  return shape;
}

namespace detail {

/// Makes the parts of one layer, each from a seed of its own.
template <class W>
class LayerMaker {
  using Scalar = ActivationScalar<W>;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

 public:
  LayerMaker(const MoeShape& shape, std::uint64_t seed) : shape_(shape), seed_(seed * 16) {}

  AnyRouter<Scalar> router() const {
    const Index experts = shape_.num_experts + shape_.num_zero_experts;
    Weight<Scalar> weight = random_weight<Scalar>(experts, shape_.d_model, seed_);
    if (const auto* mixer = std::get_if<SparseMixerOptions>(&shape_.router)) {
      return SparseMixer<Scalar>(std::move(weight), *mixer);
    }
    const auto& options = std::get<TopKOptions>(shape_.router);
    require_equal(options.top_k, shape_.top_k, "make_layer: shape.router's top_k");
    return LinearTopK<Scalar>(std::move(weight), options,
                              shape_.router_bias ? Vector(numbers(experts, 1, 1)) : Vector(),
                              shape_.selection_bias ? Vector(numbers(experts, 1, 2) / Scalar(experts)) : Vector());
  }

  AnyExperts<Scalar> experts() const {
    if (shape_.num_zero_experts == 0) return computing_experts();
    const std::vector<AnyExpert<Scalar>> copies(std::size_t(shape_.num_zero_experts),
                                                CopyExpert<Scalar>{shape_.d_model});
    return JoinedExperts(computing_experts(), ExpertList(copies));
  }

  AnyExperts<Scalar> shared() const {
    return with_activation(shape_.hidden_shared, [&](const auto& act) -> AnyExperts<Scalar> {
      return random_bank<W>(1, shape_.d_model, shape_.d_ff_shared, seed_ + 3, act);
    });
  }
  Vector shared_gate() const { return shape_.shared_gate ? Vector(numbers(shape_.d_model, 1, 4)) : Vector(); }

 private:
  /// f(act), of what experts, or the shared one, compute.
  template <class F>
  static AnyExperts<Scalar> with_activation(const HiddenActivation& hidden, const F& f) {
    if (is_swiglu(hidden)) return f(SwiGlu{});
    return std::visit([&](const auto& act) -> AnyExperts<Scalar> { return f(act); }, hidden);
  }

  AnyExperts<Scalar> computing_experts() const {
    return with_activation(shape_.hidden, [&](const auto& act) -> AnyExperts<Scalar> { return bank(act); });
  }

  template <class Act>
  FfnBank<W, Act> bank(const Act& act) const {
    constexpr bool is_gated = FfnBank<W, Act>::is_gated;
    const Index d = shape_.d_model, ff = shape_.d_ff, n = shape_.num_experts;
    FfnBiases<Scalar> biases;
    if (shape_.expert_bias) biases = {.up = numbers(ff, n, 6), .down = numbers(d, n, 7)};
    if (shape_.expert_bias && is_gated) biases.gate = numbers(ff, n, 5);
    auto stack = [&](Index rows, Index cols, std::uint64_t which) {
      return random_stack<W>(n, rows, cols, seed_ + which);
    };
    return FfnBank<W, Act>::of(is_gated ? stack(ff, d, 8) : WeightStack<W>(0, ff, d), stack(ff, d, 9), stack(d, ff, 10),
                               act, std::move(biases));
  }

  Matrix<Scalar> numbers(Index rows, Index cols, std::uint64_t which) const {
    return random_tokens<Scalar>(rows, cols, seed_ + which) / std::sqrt(Scalar(shape_.d_model));
  }

  const MoeShape& shape_;
  std::uint64_t seed_;
};

}  // namespace detail

/// The layer that a shape describes (its router, experts, shared and zero experts, biases) with random weights of type
/// W. A whole layer of the largest models takes tens of gigabytes: see MakeLayerOptions::scale.
/// @throws std::invalid_argument if the shape does not hold together, or scale ≤ 0.
template <class W = float>
AnyLayer<ActivationScalar<W>> make_layer(const MoeShape& shape, const MakeLayerOptions& options = {}) {
  const MoeShape its_shape = scaled(shape, options.scale);
  const detail::LayerMaker<W> make(its_shape, options.seed);
  MoeLayer layer(make.router(), make.experts());
  if (its_shape.d_ff_shared == 0) return layer;
  return WithSharedExpert(std::move(layer), make.shared(), make.shared_gate().transpose());
}

/// make_layer("deepseek-v3", {.scale = 1. / 16})
/// @throws std::invalid_argument listing all names unless this is a preset's.
template <class W = float>
AnyLayer<ActivationScalar<W>> make_layer(std::string_view preset, const MakeLayerOptions& options = {}) {
  return make_layer<W>(layer_shape(preset), options);
}

}  // namespace moe::inline MOE_TARGET
