/// @file  From a model's files to a layer that learns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/projection.hpp"
#include "moe/io/around_experts.hpp"
#include "moe/io/block_adapter_reader.hpp"
#include "moe/io/block_adapters.hpp"
#include "moe/io/error.hpp"
#include "moe/io/experts_loader.hpp"
#include "moe/io/layer_loader.hpp"
#include "moe/io/lending.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/model.hpp"
#include "moe/io/peft_adapters.hpp"
#include "moe/io/store/leased_lora_bank.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/projection.hpp"
#include "moe/lora/router.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_logits.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/logits_router.hpp"
#include "moe/routers/mlp_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/routers/top_k_by_modality.hpp"
#include "moe/train/experts/expert_list.hpp"
#include "moe/train/experts/ffn_bank.hpp"
#include "moe/train/experts/joined_experts.hpp"
#include "moe/train/experts/latent_experts.hpp"
#include "moe/train/experts/normed_experts.hpp"
#include "moe/train/experts/projection.hpp"
#include "moe/train/experts/zero_compute.hpp"
#include "moe/train/frozen.hpp"
#include "moe/train/io/store/leased_lora_bank.hpp"
#include "moe/train/layers/affine_output.hpp"
#include "moe/train/layers/moe_layer.hpp"
#include "moe/train/layers/normed_output.hpp"
#include "moe/train/layers/shared.hpp"
#include "moe/train/lora/bank.hpp"
#include "moe/train/lora/projection.hpp"
#include "moe/train/lora/router.hpp"
#include "moe/train/routers/filters/capacity.hpp"
#include "moe/train/routers/logits_router.hpp"
#include "moe/train/routers/mlp_top_k.hpp"
#include "moe/train/routers/normed_top_k.hpp"
#include "moe/train/routers/shaped_top_k.hpp"
#include "moe/train/routers/sparse_mixer.hpp"
#include "moe/train/routers/top_k.hpp"
#include "moe/train/routers/top_k_by_modality.hpp"
#include "moe/train/trainable_experts.hpp"
#include "moe/train/trainable_layer.hpp"
#include "moe/train/trainable_router.hpp"

namespace moe::inline MOE_TARGET::io {

/// Which adapters lie beside the parts of a layer; of rank 0, none.
struct LoraLayerOptions {
  LoraOptions router{.rank = 0};
  LoraBankOptions experts{};
  LoraBankOptions shared{.rank = 0};
};

namespace detail {

/// Layers that learn in full are made of copies to write, in Scalar, whatever the file's type.
template <class Scalar>
struct ToLearn {
  using Router = TrainableRouter<Scalar>;
  using Experts = TrainableExperts<Scalar>;
  static constexpr bool widens = true;

  template <class R>
  Router router(R router) const {
    return router;
  }
  template <class Act>
  Experts experts(FfnBank<Scalar, Act> bank, ExpertsOf) const {
    return owned(std::move(bank));
  }
  auto projection(Projection<Scalar> projection, bool) const {
    return Projection<Scalar>(owned(projection.stack()), projection.bias());
  }
  Vector<Scalar> vector(const char*, Vector<Scalar> numbers) const { return numbers; }
};

/// Layers whose adapters learn are made of parts as they are read, with these beside. Vectors that are no router's are
/// copies, which learn, too.
template <class Scalar>
struct ToLearnBeside {
  using Router = TrainableRouter<Scalar>;
  using Experts = TrainableExperts<Scalar>;
  static constexpr bool widens = false;

  BlockAdapters<Scalar>& adapters;  // which are moved into the layer
  std::string file;                 // of the settings, for messages
  Lending lending{};

  // ---- routers

  Router router(LinearTopK<Scalar> router) const {
    take_whole(router.logits());
    return LoraRouter<Scalar>(std::move(router), std::move(adapters.router), dropout(), seed());
  }
  Router router(WithCapacity<LinearTopK<Scalar>> limited) const {
    take_whole(limited.router().logits());
    return WithCapacity(LoraRouter<Scalar>(std::move(limited.router()), std::move(adapters.router), dropout(), seed()),
                        limited.options());
  }
  template <class Choice>
  Router router(LogitsRouter<LinearLogits<Scalar>, Choice> router) const {
    return LogitsRouter(beside(std::move(router.logits())), std::move(router.choice()));
  }
  Router router(ShapedTopK<Scalar> router) const {
    const LogitShape shape = router.logits().shape();
    return LogitsRouter(ShapedLogits(beside(std::move(router.logits().unshaped())), shape), std::move(router.choice()));
  }
  Router router(TopKByModality<Scalar> router) const {
    std::vector<LoraLogits<Scalar>> parts{
        {std::move(router.logits()[0]), std::move(adapters.router), dropout(), seed()},
        {std::move(router.logits()[1]), std::move(adapters.second_router), dropout(), seed() + 1}};
    return LogitsRouter(LogitsByModality(std::move(parts)), std::move(router.choice()));
  }
  Router router(NormedTopK<Scalar> router) const { return frozen(std::move(router)); }
  Router router(MlpTopK<Scalar> router) const { return frozen(std::move(router)); }

