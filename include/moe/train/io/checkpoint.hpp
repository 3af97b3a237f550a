/// @file  From a model's files to a layer that learns.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/block_adapters.hpp"
#include "moe/io/error.hpp"
#include "moe/io/layer_loader.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/model.hpp"
#include "moe/io/peft_adapters.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/projection.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/train/experts/expert_list.hpp"
#include "moe/train/experts/ffn_bank.hpp"
#include "moe/train/experts/joined_experts.hpp"
#include "moe/train/experts/latent_experts.hpp"
#include "moe/train/experts/zero_compute.hpp"
#include "moe/train/layers/affine_output.hpp"
#include "moe/train/layers/moe_layer.hpp"
#include "moe/train/layers/normed_output.hpp"
#include "moe/train/layers/shared.hpp"
#include "moe/train/lora/bank.hpp"
#include "moe/train/lora/projection.hpp"
#include "moe/train/lora/router.hpp"
#include "moe/train/routers/filters/capacity.hpp"
#include "moe/train/routers/logits_router.hpp"
#include "moe/train/routers/normed_top_k.hpp"
#include "moe/train/routers/shaped_top_k.hpp"
#include "moe/train/routers/sparse_mixer.hpp"
#include "moe/train/routers/top_k.hpp"
#include "moe/train/trainable_layer.hpp"

namespace moe::inline MOE_TARGET::io {

/// Which adapters lie beside the parts of a layer; of rank 0, none.
struct LoraLayerOptions {
  LoraOptions router{.rank = 0};
  LoraBankOptions experts{};
  LoraBankOptions shared{.rank = 0};
};

namespace detail {

template <class Scalar>
class TrainableLayerLoader : LayerLoader<Scalar> {
  using Base = LayerLoader<Scalar>;
  using Layer = TrainableLayer<Scalar>;

 public:
  using Base::Base;

  Layer load() const {
    Layer layer = assembled();
    Base::require_all_read();
    return layer;
  }

  Layer load_with_lora(const LoraLayerOptions& options) const {
    const MoeShape& shape = Base::shape_;
    const auto learning = [](const auto& part) {
      return typename BlockAdapters<Scalar>::Learning{part.dropout, part.seed};
    };
    BlockAdapters<Scalar> adapters{.of_router = learning(options.router),
                                   .of_experts = learning(options.experts),
                                   .of_shared = learning(options.shared)};
    adapters.router = make_adapter<Scalar>(Base::num_outputs(), shape.d_model, options.router.rank,
                                           options.router.alpha, options.router.seed);
    adapters.experts = make_adapters<Scalar>(shape.num_experts, shape.d_latent > 0 ? shape.d_latent : shape.d_model,
                                             shape.d_ff, is_gated(shape.hidden), options.experts);
    if (shape.d_ff_shared > 0) {
      adapters.shared =
          make_adapters<Scalar>(1, shape.d_model, shape.d_ff_shared, is_gated(shape.hidden_shared), options.shared)[0];
    }
    return beside(std::move(adapters));
  }

  /// @param names  of each file, those of the block
  Layer load_with_lora(const Adapters& files, const std::vector<std::vector<NameInBlock>>& names) const {
    BlockAdapters<Scalar> all;
    for (std::size_t i = 0; i < names.size(); ++i) {
      const AdapterFile& file = files.files()[i];
      BlockAdapterReader<Scalar> reader(file, Base::tensors_, names[i], Base::names_, Base::shape_,
                                        Base::num_outputs());
      if (i == 0) {
        all = reader.read();
      } else {
        add_to(all, reader.read(), utf8(file.folder));
      }
    }
    return beside(std::move(all));
  }

 private:
  const std::string type() const { return Base::config_.text("model_type"); }
  bool is_plain_top_k() const {
    const LogitShape shape = Base::logit_shape();
    return std::holds_alternative<TopKOptions>(Base::shape_.router) && Base::names_.router_kind == RouterKind::linear &&
           Base::names_.capacity == nullptr && shape.multiplier == 1 && shape.soft_cap == 0;
  }
  bool has_other_experts() const { return Base::num_outputs() > Base::shape_.num_experts; }

