/// @file  Puts layers together from tensors of every layout and type.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/normed_experts.hpp"
#include "moe/experts/projection.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/leased_bank.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/mlp_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_k_by_modality.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Which experts of a block: those that the router chooses, others that it weighs or that see other tokens, and the
/// shared one.
enum class ExpertsOf { routed, others, shared };

/// The experts of a block as a store lends them, if one does.
struct Lending {
  const WeightTensors* block = nullptr;
  Index num_routed = 0;

  bool is_on() const { return block != nullptr && block->lender() != nullptr; }

  /// A bank of which a store holds the experts.
  template <class W, class Act>
  LeasedBank<W, Act> leased(FfnBank<W, Act> bank, ExpertsOf of) const {
    std::vector<Index> numbers;
    for (Index e = 0; e < bank.num_experts(); ++e) {
      numbers.push_back(of == ExpertsOf::routed ? block->expert(e) : num_routed + e);
    }
    return LeasedBank<W, Act>(std::move(bank), block->lender(), block->block(), numbers);
  }

  /// What stays: the bank of a shared expert, a projection.
  template <class Part>
  Part resident(Part part) const {
    return is_on() ? kept(std::move(part), *block->lender()) : std::move(part);
  }
};

/// A bank as layers that serve hold it: all kernels of W and Act, of which a library compiles some types at a time.
template <class W, class Act, class BuiltAs>
AnyExperts<ActivationScalar<W>> served(FfnBank<W, Act> bank, const Lending& lending, ExpertsOf of) {
  if (of == ExpertsOf::shared || !lending.is_on()) return lending.resident(std::move(bank));
  return lending.leased(std::move(bank), of);
}

/// Layers that serve are made of parts as they are read. How to make others, that learn, is said in
/// train/io/checkpoint.hpp.
template <class Scalar>
struct ToServe {
  using Router = AnyRouter<Scalar>;
  using Experts = AnyExperts<Scalar>;
  static constexpr bool widens = false;  // all weights to Scalar

  Lending lending{};

  template <class R>
  Router router(R router) const {
    return router;
  }
  template <class W, class Act>
  Experts experts(FfnBank<W, Act> bank, ExpertsOf of) const {
    return served<W, Act, Flags>(std::move(bank), lending, of);
  }
  template <class W>
  auto projection(Projection<W> projection, bool /*goes_in*/) const {
    return lending.resident(std::move(projection));
  }
  /// A vector, whose parameter is called so, that is no router's.
  Vector<Scalar> vector(const char* /*parameter*/, Vector<Scalar> numbers) const { return numbers; }
};

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
    requires std::same_as<Make, ToServe<Scalar>>
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

/// Builds the parts of one MoE block.
template <class Scalar>
class LayerLoader {
 protected:
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

 public:
  /// @param experts  which of them, in ascending order; else all
  LayerLoader(const WeightTensors& tensors, const Config& config, const Architecture& architecture,
              const std::optional<std::vector<Index>>& experts = {})
      : config_(config),
        names_(architecture),
        shape_(shape_of(tensors, config, architecture)),
        tensors_((experts ? tensors.only(within(*experts, 0, shape_.num_experts)) : tensors)
                     .with_spare(shape_.num_zero_experts)),
        others_(experts ? within(*experts, shape_.num_experts, num_outputs()) : std::vector<Index>()),
        all_(!experts),
        spelling_(find_names(tensors_, expert_spellings, architecture.experts, architecture.gated)) {
    if (experts) require_ascending(*experts, num_outputs(), "experts");
  }

  /// @throws Error if a tensor or a setting of the block is left over.
  LayerParts<Scalar> load() const {
    if (all_ || tensors_.num_read() > 0) with_weight_type([](auto) {});  // complaints of a type come first
    const ToServe<Scalar> make{lending()};
    auto assemble = around(make);  // then those of a router
    LayerParts<Scalar> parts{experts(make), std::move(assemble), shape_, std::string(config_.text("model_type")),
                             dtype()};
    if (all_ || tensors_.num_read() > 0) require_all_read();
    return parts;
  }