  // ---- experts, and what stands around them

  template <class W, class Act>
  Experts experts(FfnBank<W, Act> bank, ExpertsOf which) const {
    if (which == ExpertsOf::shared) {
      return LoraBank<W, Act>(lending.resident(std::move(bank)), {std::move(adapters.shared)},
                              adapters.of_shared.dropout, adapters.of_shared.seed);
    }
    const bool routed = which == ExpertsOf::routed;  // the first of them; the others lie behind
    auto& all = adapters.experts;
    const auto middle = routed ? all.begin() + bank.num_experts() : all.end() - bank.num_experts();
    std::vector<ExpertAdapters<Scalar>> its(std::make_move_iterator(routed ? all.begin() : middle),
                                            std::make_move_iterator(routed ? middle : all.end()));
    const double dropout = adapters.of_experts.dropout;
    const std::uint64_t seed = adapters.of_experts.seed + (routed ? 0 : 2);
    if (!lending.is_on()) return LoraBank<W, Act>(std::move(bank), std::move(its), dropout, seed);
    return LeasedLoraBank<W, Act>(lending.leased(std::move(bank), which), std::move(its), dropout, seed);
  }

  template <class W>
  auto projection(Projection<W> projection, bool goes_in) const {
    const auto& [dropout, seed] = adapters.of_experts;
    auto& its = goes_in ? adapters.latent_in : adapters.latent_out;
    return LoraProjection<W>(lending.resident(std::move(projection)), std::move(its), dropout,
                             goes_in ? seed : seed + 1);
  }

  /// Learned in full, or the gate of a shared expert with its adapter in it.
  Vector<Scalar> vector(const std::string& parameter, Vector<Scalar> numbers) const {
    if (const auto whole = adapters.whole_vectors.find(parameter); whole != adapters.whole_vectors.end()) {
      numbers = whole->second;
    }
    if (parameter == "shared_expert_gate.weight") {
      add_adapter<Scalar>(adapters.shared_gate, Scalar(1), {numbers.data(), 1, numbers.size()});
    }
    return numbers;
  }

 private:
  double dropout() const { return adapters.of_router.dropout; }
  std::uint64_t seed() const { return adapters.of_router.seed; }

  LoraLogits<Scalar> beside(LinearLogits<Scalar> logits) const {
    take_whole(logits);
    return {std::move(logits), std::move(adapters.router), dropout(), seed()};
  }

  /// What was learned in full, as an adapter of full rank: so it goes on, and is saved.
  void take_whole(const LinearLogits<Scalar>& logits) const {
    if (!adapters.whole_router) return;
    const Index rank = logits.num_experts();
    adapters.router = sum_of(adapters.router, {*adapters.whole_router - logits.weight(),
                                               Weight<Scalar>::Identity(rank, rank), double(rank)});
  }

  template <class R>
  Router frozen(R router) const {
    if (adapters.router.rank() > 0) {
      fail(file, ": nothing lies beside a router of this kind, and the rank of its adapter is ", adapters.router.rank(),
           ", expected 0");
    }
    return Frozen(std::move(router));
  }
};

template <class Scalar>
class TrainableLayerLoader : LayerLoader<Scalar> {
  using Base = LayerLoader<Scalar>;
  using Base::block_;
  using Layer = TrainableLayer<Scalar>;

 public:
  using Base::Base;

  Layer load() const { return put_together(ToLearn<Scalar>()); }

