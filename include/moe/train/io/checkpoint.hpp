/// @file  From a model's files to a layer that learns.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn.hpp"
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
    return Base::with_weight_type([&]<class W>(W) { return load_stored_as<W>(); });
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
  template <class W>
  TrainableLayer<Scalar> load_stored_as() const {
    const auto& names = Base::names_;
    if (names.layout == ExpertLayout::plain) {
      auto experts = ExpertList(widened(Base::template plain<W>()));
      if (names.capacity == nullptr) return finish<W>(MoeLayer(Base::top_k(), std::move(experts)));
      return finish<W>(MoeLayer(WithCapacity(Base::top_k(), names.capacity(Base::config_)), std::move(experts)));
    }
    if (names.layout == ExpertLayout::interleaved) {
      return finish<W>(MoeLayer(Base::top_k(), widened(Base::template interleaved<W>())));
    }
    auto experts = widened(Base::template gated<W>());
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&Base::shape_.router)) {
      return finish<W>(MoeLayer(SparseMixer<Scalar>(Base::router_weight(), *mixer), std::move(experts)));
    }
    if (const Index copies = Base::shape_.num_zero_experts; copies > 0) {
      ExpertList zero(std::vector(std::size_t(copies), CopyExpert<Scalar>{Base::d()}));
      return finish<W>(MoeLayer(Base::top_k(), JoinedExperts(std::move(experts), std::move(zero))));
    }
    return finish<W>(MoeLayer(Base::top_k(), std::move(experts)));
  }

  /// Copies to write, in Scalar.
  template <class W>
  static WeightStack<Scalar> widened(const WeightStack<W>& stack) {
    WeightStack<Scalar> wide(stack.num_experts(), stack.rows(), stack.cols());
    for (Index e = 0; e < stack.num_experts(); ++e) wide.owned(e) = stack[e].template cast<Scalar>();
    return wide;
  }
  template <class W, class Act>
  static GatedFfnBank<Scalar, Act> widened(const GatedFfnBank<W, Act>& bank) {
    return {widened(bank.w_gate()), widened(bank.w_up()), widened(bank.w_down()), bank.activation(), bank.biases()};
  }
  template <class W, class Act>
  static std::vector<Ffn<Scalar, Act>> widened(const std::vector<Ffn<W, Act>>& experts) {
    std::vector<Ffn<Scalar, Act>> wide;
    for (const auto& [w_in, w_out, b_in, b_out, act] : experts) {
      wide.push_back({w_in.template cast<Scalar>(), w_out.template cast<Scalar>(), b_in, b_out, act});
    }
    return wide;
  }

  /// With what stands around the sparse layer; shared_expert() makes the one beside it.
  template <class L, class Shared>
  TrainableLayer<Scalar> finish_beside(L layer, const Shared& shared_expert) const {
    if (Base::shape_.d_ff_shared > 0) {
      return TrainableLayer<Scalar>(
          WithSharedExpert(std::move(layer), shared_expert(), Base::shared_gate().transpose()));
    }
    if (!Base::has_affine_output()) return TrainableLayer<Scalar>(std::move(layer));
    return TrainableLayer<Scalar>(AffineOutput(std::move(layer), Base::output_scale(), Base::output_bias()));
  }

  template <class W, class L>
  TrainableLayer<Scalar> finish(L layer) const {
    return finish_beside(std::move(layer), [&] { return widened(Base::template shared<W>()); });
  }

  template <class W, class Bank>
  TrainableLayer<Scalar> with_adapters(Bank bank, const LoraLayerOptions& options) const {
    return finish_beside(
        MoeLayer(with_lora(Base::top_k(), options.router), with_lora(std::move(bank), options.experts)),
        [&] { return with_lora(Base::template shared<W>(), options.shared); });
  }
};

}  // namespace detail

/// As load_layer(), with a copy of all weights in Scalar, to write, however they are stored.
/// @throws Error as load_layer().
template <class Scalar = float>
TrainableLayer<Scalar> load_trainable_layer(const ModelFiles& model, const std::string& prefix) {
  return detail::with_block(model, prefix,
                            [](const auto&... block) { return detail::TrainableLayerLoader<Scalar>(block...).load(); });
}

/// As load_layer(), with adapters that learn beside weights that stay in the mapped file. Of a shared expert's gate
/// there is a copy, which learns too, and which save_adapters() writes beside them.
/// @throws Error as load_layer(), and if no adapters are made beside this kind of layer.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const ModelFiles& model, const std::string& prefix,
                                       const LoraLayerOptions& options = {}) {
  return detail::with_block(model, prefix, [&](const auto&... block) {
    return detail::TrainableLayerLoader<Scalar>(block...).load_with_lora(options);
  });
}

}  // namespace moe::inline MOE_TARGET::io