  const MoeShape& shape() const { return shape_; }

  /// The FFN of this name below the block, with what its tensors say of its width and biases.
  AnyLayer<Scalar> dense_ffn(const std::string& name) const {
    const std::string prefix = name + '.';
    const Names names = find_names(tensors_, ffn_spellings, prefix, is_gated(shape_.hidden_shared));
    const Tensor down = tensors_.at(names.down);
    if (down.shape.size() != 2) fail(to_string(down), " has shape ", to_string(down.shape), ", expected a matrix");
    const bool biased = tensors_.contains(bias_name(names.down));
    return DenseLayer(any_ffn(ToServe<Scalar>(), prefix, down.shape[1], shape_.hidden_shared, biased));
  }

  /// Of the experts' weights: of the first one's, or "mixed".
  const std::string& dtype() const { return type_of_experts().name; }

 protected:
  Lending lending() const { return {&tensors_, shape_.num_experts}; }

  /// What some weights are stored as.
  struct StoredType {
    std::string name = {};  // or "mixed"
    bool coded = false;     // any of them

    void add(const Tensor& tensor) {
      name = name.empty() || name == tensor.dtype ? tensor.dtype : std::string(mixed);
      coded = coded || tensor.coded != nullptr;
    }
  };

  const StoredType& type_of_experts() const {
    if (!type_) type_ = found_type();
    return *type_;
  }

  StoredType found_type() const {
    StoredType type;
    type.add(first_expert());
    for (const std::string_view pattern : {spelling_.gate, spelling_.up, spelling_.down}) {
      if (pattern.empty()) continue;
      for (Index i = 0; i < num_tensors(); ++i) {
        const Tensor* const tensor = spelling_.layout == Layout::separate && tensors_.num_read() > 0
                                         ? tensors_.find(pattern, tensors_.expert(i))
                                         : tensors_.find(expert_tensor(pattern, i));
        if (tensor == nullptr) break;  // whoever reads it will say so
        type.add(*tensor);
      }
    }
    return type;
  }

  /// f(W()), where weights are of type W: as they are stored; of several types Quantized if any of them is coded, and
  /// else float.
  template <class F>
  auto with_weight_type(const StoredType& type, const Tensor& tensor, const F& f) const {
    if constexpr (std::is_same_v<Scalar, double>) {
      if (type.name == dtype_name<double>) return f(double());
      fail(to_string(tensor), " has dtype ", type.name, ", expected F64 for a layer of double");
    } else {
      if (type.coded) return f(Quantized());
      if (type.name == dtype_name<bfloat16>) return f(bfloat16());
      if (type.name == dtype_name<float16>) return f(float16());
      if (type.name == dtype_name<float> || type.name == mixed) return f(float());
      fail(to_string(tensor), " has dtype ", type.name, ", expected F32, BF16 or F16", why_not_read(type.name));
    }
  }
  template <class F>
  auto with_weight_type(const F& f) const {
    return with_weight_type(type_of_experts(), first_expert(), f);
  }
  /// The same, as a make wants them.
  template <class Make, class F>
  auto with_type_for(const Make&, const StoredType& type, const Tensor& tensor, const F& f) const {
    if constexpr (Make::widens) {
      return f(Scalar());
    } else {
      return with_weight_type(type, tensor, f);
    }
  }

  template <class Make>
  Around<Scalar, Make> around(const Make& make) const {
    using Experts = typename Make::Experts;
    Around<Scalar, Make> all{router(make), [](Experts experts) { return experts; }};
    if (has_expert_norm())
      all.dressed = [norm = expert_norm(make)](Experts experts) -> Experts {
        return NormedExperts(std::move(experts), norm);
      };
    if (shape_.d_latent > 0) {
      all.dressed = [project = latent(make), dressed = std::move(all.dressed)](Experts experts) {
        return project(dressed(std::move(experts)));
      };
    }
    if (shape_.d_ff_shared > 0) {
      all.shared = any_ffn(make, names_.shared, shape_.d_ff_shared, shape_.hidden_shared, shape_.expert_bias);
      all.shared_gate = make.vector("shared_expert_gate.weight", shared_gate());
    }
    all.is_affine = has_affine_output();
    if (all.is_affine) {
      all.scale = output_scale();
      all.bias = make.vector("bias", output_bias());
    }
    if (!names_.output_norm.empty()) all.norm = output_norm(make);
    return all;
  }

