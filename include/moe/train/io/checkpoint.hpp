/// @file  From a model's files to a layer that learns.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <variant>

#include "moe/capacity.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/experts/lora_bank.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/error.hpp"
#include "moe/moe_layer.hpp"
#include "moe/routers/lora_router.hpp"
#include "moe/shared.hpp"
#include "moe/train.hpp"
#include "moe/types.hpp"

namespace moe::io {

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
    require_gradients();
    if (names.layout == ExpertLayout::plain) {
      auto experts = ExpertList(Base::template plain<Scalar>());
      if (names.capacity == nullptr) return with(std::move(experts));
      return TrainableLayer<Scalar>(
          MoeLayer(WithCapacity(Base::top_k(), names.capacity(Base::config_)), std::move(experts)));
    }
    if (names.layout == ExpertLayout::interleaved) return with(owned(Base::template interleaved<Scalar>()));
    return with(owned(Base::template gated<Scalar>()));
  }

  TrainableLayer<Scalar> load_with_lora(const LoraLayerOptions& options) const {
    require_gradients();
    return Base::with_weight_type([&]<class W>(W) {
      if (Base::names_.layout == ExpertLayout::interleaved) {
        return with_adapters<W>(Base::template interleaved<W>(), options);
      }
      return with_adapters<W>(Base::template gated<W>(), options);
    });
  }

 private:
  void require_gradients() const {
    if (!std::holds_alternative<TopKOptions>(Base::shape_.router) || Base::shape_.num_zero_experts > 0 ||
        Base::names_.output_scale != nullptr || !Base::names_.output_bias.empty()) {
      fail(Base::config_.file(), ": layers of ", Base::names_.model_type, " cannot be trained yet");
    }
  }

  template <class W, class Bank>
  TrainableLayer<Scalar> with_adapters(Bank bank, const LoraLayerOptions& options) const {
    MoeLayer layer(with_lora(Base::top_k(), options.router), with_lora(std::move(bank), options.experts));
    if (Base::shape_.d_ff_shared == 0) return TrainableLayer<Scalar>(std::move(layer));
    return TrainableLayer<Scalar>(WithSharedExpert(
        std::move(layer), with_lora(Base::template shared<W>(), options.shared), Base::shared_gate().transpose()));
  }

  template <class G>
  TrainableLayer<Scalar> with(G experts) const {
    MoeLayer layer(Base::top_k(), std::move(experts));
    if (Base::shape_.d_ff_shared == 0) return TrainableLayer<Scalar>(std::move(layer));
    return TrainableLayer<Scalar>(
        WithSharedExpert(std::move(layer), owned(Base::template shared<Scalar>()), Base::shared_gate().transpose()));
  }
};

}  // namespace detail

/// As load_layer(), with a copy of all weights, to write. They must be stored in Scalar.
/// @throws Error as load_layer(), and for models whose routers or outputs have no gradients here yet.
template <class Scalar = float>
TrainableLayer<Scalar> load_trainable_layer(const std::filesystem::path& folder, const std::string& prefix) {
  return detail::with_block(folder, prefix,
                            [](const auto&... block) { return detail::TrainableLayerLoader<Scalar>(block...).load(); });
}

/// As load_layer(), with adapters that learn beside weights that stay in the mapped file. Of a shared expert's gate
/// there is a copy, which learns too.
/// @throws Error as load_trainable_layer(), but for weights of other types.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const std::filesystem::path& folder, const std::string& prefix,
                                       const LoraLayerOptions& options = {}) {
  return detail::with_block(folder, prefix, [&](const auto&... block) {
    return detail::TrainableLayerLoader<Scalar>(block...).load_with_lora(options);
  });
}

}  // namespace moe::io
