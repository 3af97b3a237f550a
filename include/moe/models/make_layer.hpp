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
#include "moe/experts/activation.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
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

struct MakeLayerOptions {
  double scale = 1;  // multiplies d_model and every d_ff, which stay whole and at least 1; experts and top_k stay
  std::uint64_t seed = 1;
};

/// The same layer in another size.
/// @throws std::invalid_argument unless scale > 0.
inline MoeShape scaled(MoeShape shape, double scale) {
  require(scale > 0, "scaled: scale is " + std::to_string(scale) + ", expected more than 0");
  const auto times = [&](Index width) {
    return width == 0 ? 0 : std::max<Index>(1, static_cast<Index>(std::lround(scale * double(width))));
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

  GatedFfnBank<W> shared() const { return random_bank<W>(1, shape_.d_model, shape_.d_ff_shared, seed_ + 3); }
  Vector shared_gate() const { return shape_.shared_gate ? Vector(numbers(shape_.d_model, 1, 4)) : Vector(); }

 private:
  AnyExperts<Scalar> computing_experts() const {
    switch (shape_.hidden) {
      case Hidden::swiglu:
        return gated<SwiGlu>();
      case Hidden::gpt_oss:
        return gated<GptOssGlu>();
      case Hidden::relu:
        return plain();
    }
    return plain();
  }

  template <class Act>
  GatedFfnBank<W, Act> gated() const {
    const Index d = shape_.d_model, ff = shape_.d_ff, n = shape_.num_experts;
    GatedFfnBiases<Scalar> biases;
    if (shape_.expert_bias) biases = {numbers(ff, n, 5), numbers(ff, n, 6), numbers(d, n, 7)};
    auto stack = [&](Index rows, Index cols, std::uint64_t which) {
      return random_stack<W>(n, rows, cols, seed_ + which);
    };
    return {stack(ff, d, 8), stack(ff, d, 9), stack(d, ff, 10), Act{}, std::move(biases)};
  }

  ExpertList<AnyExpert<Scalar>> plain() const {
    const Index d = shape_.d_model, ff = shape_.d_ff;
    std::vector<AnyExpert<Scalar>> experts;
    for (Index e = 0; e < shape_.num_experts; ++e) {
      const std::uint64_t seed = seed_ + 16 * std::uint64_t(e + 1);
      experts.push_back(
          Ffn<W, Relu>{.w_in = random_weight<W>(ff, d, seed),
                       .w_out = random_weight<W>(d, ff, seed + 1),
                       .b_in = shape_.expert_bias ? Vector(random_tokens<Scalar>(ff, 1, seed + 2)) : Vector(),
                       .b_out = shape_.expert_bias ? Vector(random_tokens<Scalar>(d, 1, seed + 3)) : Vector()});
    }
    return ExpertList(std::move(experts));
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