  /// A.X K1's.
  template <class Make>
  RmsNorm<Scalar> output_norm(const Make& make) const {
    return RmsNorm<Scalar>(make.vector("post_mlp_layernorm.weight", finite(names_.output_norm, {d()})),
                           {.epsilon = config_.number("rms_norm_eps")});
  }

  /// Muse Spark's, whose gains are stored without their 1, and multiplied before the norm.
  template <class Make>
  RmsNorm<Scalar> expert_norm(const Make& make) const {
    return RmsNorm<Scalar>(make.vector("experts.post_expert_norm.weight",
                                       finite(names_.expert_norm, {shape_.d_latent > 0 ? shape_.d_latent : d()})),
                           {.epsilon = config_.number("post_norm_eps"), .offset = 1, .gain_on = GainOn::input});
  }

  bool has_affine_output() const { return !names_.output_bias.empty() || output_scale() != 1; }
  Scalar output_scale() const { return names_.output_scale ? Scalar(names_.output_scale(config_)) : Scalar(1); }
  Vector output_bias() const { return vector_if(!names_.output_bias.empty(), names_.output_bias, {d()}); }

  // ---- the router

  template <class Make>
  typename Make::Router router(const Make& make) const {
    if (const auto* const mixer = std::get_if<SparseMixerOptions>(&shape_.router)) {
      return make.router(SparseMixer<Scalar>(router_weight(), *mixer));
    }
    if (names_.router_kind == RouterKind::normed) return make.router(normed_top_k());
    if (is_hashed()) return make.router(hash());
    if (is_by_modality()) return make.router(top_k_by_modality());
    if (names_.router_kind == RouterKind::carried) return make.router(mlp_top_k());
    if (names_.router_kind == RouterKind::joint) return make.router(joint_top_k());
    if (const LogitShape shape = logit_shape(); shape.multiplier != 1 || shape.soft_cap != 0) {
      return make.router(ShapedTopK<Scalar>(router_weight(), top_k_options(), shape, router_bias(), selection_bias()));
    }
    if (names_.capacity == nullptr) return make.router(top_k());
    return make.router(WithCapacity(top_k(), names_.capacity(config_)));
  }

