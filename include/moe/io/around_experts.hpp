/// @file  What stands around the experts of a block, waiting for them.
#pragma once

#include <concepts>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/normed_experts.hpp"
#include "moe/experts/projection.hpp"
#include "moe/io/block_reader.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/experts_loader.hpp"
#include "moe/io/router_loader.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/layers/shared.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// All that stands around the experts, waiting for them: the one walk that puts layers together, of whatever parts.
template <class Scalar, class Make>
struct Around {
  using Router = typename Make::Router;
  using Experts = typename Make::Experts;

  Router router;
  std::function<Experts(Experts)> dressed;  // with what stands between the router and the experts
  std::optional<Experts> shared{};
  Vector<Scalar> shared_gate{};
  bool is_affine = false;
  Scalar scale = 1;
  Vector<Scalar> bias{};
  std::optional<RmsNorm<Scalar>> norm{};

  template <class Layer>
  Layer layer(Experts experts) const {
    MoeLayer sparse(router, dressed(std::move(experts)));
    if (!shared) return with_output<Layer>(std::move(sparse));
    return with_output<Layer>(WithSharedExpert(std::move(sparse), *shared, shared_gate.transpose()));
  }

  AnyLayer<Scalar> operator()(AnyExperts<Scalar> experts) const
    requires std::same_as<Experts, AnyExperts<Scalar>>
  {
    return layer<AnyLayer<Scalar>>(std::move(experts));
  }

 private:
  template <class Layer, class L>
  Layer with_output(L all) const {
    if (is_affine && norm) return Layer(NormedOutput(AffineOutput(std::move(all), scale, bias), *norm));
    if (is_affine) return Layer(AffineOutput(std::move(all), scale, bias));
    if (norm) return Layer(NormedOutput(std::move(all), *norm));
    return Layer(std::move(all));
  }
};

/// Makes it of what the block has.
template <class Scalar>
class AroundLoader {
 public:
  explicit AroundLoader(const BlockReader& block) : block_(block) {}

  /// All of it, of parts as a make wants them.
  template <class Make>
  Around<Scalar, Make> load(const Make& make) const {
    using Experts = typename Make::Experts;
    Around<Scalar, Make> all{RouterLoader<Scalar>(block_).load(make), [](Experts experts) { return experts; }};
    if (!block_.names.expert_norm.empty()) {
      all.dressed = [norm = expert_norm(make)](Experts experts) -> Experts {
        return NormedExperts(std::move(experts), norm);
      };
    }
    if (block_.shape.d_latent > 0) {
      all.dressed = [project = latent(make), dressed = std::move(all.dressed)](Experts experts) {
        return project(dressed(std::move(experts)));
      };
    }
    if (block_.shape.d_ff_shared > 0) {
      all.shared = ExpertsLoader<Scalar>(block_).any_ffn(make, block_.names.shared, block_.shape.d_ff_shared,
                                                         block_.shape.hidden_shared, block_.shape.expert_bias);
      all.shared_gate = make.vector("shared_expert_gate.weight", shared_gate());
    }
    all.is_affine = has_affine_output();
    if (all.is_affine) {
      all.scale = output_scale();
      all.bias = make.vector("bias", output_bias());
    }
    if (!block_.names.output_norm.empty()) all.norm = output_norm(make);
    return all;
  }

 private:
  /// A.X K1's.
  template <class Make>
  RmsNorm<Scalar> output_norm(const Make& make) const {
    return RmsNorm<Scalar>(
        make.vector("post_mlp_layernorm.weight", block_.finite<Scalar>(block_.names.output_norm, {block_.d()})),
        {.epsilon = block_.config.number("rms_norm_eps")});
  }

  /// Muse Spark's, whose gains are stored without their 1, and multiplied before the norm.
  template <class Make>
  RmsNorm<Scalar> expert_norm(const Make& make) const {
    return RmsNorm<Scalar>(
        make.vector("experts.post_expert_norm.weight",
                    block_.finite<Scalar>(block_.names.expert_norm,
                                          {block_.shape.d_latent > 0 ? block_.shape.d_latent : block_.d()})),
        {.epsilon = block_.config.number("post_norm_eps"), .offset = 1, .gain_on = GainOn::input});
  }

  bool has_affine_output() const { return !block_.names.output_bias.empty() || output_scale() != 1; }
  Scalar output_scale() const {
    return block_.names.output_scale ? Scalar(block_.names.output_scale(block_.config)) : Scalar(1);
  }
  Vector<Scalar> output_bias() const {
    return block_.vector_if<Scalar>(!block_.names.output_bias.empty(), block_.names.output_bias, {block_.d()});
  }
  Vector<Scalar> shared_gate() const {
    return block_.vector_if<Scalar>(block_.shape.shared_gate, block_.names.shared_gate, {1, block_.d()});
  }
  /// From experts of the latent width to experts of the model's.
  template <class Make>
  auto latent(const Make& make) const {
    using Experts = typename Make::Experts;
    const std::string in = full(block_.names.latent_in), out = full(block_.names.latent_out);
    const StoredType type = block_.type_of<Scalar>({in + ".weight", out + ".weight"});
    return block_.with_type_for<Scalar>(
        make, type, block_.tensors.at(in + ".weight"), [&]<class W>(W) -> std::function<Experts(Experts)> {
          return [in = make.projection(projection<W>(in, block_.shape.d_latent, block_.d()), true),
                  out = make.projection(projection<W>(out, block_.d(), block_.shape.d_latent), false),
                  norm = latent_norm(make), norm_of_answers = norm_of_answers(make)](Experts experts) -> Experts {
            return LatentExperts(in, std::move(experts), out, norm, {}, norm_of_answers);
          };
        });
  }

  template <class W>
  Projection<W> projection(const std::string& name, Index out, Index in) const {
    const bool biased = block_.shape.expert_bias || block_.tensors.contains(name + ".bias");
    return Projection<W>(block_.tensors.single<W>(name + ".weight", out, in, 0, out),
                         biased ? block_.tensors.copy<Scalar>(name + ".bias", {out}) : Vector<Scalar>());
  }

  /// Muse Spark's, whose gains are stored without their 1.
  template <class Make>
  std::optional<RmsNorm<Scalar>> latent_norm(const Make& make) const {
    if (block_.names.latent_norm.empty()) return {};
    return RmsNorm<Scalar>(
        make.vector("latent_norm.weight", block_.finite<Scalar>(block_.names.latent_norm, {block_.shape.d_latent})),
        {.epsilon = block_.config.number("rms_norm_eps"), .offset = 1});
  }

  /// Kimi K3's.
  template <class Make>
  std::optional<RmsNorm<Scalar>> norm_of_answers(const Make& make) const {
    if (block_.names.norm_of_answers.empty()) return {};
    return RmsNorm<Scalar>(make.vector("routed_expert_norm.weight",
                                       block_.finite<Scalar>(block_.names.norm_of_answers, {block_.shape.d_latent})),
                           {.epsilon = block_.config.number("rms_norm_eps")});
  }

  /// The first of several names whose weight there is.
  std::string full(std::string_view names) const {
    for (const std::string_view name : alternatives(names)) {
      if (block_.tensors.contains(std::string(name) + ".weight")) return std::string(name);
    }
    return std::string(alternatives(names)[0]);
  }

  const BlockReader& block_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