  /// The layer, with these beside its parts.
  Layer beside(BlockAdapters<Scalar> adapters) const {
    if (adapters.whole_router) {  // what was learned in full, as an adapter of full rank: so it goes on, and is saved
      const Index rank = Base::num_outputs();
      adapters.router = sum_of(adapters.router, {*adapters.whole_router - Base::router_weight(),
                                                 Weight<Scalar>::Identity(rank, rank), double(rank)});
    }
    Layer layer = Base::with_weight_type([&]<class W>(W) {
      return with_activation([&]<class Act>(const Act&) -> Layer {
        const auto bank = [&] {
          return LoraBank<W, Act>(Base::template bank<W, Act>(Base::tensors_, Base::spelling_, Base::shape_.hidden),
                                  std::move(adapters.experts), adapters.of_experts.dropout, adapters.of_experts.seed);
        };
        const bool plain = is_plain_top_k();
        if (has_other_experts() || Base::has_expert_norm()) refuse_adapters();
        if constexpr (std::is_same_v<Act, AnyActivation>) {
          if (plain && Base::shape_.d_latent > 0) {
            return around<W, Act>(MoeLayer(lora_router(adapters), in_latent(bank(), adapters)), adapters);
          }
        }
        if (Base::shape_.d_latent > 0) refuse_adapters();
        if constexpr (std::is_same_v<Act, SwiGlu>) {
          if (!plain && std::holds_alternative<TopKOptions>(Base::shape_.router) && Base::names_.capacity == nullptr &&
              Base::names_.router_kind == RouterKind::linear) {
            return around<W, Act>(MoeLayer(shaped_lora_router(adapters), bank()), adapters);
          }
        }
        if (!plain) refuse_adapters();
        return around<W, Act>(MoeLayer(lora_router(adapters), bank()), adapters);
      });
    });
    Base::require_all_read();
    return layer;
  }

  [[noreturn]] void refuse_adapters() const {
    fail(Base::config_.file(), ": layers of ", type(), " take no adapters yet");
  }

  LoraRouter<Scalar> lora_router(BlockAdapters<Scalar>& adapters) const {
    return {Base::top_k(), std::move(adapters.router), adapters.of_router.dropout, adapters.of_router.seed};
  }

  auto shaped_lora_router(BlockAdapters<Scalar>& adapters) const {
    LoraLogits<Scalar> logits(LinearLogits<Scalar>(Base::router_weight(), Base::router_bias()),
                              std::move(adapters.router), adapters.of_router.dropout, adapters.of_router.seed);
    return LogitsRouter(ShapedLogits(std::move(logits), Base::logit_shape()), std::move(Base::top_k().choice()));
  }

  /// Projections, which do not learn without an adapter, around experts.
  template <class G>
  auto in_latent(G experts, BlockAdapters<Scalar>& adapters) const {
    const Index d = Base::d(), latent = Base::shape_.d_latent;
    const auto& [dropout, seed] = adapters.of_experts;
    const std::string in = Base::full(Base::names_.latent_in), out = Base::full(Base::names_.latent_out);
    return LatentExperts(LoraProjection<Scalar>(Base::template projection<Scalar>(in, latent, d),
                                                std::move(adapters.latent_in), dropout, seed),
                         std::move(experts),
                         LoraProjection<Scalar>(Base::template projection<Scalar>(out, d, latent),
                                                std::move(adapters.latent_out), dropout, seed + 1),
                         Base::latent_norm());
  }