  Layer load_with_lora(const LoraLayerOptions& options) const {
    const MoeShape& shape = block_.shape;
    const auto learning = [](const auto& part) {
      return typename BlockAdapters<Scalar>::Learning{part.dropout, part.seed};
    };
    BlockAdapters<Scalar> adapters{.of_router = learning(options.router),
                                   .of_experts = learning(options.experts),
                                   .of_shared = learning(options.shared)};
    const auto make_router = [&](std::uint64_t seed) {
      return make_adapter<Scalar>(outputs_of_router(), shape.d_model, options.router.rank, options.router.alpha, seed);
    };
    adapters.router = make_router(options.router.seed);
    if (block_.is_by_modality()) adapters.second_router = make_router(options.router.seed + 1);
    const auto add_experts = [&](Index count, Index d, Index ff, const HiddenActivation& hidden,
                                 const LoraBankOptions& its) {
      auto made = make_adapters<Scalar>(count, d, ff, is_gated(hidden), its);
      std::ranges::move(made, std::back_inserter(adapters.experts));
    };
    LoraBankOptions routed = options.experts, others = options.experts;
    others.seed += 2;
    if (const Index n = shape.num_experts; std::ssize(routed.expert_ranks) == n + block_.num_others()) {
      routed.expert_ranks.resize(std::size_t(n));
      others.expert_ranks.erase(others.expert_ranks.begin(), others.expert_ranks.begin() + n);
    }
    add_experts(shape.num_experts, shape.d_latent > 0 ? shape.d_latent : shape.d_model, shape.d_ff, shape.hidden,
                routed);
    if (const OtherExperts its = other_experts(); its.count > 0) {
      add_experts(its.count, shape.d_model, its.d_ff, shape.hidden_shared, others);
    }
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
      BlockAdapterReader<Scalar> reader(file, block_.tensors, names[i], block_.names, block_.shape, outputs_of_router(),
                                        other_experts());
      if (i == 0) {
        all = reader.read();
      } else {
        add_to(all, reader.read(), utf8(file.folder));
      }
    }
    return beside(std::move(all));
  }

 private:
  /// Of each router, where there are several.
  Index outputs_of_router() const { return block_.num_outputs() / (block_.is_by_modality() ? 2 : 1); }

  OtherExperts other_experts() const {
    const Index count = block_.num_others();
    return {count, count > 0 ? block_.d_ff_of_others() : 0};
  }

  /// The layer, with these beside its parts.
  Layer beside(BlockAdapters<Scalar> adapters) const {
    return put_together(ToLearnBeside<Scalar>{adapters, block_.config.file(), Base::lending()});
  }

  template <class Make>
  Layer put_together(const Make& make) const {
    auto experts = *ExpertsLoader<Scalar>(block_).load(make);
    Layer layer = AroundLoader<Scalar>(block_).load(make).template layer<Layer>(std::move(experts));
    block_.require_all_read();
    return layer;
  }
};

}  // namespace detail

/// As load_layer(), with a copy of all weights in Scalar, to write, however they are stored.
/// @throws Error as load_layer().
template <class Scalar = float>
TrainableLayer<Scalar> load_trainable_layer(const Model& model, const std::string& prefix) {
  return detail::with_block(model, prefix, nullptr,
                            [](const auto&... block) { return detail::TrainableLayerLoader<Scalar>(block...).load(); });
}

/// As load_layer(), with adapters that learn beside weights that stay in the mapped file, or that a store lends. Of a
/// shared expert's gate
/// there is a copy, which learns too, and which save_adapters() writes beside them.
/// @throws Error as load_layer(), and if no adapters are made beside this kind of layer.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const Model& model, const std::string& prefix,
                                       const LoraLayerOptions& options = {}) {
  return detail::with_block(model, prefix, model.lender(), [&](const auto&... block) {
    return detail::TrainableLayerLoader<Scalar>(block...).load_with_lora(options);
  });
}

/// As load_layer(), with the adapters that folders of PEFT have of it, all at once, under whatever names: fused or of
/// each expert, of the router and of shared experts, or trained in full (modules_to_save). It serves, it learns on, and
/// merged() is without adapters. What the folders have of other parts of the model is left alone:
/// Adapters::beside_blocks(). Of a block that they have nothing of, no adapter. Their layer 3 is blk.3 of a GGUF file.
///
/// A weight that was trained in full is an adapter of full rank beside a router's, and the gate of a shared expert
/// itself. Names of transformers v4 (experts.0.w1) are what they were trained as: each matrix beside its own adapter.
/// @throws Error as load_layer(), and naming the file and the tensor that fits nothing or that nothing takes.
template <class Scalar = float>
TrainableLayer<Scalar> load_lora_layer(const Model& model, const std::string& prefix, const Adapters& adapters) {
  return detail::with_block(model, prefix, model.lender(), [&](const WeightTensors& tensors, const auto&... block) {
    std::vector<std::vector<detail::NameInBlock>> names;
    for (const auto& file : adapters.files()) names.push_back(file.of_block(model, tensors.block()));
    return detail::TrainableLayerLoader<Scalar>(tensors, block...).load_with_lora(adapters, names);
  });
}

}  // namespace moe::inline MOE_TARGET::io