  /// A copy in Scalar: routers decide in full precision, and are small.
  Weight<Scalar> router_weight() const {
    const Vector numbers = finite(names_.router, {num_outputs(), d()});
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), num_outputs(), d());
  }

  LogitShape logit_shape() const {
    return {.multiplier = names_.logit_scale ? names_.logit_scale(config_) : 1,
            .soft_cap = names_.logit_cap ? names_.logit_cap(config_) : 0};
  }

  /// Its weights are multiplied by a number that was learned, too.
  LinearTopK<Scalar> joint_top_k() const {
    TopKOptions options = top_k_options();
    options.scale *= double(finite("gate.global_scale", {1})(0));
    return {router_weight(), options, router_bias(), selection_bias()};
  }

  Vector router_bias() const { return vector_if(shape_.router_bias, names_.router_bias, {num_outputs()}); }

  LinearTopK<Scalar> top_k() const { return {router_weight(), top_k_options(), router_bias(), selection_bias()}; }

  const TopKOptions& top_k_options() const { return std::get<TopKOptions>(shape_.router); }

  Vector selection_bias() const {
    if (!shape_.selection_bias) return {};
    const Index size = num_outputs() - top_k_options().always_chosen;
    return finite(names_.selection_bias,
                  names_.selection_bias_is_a_row ? std::vector<Index>{1, size} : std::vector{size});
  }

  NormedTopK<Scalar> normed_top_k() const {
    return {router_weight(), finite("router.scale", {d()}), finite("router.per_expert_scale", {num_outputs()}),
            top_k_options(), config_.number("rms_norm_eps")};
  }

  bool is_by_modality() const { return detail::is_by_modality(tensors_, names_); }

  /// ERNIE 4.5 VL's, whose weights the hub's files store (in × out).
  TopKByModality<Scalar> top_k_by_modality() const {
    const Index n = shape_.num_experts;
    const Vector biases = finite(names_.selection_bias, {2, n});
    const auto of = [&](std::string_view name, Index which) {
      const Vector numbers = finite(name, {d(), n});
      const Weight<Scalar> stored = Eigen::Map<const Weight<Scalar>>(numbers.data(), d(), n);
      return LinearTopK<Scalar>(stored.transpose(), top_k_options(), {}, biases.segment(which * n, n));
    };
    return TopKByModality<Scalar>({of(names_.router, 0), of(second_modality, 1)});
  }

  /// ZAYA's: the first layer hears none before it, and has no scale. All else is in each.
  MlpTopK<Scalar> mlp_top_k() const {
    const Tensor down = tensors_.at("gate.down_proj.weight");
    const Index size = config_.integer("router_hidden_size");
    require_shape(down, {size, d()});
    const auto matrix = [&](std::string_view name, Index rows, Index cols) -> Weight<Scalar> {
      const Vector numbers = finite(name, {rows, cols});
      return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
    };
    const auto vector = [&](std::string_view name) { return finite(name, {size}); };
    const std::string_view scale = "gate.router_states_scale";
    return {{.down = matrix("gate.down_proj.weight", size, d()),
             .down_bias = vector("gate.down_proj.bias"),
             .state_scale = vector_if(tensors_.contains(scale), scale, {size}),
             .norm_scale = vector("gate.router_mlp.norm.weight"),
             .fc1 = matrix("gate.router_mlp.fc1.weight", size, size),
             .fc1_bias = vector("gate.router_mlp.fc1.bias"),
             .fc2 = matrix("gate.router_mlp.fc2.weight", size, size),
             .fc2_bias = vector("gate.router_mlp.fc2.bias"),
             .out = matrix(names_.router, num_outputs(), size)},
            top_k_options(),
            selection_bias(),
            config_.number("rms_norm_eps")};
  }

  bool is_hashed() const { return names_.router_kind == RouterKind::hashed && tensors_.contains("gate.tid2eid"); }
  bool has_expert_norm() const { return !names_.expert_norm.empty(); }

  TokenHash<Scalar> hash() const {
    const Tensor table = tensors_.at("gate.tid2eid");
    const auto ids = as<std::int64_t>(table);
    if (table.shape.size() != 2 || table.shape[1] != shape_.top_k) {
      fail(to_string(table), " has shape ", to_string(table.shape), ", expected [vocabulary, ", shape_.top_k, "]");
    }
    HashTable experts(shape_.top_k, table.shape[0]);
    std::ranges::copy(ids, experts.data());
    return {router_weight(), top_k_options(), std::move(experts)};
  }

  // ---- experts

  template <class Make>
  std::optional<typename Make::Experts> experts(const Make& make) const {
    const bool compute = tensors_.num_read() > 0;
    std::optional<typename Make::Experts> others;
    if (const Index count = all_ ? num_outputs() - shape_.num_experts : std::ssize(others_); count > 0) {
      if (names_.router_kind == RouterKind::joint) {
        others = joint_experts(make);
      } else if (is_by_modality()) {
        others = experts_of_images(make);
      } else if (names_.skips) {
        others = ExpertList(std::vector(std::size_t(count), ZeroExpert<Scalar>{d()}));
      } else {
        others = ExpertList(std::vector(std::size_t(count), CopyExpert<Scalar>{d()}));
      }
    }
    if (!compute) return others;
    auto computing = with_type_for(make, type_of_experts(), first_expert(), [&]<class W>(W) {
      return any_bank<W>(make, tensors_, spelling_, shape_.hidden, ExpertsOf::routed);
    });
    if (!others) return computing;
    return JoinedExperts(std::move(computing), *std::move(others));
  }

  /// The second half of those that the file numbers through, of another width.
  template <class Make>
  typename Make::Experts experts_of_images(const Make& make) const {
    const Index n = shape_.num_experts;
    const WeightTensors tensors = tensors_.of_others(n, n).only(all_ ? all_of(n) : others_);
    return with_type_for(make, type_of_experts(), first_expert(), [&]<class W>(W) {
      return any_bank<W>(make, tensors, spelling_, shape_.hidden, ExpertsOf::others, d_ff_of_others());
    });
  }

  /// Shared experts that the router weighs.
  template <class Make>
  typename Make::Experts joint_experts(const Make& make) const {
    const WeightTensors tensors = tensors_.of_others(0, num_joint()).only(all_ ? all_of(num_joint()) : others_);
    const Names names = find_names(tensors, expert_spellings, names_.shared, true);
    const StoredType type = type_of({names.gate, names.up, names.down});
    return with_type_for(make, type, tensors.at(names.up), [&]<class W>(W) {
      return any_bank<W>(make, tensors, names, shape_.hidden_shared, ExpertsOf::others);
    });
  }

  /// How many others of them compute, beside those that the router chooses.
  Index num_others() const { return is_by_modality() ? shape_.num_experts : num_joint(); }
  Index d_ff_of_others() const { return is_by_modality() ? config_.integer_in_list(names_.d_ff, 1) : shape_.d_ff; }

  Index num_joint() const { return names_.router_kind == RouterKind::joint ? top_k_options().always_chosen : 0; }

  static std::vector<Index> all_of(Index count) {
    std::vector<Index> all(static_cast<std::size_t>(count));
    std::iota(all.begin(), all.end(), Index(0));
    return all;
  }

  /// SwiGLU has a type of its own, for speed.
  template <class W, class Make>
  typename Make::Experts any_bank(const Make& make, const WeightTensors& tensors, const Names& names,
                                  const HiddenActivation& hidden, ExpertsOf of, Index width = 0) const {
    if (is_swiglu(hidden)) return make.experts(bank<W, SwiGlu>(tensors, names, hidden, width), of);
    if (is_gated(hidden)) return make.experts(bank<W, AnyGatedActivation>(tensors, names, hidden, width), of);
    return make.experts(bank<W, AnyActivation>(tensors, names, hidden, width), of);
  }

  template <class Act>
  static Act activation(const HiddenActivation& hidden) {
    if constexpr (std::is_same_v<Act, SwiGlu>) {
      return {};
    } else {
      return std::get<Act>(hidden);
    }
  }

  template <class W, class Act>
  FfnBank<W, Act> bank(const WeightTensors& tensors, const Names& names, const HiddenActivation& hidden,
                       Index width = 0) const {
    const Index in = shape_.d_latent > 0 ? shape_.d_latent : d(), ff = width > 0 ? width : shape_.d_ff;
    const auto [gate, up, down] =
        ffn_parts(names.layout, in, ff, is_turned(tensors, names, in, ff), names.interleaved || names_.interleaved);
    const auto part = [&](std::string_view name, const StoredPart& which) {
      if (names.layout == Layout::separate) return tensors.separate<W>(name, which.rows, which.cols);
      return names.layout == Layout::rows ? tensors.stacked_rows<W>(name, which) : tensors.stacked<W>(name, which);
    };
    if constexpr (std::is_same_v<Act, AnyActivation>) {
      return {part(names.up, up), part(names.down, down), activation<Act>(hidden), biases(tensors, names, in, ff)};
    } else {
      return {part(names.layout == Layout::fused ? names.up : names.gate, gate), part(names.up, up),
              part(names.down, down), activation<Act>(hidden), biases(tensors, names, in, ff)};
    }
  }

  FfnBiases<Scalar> biases(const WeightTensors& tensors, const Names& names, Index in, Index ff) const {
    const auto each = [&](const std::string& weight, Index size) {
      const std::string name = bias_name(weight);
      return names.layout == Layout::separate ? tensors.separate_columns<Scalar>(name, size)
                                              : tensors.columns<Scalar>(name, size);
    };
    const std::string down = bias_name(names.down), up = bias_name(names.up);
    const auto there = [&](const std::string& name) {
      return tensors.contains(names.layout == Layout::separate && tensors.num_read() > 0
                                  ? WeightTensors::numbered(name, tensors.expert(0))
                                  : name);
    };
    if (!there(up) && !there(down) && !names_.always_biased) return {};
    if (names.layout != Layout::fused) {
      if (names.gate.empty()) return {.up = each(names.up, ff), .down = each(names.down, in)};
      return {.gate = each(names.gate, ff), .up = each(names.up, ff), .down = each(names.down, in)};
    }
    const Matrix<Scalar> both = each(names.up, 2 * ff);
    const FfnParts parts = ffn_parts(names.layout, in, ff, false, names.interleaved || names_.interleaved);
    return {.gate = both(Eigen::seqN(parts.gate.first, ff, parts.gate.step), every),
            .up = both(Eigen::seqN(parts.up.first, ff, parts.up.step), every),
            .down = each(names.down, in)};
  }

  /// From experts of the latent width to experts of the model's.
  template <class Make>
  auto latent(const Make& make) const {
    using Experts = typename Make::Experts;
    const std::string in = full(names_.latent_in), out = full(names_.latent_out);
    const StoredType type = type_of({in + ".weight", out + ".weight"});
    return with_type_for(make, type, tensors_.at(in + ".weight"), [&]<class W>(W) -> std::function<Experts(Experts)> {
      return [in = make.projection(projection<W>(in, shape_.d_latent, d()), true),
              out = make.projection(projection<W>(out, d(), shape_.d_latent), false), norm = latent_norm(make),
              norm_of_answers = norm_of_answers(make)](Experts experts) -> Experts {
        return LatentExperts(in, std::move(experts), out, norm, {}, norm_of_answers);
      };
    });
  }

  template <class W>
  Projection<W> projection(const std::string& name, Index out, Index in) const {
    const bool biased = shape_.expert_bias || tensors_.contains(name + ".bias");
    return Projection<W>(tensors_.single<W>(name + ".weight", out, in, 0, out),
                         biased ? tensors_.copy<Scalar>(name + ".bias", {out}) : Vector());
  }

  /// Muse Spark's, whose gains are stored without their 1.
  template <class Make>
  std::optional<RmsNorm<Scalar>> latent_norm(const Make& make) const {
    if (names_.latent_norm.empty()) return {};
    return RmsNorm<Scalar>(make.vector("latent_norm.weight", finite(names_.latent_norm, {shape_.d_latent})),
                           {.epsilon = config_.number("rms_norm_eps"), .offset = 1});
  }

  /// Kimi K3's.
  template <class Make>
  std::optional<RmsNorm<Scalar>> norm_of_answers(const Make& make) const {
    if (names_.norm_of_answers.empty()) return {};
    return RmsNorm<Scalar>(make.vector("routed_expert_norm.weight", finite(names_.norm_of_answers, {shape_.d_latent})),
                           {.epsilon = config_.number("rms_norm_eps")});
  }

  /// The first of several names whose weight there is.
  std::string full(std::string_view names) const {
    for (const std::string_view name : alternatives(names)) {
      if (tensors_.contains(std::string(name) + ".weight")) return std::string(name);
    }
    return std::string(alternatives(names)[0]);
  }

  // ---- the shared expert, and dense FFNs

  /// The FFN below one of these prefixes, of this width.
  template <class Make>
  typename Make::Experts any_ffn(const Make& make, std::string_view prefixes, Index ff, const HiddenActivation& hidden,
                                 bool biased) const {
    const Names names = find_names(tensors_, ffn_spellings, prefixes, is_gated(hidden));
    const StoredType type = type_of({names.gate, names.up, names.down});
    return with_type_for(make, type, tensors_.at(names.up), [&]<class W>(W) {
      constexpr ExpertsOf of = ExpertsOf::shared;
      if (is_swiglu(hidden)) return make.experts(ffn<W, SwiGlu>(names, ff, hidden, biased), of);
      if (is_gated(hidden)) return make.experts(ffn<W, AnyGatedActivation>(names, ff, hidden, biased), of);
      return make.experts(ffn<W, AnyActivation>(names, ff, hidden, biased), of);
    });
  }

  template <class W, class Act>
  FfnBank<W, Act> ffn(const Names& names, Index ff, const HiddenActivation& hidden, bool biased) const {
    const auto bias = [&](const std::string& weight, Index size) {
      return biased ? Matrix<Scalar>(tensors_.copy<Scalar>(bias_name(weight), {size})) : Matrix<Scalar>();
    };
    const auto down = [&] { return tensors_.single<W>(names.down, d(), ff, 0, d()); };
    if constexpr (std::is_same_v<Act, AnyActivation>) {
      return {tensors_.single<W>(names.up, ff, d(), 0, ff),
              down(),
              activation<Act>(hidden),
              {.up = bias(names.up, ff), .down = bias(names.down, d())}};
    } else {
      if (names.layout == Layout::fused) {
        return {tensors_.single<W>(names.up, 2 * ff, d(), 0, ff), tensors_.single<W>(names.up, 2 * ff, d(), ff, ff),
                down(), activation<Act>(hidden)};
      }
      return {tensors_.single<W>(names.gate, ff, d(), 0, ff),
              tensors_.single<W>(names.up, ff, d(), 0, ff),
              down(),
              activation<Act>(hidden),
              {.gate = bias(names.gate, ff), .up = bias(names.up, ff), .down = bias(names.down, d())}};
    }
  }

  /// Of one type, whatever it is stored in.
  template <class W, class Act>
  FfnBank<W, Act> shared() const {
    return ffn<W, Act>(find_names(tensors_, ffn_spellings, names_.shared, is_gated(shape_.hidden_shared)),
                       shape_.d_ff_shared, shape_.hidden_shared, shape_.expert_bias);
  }

  Vector shared_gate() const { return vector_if(shape_.shared_gate, names_.shared_gate, {1, d()}); }

  // ---- numbers

  Vector vector_if(bool has, std::string_view name, const std::vector<Index>& shape) const {
    return has ? finite(name, shape) : Vector();
  }

  /// The numbers of what chooses experts, or weighs or shifts their answers: with a NaN among them nothing would look
  /// wrong, but for an expert that is never chosen.
  Vector finite(std::string_view name, const std::vector<Index>& shape) const {
    const Vector numbers = tensors_.copy<Scalar>(name, shape);
    for (Index i = 0; i < numbers.size(); ++i) {
      if (std::isfinite(numbers(i))) continue;
      fail(to_string(tensors_.at(name)), " holds ", numbers(i), " at ", i, " of ", numbers.size(),
           ", expected finite numbers: the file is damaged, or was saved by a run that diverged");
    }
    return numbers;
  }

  Index d() const { return shape_.d_model; }
  Index ff() const { return shape_.d_ff; }

  /// Of the router: experts that compute, and others that it may choose.
  Index num_outputs() const {
    return shape_.num_experts + shape_.num_zero_experts + (names_.skips ? 1 : 0) + num_joint() +
           (is_by_modality() ? shape_.num_experts : 0);
  }

  /// Those in [first, end), numbered from 0.
  static std::vector<Index> within(const std::vector<Index>& experts, Index first, Index end) {
    std::vector<Index> some;
    for (const Index e : experts) {
      if (e >= first && e < end) some.push_back(e - first);
    }
    return some;
  }

  // ---- what there is

  /// How many tensors there are of a pattern, of experts that are read: at least one.
  Index num_tensors() const {
    return spelling_.layout == Layout::separate ? std::max<Index>(tensors_.num_read(), 1) : 1;
  }
  std::string expert_tensor(std::string_view pattern, Index i) const {
    if (spelling_.layout != Layout::separate) return std::string(pattern);
    return WeightTensors::numbered(pattern, tensors_.num_read() > 0 ? tensors_.expert(i) : 0);
  }
  Tensor first_expert() const {
    return tensors_.at(expert_tensor(spelling_.gate.empty() ? spelling_.up : spelling_.gate, 0));
  }

  StoredType type_of(const std::vector<std::string>& names) const {
    StoredType type;
    for (const std::string& name : names) {
      if (!name.empty() && tensors_.contains(name)) type.add(*tensors_.find(name));
    }
    if (type.name.empty()) type.name = dtype_name<Scalar>;
    return type;
  }

  void require_all_read() const {
    tensors_.ignore(names_.ignored);
    if (!names_.shared_gate.empty() && shape_.d_ff_shared == 0) tensors_.ignore(names_.shared_gate);
    const auto left = tensors_.unread(names_.scope);
    if (!left.empty()) {
      fail(to_string(left[0]), " is of the block \"", tensors_.block(), "\", and a layer of model_type \"",
           config_.text("model_type"), "\" with these settings has nothing that reads it",
           left.size() > 1 ? ", nor " + std::to_string(left.size() - 1) + " others" : "",
           ": to leave it out would change what the layer computes");
    }
    require_no_other_settings(config_, names_);
  }

  /// One part of a block may lie by itself: ERNIE 4.5 VL's "text_moe", beside which the shared expert is.
  static MoeShape shape_of(const WeightTensors& tensors, const Config& config, const Architecture& architecture) {
    MoeShape shape = moe_shape(config, architecture, tensors.block());
    if (is_part_of_block(tensors, architecture)) shape.d_ff_shared = 0;
    return shape;
  }

  static constexpr const char* mixed = "mixed";

  const Config& config_;
  const Architecture& names_;
  const MoeShape shape_;
  WeightTensors tensors_;
  std::vector<Index> others_;  // of those that do not compute, which are loaded
  bool all_;                   // or else the chosen
  Names spelling_;
  mutable std::optional<StoredType> type_;  // of experts, once it was asked for
};