  /// A sparse layer with what stands around it.
  template <class W, class Act, class L>
  Layer around(L sparse, BlockAdapters<Scalar>& adapters) const {
    Vector<Scalar> bias = Base::output_bias();  // is read, also where another one counts
    if (adapters.whole_output_bias) bias = *adapters.whole_output_bias;
    if (Base::shape_.d_ff_shared == 0) return with_output<Act>(std::move(sparse), std::move(bias));
    LoraBank<W, Act> shared(Base::template shared<W, Act>(), {std::move(adapters.shared)}, adapters.of_shared.dropout,
                            adapters.of_shared.seed);
    return with_output<Act>(WithSharedExpert(std::move(sparse), std::move(shared), shared_gate(adapters).transpose()),
                            std::move(bias));
  }

  /// A copy that learns, with its adapter in it.
  Vector<Scalar> shared_gate(const BlockAdapters<Scalar>& adapters) const {
    Weight<Scalar> gate = Base::shared_gate().transpose();
    if (adapters.whole_shared_gate) gate = *adapters.whole_shared_gate;
    add_adapter<Scalar>(adapters.shared_gate, Scalar(1), {gate.data(), gate.rows(), gate.cols()});
    return gate.transpose();
  }

  /// f(an activation that is that of the experts, and can be that of the shared one).
  template <class F>
  auto with_activation(const F& f) const {
    const HiddenActivation& routed = Base::shape_.hidden;
    if (!is_gated(routed)) return f(AnyActivation());
    const bool shared_too = Base::shape_.d_ff_shared == 0 || is_swiglu(Base::shape_.hidden_shared);
    return is_swiglu(routed) && shared_too ? f(SwiGlu()) : f(AnyGatedActivation());
  }

  Layer assembled() const {
    const MoeShape& shape = Base::shape_;
    return with_activation([&]<class Act>(const Act&) -> Layer {
      const auto layer_of = [&](auto router) { return finish_owned<Act>(MoeLayer(std::move(router), bank<Act>())); };
      if constexpr (std::is_same_v<Act, SwiGlu>) {
        if (const auto* const mixer = std::get_if<SparseMixerOptions>(&shape.router)) {
          return Layer(MoeLayer(SparseMixer<Scalar>(Base::router_weight(), *mixer), bank<Act>()));
        }
        if (shape.num_zero_experts > 0) {
          ExpertList zero(std::vector(std::size_t(shape.num_zero_experts), CopyExpert<Scalar>{Base::d()}));
          return Layer(MoeLayer(Base::top_k(), JoinedExperts(bank<Act>(), std::move(zero))));
        }
        if (const LogitShape logits = Base::logit_shape();
            shape.d_latent == 0 && !is_plain_top_k() && Base::names_.router_kind == RouterKind::linear) {
          return layer_of(ShapedTopK<Scalar>(Base::router_weight(), Base::top_k_options(), logits, Base::router_bias(),
                                             Base::selection_bias()));
        }
      }
      if constexpr (std::is_same_v<Act, AnyGatedActivation>) {
        if (Base::names_.router_kind == RouterKind::normed) return Layer(MoeLayer(Base::normed_top_k(), bank<Act>()));
        if (Base::is_hashed()) return layer_of(Base::hash());
        if (Base::names_.router_kind == RouterKind::hashed) return layer_of(Base::top_k());
      }
      if constexpr (std::is_same_v<Act, AnyActivation>) {
        if (Base::names_.capacity != nullptr) {
          MoeLayer layer(WithCapacity(Base::top_k(), Base::names_.capacity(Base::config_)), bank<Act>());
          if (!Base::has_affine_output()) return Layer(std::move(layer));
          return Layer(AffineOutput(std::move(layer), Base::output_scale(), Base::output_bias()));
        }
        if (shape.d_latent > 0 && is_plain_top_k()) {
          const auto in = Base::full(Base::names_.latent_in), out = Base::full(Base::names_.latent_out);
          return finish_owned<Act>(
              MoeLayer(Base::top_k(), LatentExperts(projection(in, shape.d_latent, Base::d()), bank<Act>(),
                                                    projection(out, Base::d(), shape.d_latent), Base::latent_norm())));
        }
      }
      if (!is_plain_top_k() || has_other_experts() || shape.d_latent > 0 || Base::has_expert_norm()) {
        fail(Base::config_.file(), ": layers of ", type(), " cannot be loaded to learn yet; load_layer() runs them");
      }
      return layer_of(Base::top_k());
    });
  }

