/// @file  From a model's files to a layer that learns.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/error.hpp"
#include "moe/io/layer_loader.hpp"
#include "moe/io/model_files.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/train/experts/expert_list.hpp"
#include "moe/train/experts/ffn.hpp"
#include "moe/train/experts/gated_ffn_bank.hpp"
#include "moe/train/experts/joined_experts.hpp"
#include "moe/train/experts/zero_compute.hpp"
#include "moe/train/layers/affine_output.hpp"
#include "moe/train/layers/moe_layer.hpp"
#include "moe/train/layers/shared.hpp"
#include "moe/train/lora/bank.hpp"
#include "moe/train/lora/router.hpp"
#include "moe/train/routers/filters/capacity.hpp"
#include "moe/train/routers/linear_top_k.hpp"
#include "moe/train/routers/sparse_mixer.hpp"
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

 public:
  using Base::Base;

  TrainableLayer<Scalar> load() const {
    const auto& names = Base::names_;
    if (names.layout == ExpertLayout::plain) {
      auto experts = ExpertList(Base::template plain<Scalar>());
      if (names.capacity == nullptr) return finish(MoeLayer(Base::top_k(), std::move(experts)));
      return finish(MoeLayer(WithCapacity(Base::top_k(), names.capacity(Base::config_)), std::move(experts)));
    }
    if (names.layout == ExpertLayout::interleaved) {
      return finish(MoeLayer(Base::top_k(), owned(Base::template interleaved<Scalar>())));
    }
    auto experts = owned(Base::template gated<Scalar>());
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&Base::shape_.router)) {
      return finish(MoeLayer(SparseMixer<Scalar>(Base::router_weight(), *mixer), std::move(experts)));
    }
    if (const Index copies = Base::shape_.num_zero_experts; copies > 0) {
      ExpertList zero(std::vector(std::size_t(copies), CopyExpert<Scalar>{Base::d()}));
      return finish(MoeLayer(Base::top_k(), JoinedExperts(std::move(experts), std::move(zero))));
    }
    return finish(MoeLayer(Base::top_k(), std::move(experts)));
  }

  TrainableLayer<Scalar> load_with_lora(const LoraLayerOptions& options) const {
    if (!std::holds_alternative<TopKOptions>(Base::shape_.router) || Base::shape_.num_zero_experts > 0) {
      fail(Base::config_.file(), ": layers of ", Base::names_.model_type, " take no adapters yet");
    }
    return Base::with_weight_type([&]<class W>(W) {
      if (Base::names_.layout == ExpertLayout::interleaved) {
        return with_adapters<W>(Base::template interleaved<W>(), options);
      }
      return with_adapters<W>(Base::template gated<W>(), options);
    });
  }

 private:
  /// With what stands around the sparse layer; shared_expert() makes the one beside it.
  template <class L, class Shared>
  TrainableLayer<Scalar> finish(L layer, const Shared& shared_expert) const {
    if (Base::shape_.d_ff_shared > 0) {
      return TrainableLayer<Scalar>(
          WithSharedExpert(std::move(layer), shared_expert(), Base::shared_gate().transpose()));
    }
    if (!Base::has_affine_output()) return TrainableLayer<Scalar>(std::move(layer));
    return TrainableLayer<Scalar>(AffineOutput(std::move(layer), Base::output_scale(), Base::output_bias()));
  }

  template <class L>
  TrainableLayer<Scalar> finish(L layer) const {
    return finish(std::move(layer), [&] { return owned(Base::template shared<Scalar>()); });
  }

  template <class W, class Bank>
  TrainableLayer<Scalar> with_adapters(Bank bank, const LoraLayerOptions& options) const {
    return finish(MoeLayer(with_lora(Base::top_k(), options.router), with_lora(std::move(bank), options.experts)),
                  [&] { return with_lora(Base::template shared<W>(), options.shared); });
  }
};

}  // namespace detail

/// As load_layer(), with a copy of all weights, to write. They must be stored in Scalar.
/// @throws Error as load_layer(), and if they are stored otherwise.
template <class Scalar = float>
TrainableLayer<Scalar> load_trainable_layer(const ModelFiles& model, const std::string& prefix) {
  return detail::with_block(model, prefix,
                            [](const auto&... block) { return detail::TrainableLayerLoader<Scalar>(block...).load(); });
}

/// As load_layer(), with adapters that learn beside weights that stay in the mapped file. Of a shared expert's gate
/// there is a copy, which learns too.
/// @throws Error as load_trainable_layer(), but for weights of other types.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const ModelFiles& model, const std::string& prefix,
                                       const LoraLayerOptions& options = {}) {
  return detail::with_block(model, prefix, [&](const auto&... block) {
    return detail::TrainableLayerLoader<Scalar>(block...).load_with_lora(options);
  });
}

}  // namespace moe::inline MOE_TARGET::io
