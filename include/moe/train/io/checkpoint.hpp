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
#include "moe/experts/ffn.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/architectures.hpp"
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
#include "moe/train/routers/logits_router.hpp"
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

/// What stands around sparse layers that are not plainly gated top-k ones: nothing, or for plain experts what
/// AffineOutput does. Whoever adds an architecture that has more writes how it is put together below.
static_assert(std::ranges::all_of(known_architectures, [](const Architecture& its) {
  const bool affine = !its.output_bias.empty() || its.output_scale != nullptr;
  if (its.layout == ExpertLayout::plain) return its.capacity != nullptr && its.d_ff_shared == nullptr;
  const bool gated_top_k = its.layout != ExpertLayout::interleaved && its.router_options != sparse_mixer_options &&
                           *its.num_zero_experts == '\0';
  return gated_top_k || (its.d_ff_shared == nullptr && !affine);
}));

template <class Scalar>
class TrainableLayerLoader : LayerLoader<Scalar> {
  using Base = LayerLoader<Scalar>;

 public:
  using Base::Base;

  TrainableLayer<Scalar> load() const {
    const auto& names = Base::names_;
    if (names.layout == ExpertLayout::plain) {
      auto experts = ExpertList(in_scalar([this]<class W>(W) { return this->template plain<W>(); }));
      return with_output(MoeLayer(WithCapacity(Base::top_k(), names.capacity(Base::config_)), std::move(experts)));
    }
    if (names.layout == ExpertLayout::interleaved) {
      auto experts = in_scalar([this]<class W>(W) { return this->template interleaved<W>(); });
      return TrainableLayer<Scalar>(MoeLayer(Base::top_k(), std::move(experts)));
    }
    auto experts = in_scalar([this]<class W>(W) { return this->template gated<W>(); });
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&Base::shape_.router)) {
      return TrainableLayer<Scalar>(MoeLayer(SparseMixer<Scalar>(Base::router_weight(), *mixer), std::move(experts)));
    }
    if (const Index copies = Base::shape_.num_zero_experts; copies > 0) {
      ExpertList zero(std::vector(std::size_t(copies), CopyExpert<Scalar>{Base::d()}));
      return TrainableLayer<Scalar>(MoeLayer(Base::top_k(), JoinedExperts(std::move(experts), std::move(zero))));
    }
    return finish(MoeLayer(Base::top_k(), std::move(experts)),
                  [&] { return in_scalar([this]<class W>(W) { return this->template shared<W>(); }); });
  }

  TrainableLayer<Scalar> load_with_lora(const LoraLayerOptions& options) const {
    if (!std::holds_alternative<TopKOptions>(Base::shape_.router) || Base::shape_.num_zero_experts > 0) {
      fail(Base::config_.file(), ": layers of ", Base::names_.model_type, " take no adapters yet");
    }
    return Base::with_weight_type([&]<class W>(W) {
      const auto with_adapters = [&](auto bank) {
        return MoeLayer(with_lora(Base::top_k(), options.router), with_lora(std::move(bank), options.experts));
      };
      if (Base::names_.layout == ExpertLayout::interleaved) {
        return TrainableLayer<Scalar>(with_adapters(Base::template interleaved<W>()));
      }
      return finish(with_adapters(Base::template gated<W>()),
                    [&] { return with_lora(Base::template shared<W>(), options.shared); });
    });
  }

 private:
  /// Copies to write, in Scalar, of what make(W()) maps, whatever the type W of the file.
  template <class Make>
  auto in_scalar(const Make& make) const {
    return Base::with_weight_type([&]<class W>(W w) { return widened(make(w)); });
  }

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
  TrainableLayer<Scalar> finish(L layer, const Shared& shared_expert) const {
    if (Base::shape_.d_ff_shared == 0) return with_output(std::move(layer));
    return TrainableLayer<Scalar>(WithSharedExpert(std::move(layer), shared_expert(), Base::shared_gate().transpose()));
  }

  template <class L>
  TrainableLayer<Scalar> with_output(L layer) const {
    if (!Base::has_affine_output()) return TrainableLayer<Scalar>(std::move(layer));
    return TrainableLayer<Scalar>(AffineOutput(std::move(layer), Base::output_scale(), Base::output_bias()));
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