/// f(weights, config, architecture) of the MoE block below `prefix`.
/// @param lender  who lends its experts; null: they are read
template <class F>
auto with_block(const Model& model, const std::string& prefix, const std::shared_ptr<ExpertLender>& lender,
                const F& f) {
  const std::string block = block_name(model, prefix);
  check_block(model, block);
  try {
    const auto weights = model.weights(block, lender.get());
    return f(WeightTensors(*weights, block, model.shape(block).num_experts).lent_by(lender), model.config(block),
             model.architecture(block));
  } catch (const std::invalid_argument& error) {  // e.g. groups that do not divide the experts
    fail(model.config(block).file(), ": ", error.what());
  }
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const Model& model, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return with_block(model, prefix, model.lender(),
                    [&](const auto&... block) { return LayerLoader<Scalar>(block..., experts).load(); });
}

template <class Scalar, class BuiltAs>
LayerParts<Scalar> load_parts(const std::filesystem::path& folder, const std::string& prefix,
                              const std::optional<std::vector<Index>>& experts) {
  return load_parts<Scalar, BuiltAs>(Model(folder), prefix, experts);
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const Model& model, const std::string& prefix) {
  auto [experts, assemble, shape, model_type, dtype] = load_parts<Scalar, BuiltAs>(model, prefix, std::nullopt);
  return {assemble(*std::move(experts)), shape, std::move(model_type), std::move(dtype)};
}

template <class Scalar, class BuiltAs>
LoadedLayer<Scalar> load_layer(const std::filesystem::path& folder, const std::string& prefix) {
  return load_layer<Scalar, BuiltAs>(Model(folder), prefix);
}

template <class Scalar, class BuiltAs>
AnyLayer<Scalar> load_ffn(const Model& model, const std::string& prefix) {
  const std::string block = block_name(model, prefix);
  const std::size_t dot = block.rfind('.');
  const auto weights = model.weights(block);
  const WeightTensors beside(*weights, dot == block.npos ? "" : block.substr(0, dot), 1);
  try {
    return LayerLoader<Scalar>(beside, model.config(block), model.architecture(block))
        .dense_ffn(dot == block.npos ? block : block.substr(dot + 1));
  } catch (const std::invalid_argument& error) {
    fail(model.config(block).file(), ": ", error.what());
  }
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