  /// Copies to write, in Scalar, whatever the file's type.
  template <class Act>
  FfnBank<Scalar, Act> bank() const {
    return owned(Base::template bank<Scalar, Act>(Base::tensors_, Base::spelling_, Base::shape_.hidden));
  }

  Projection<Scalar> projection(const std::string& name, Index out, Index in) const {
    const auto mapped = Base::template projection<Scalar>(name, out, in);
    return Projection<Scalar>(owned(mapped.stack()), mapped.bias());
  }

  /// With what stands around the sparse layer.
  template <class Act, class L>
  Layer finish_owned(L layer) const {
    if (Base::shape_.d_ff_shared == 0) return with_output<Act>(std::move(layer), Base::output_bias());
    return with_output<Act>(WithSharedExpert(std::move(layer), owned(Base::template shared<Scalar, Act>()),
                                             Base::shared_gate().transpose()),
                            Base::output_bias());
  }

  /// Only layers of SwiGLU have anything behind them in published models, and each combination is code to compile.
  template <class Act, class L>
  Layer with_output(L layer, Vector<Scalar> bias) const {
    if constexpr (std::is_same_v<Act, SwiGlu>) {
      if (Base::has_affine_output()) {
        return Layer(AffineOutput(std::move(layer), Base::output_scale(), std::move(bias)));
      }
      if (!Base::names_.output_norm.empty()) return Layer(NormedOutput(std::move(layer), Base::output_norm()));
    } else if (Base::has_affine_output() || !Base::names_.output_norm.empty()) {
      fail(Base::config_.file(), ": layers of ", type(),
           " with experts other than SwiGLU cannot be loaded to learn yet; "
           "load_layer() runs them");
    }
    return Layer(std::move(layer));
  }
};

}  // namespace detail

/// As load_layer(), with a copy of all weights in Scalar, to write, however they are stored.
/// @throws Error as load_layer().
template <class Scalar = float>
TrainableLayer<Scalar> load_trainable_layer(const Model& model, const std::string& prefix) {
  return detail::with_block(model, prefix,
                            [](const auto&... block) { return detail::TrainableLayerLoader<Scalar>(block...).load(); });
}

/// As load_layer(), with adapters that learn beside weights that stay in the mapped file. Of a shared expert's gate
/// there is a copy, which learns too, and which save_adapters() writes beside them.
/// @throws Error as load_layer(), and if no adapters are made beside this kind of layer.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const Model& model, const std::string& prefix,
                                       const LoraLayerOptions& options = {}) {
  return detail::with_block(model, prefix, [&](const auto&... block) {
    return detail::TrainableLayerLoader<Scalar>(block...).load_with_lora(options);
  });
}

/// As load_layer(), with the adapters that folders of PEFT have of it, all at once, under whatever names: fused or of
/// each expert, of the router and of shared experts, or trained in full (modules_to_save). It serves, it learns on, and
/// merged() is without adapters. What the folders have of other parts of the model is left alone:
/// Adapters::beside_blocks(). Of a block that they have nothing of, no adapter.
///
/// A weight that was trained in full is an adapter of full rank beside a router's, and the gate of a shared expert
/// itself. Names of transformers v4 (experts.0.w1) are what they were trained as: each matrix beside its own adapter.
/// @throws Error as load_layer(), and naming the file and the tensor that fits nothing or that nothing takes.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const Model& model, const std::string& prefix, const Adapters& adapters) {
  return detail::with_block(model, prefix, [&](const WeightTensors& tensors, const auto&... block) {
    std::vector<std::vector<detail::NameInBlock>> names;
    for (const auto& file : adapters.files()) names.push_back(file.of_block(model, tensors.block()));
    return detail::TrainableLayerLoader<Scalar>(tensors, block...).load_with_lora(adapters, names);
  });
}

}  // namespace moe::inline MOE_TARGET::io
