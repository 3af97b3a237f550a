/// @file  The experts of a block, by the layout in which its tensors lie.
#pragma once

#include <algorithm>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/block_reader.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/lending.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Makes the experts of a block, and FFNs that lie beside them.
template <class Scalar>
class ExpertsLoader {
 public:
  explicit ExpertsLoader(const BlockReader& block) : block_(block) {}

  /// Those that the router chooses, and others that it weighs; nothing if none of them are asked for.
  template <class Make>
  std::optional<typename Make::Experts> load(const Make& make) const {
    const bool compute = block_.tensors.num_read() > 0;
    std::optional<typename Make::Experts> others;
    if (const Index count = block_.all ? block_.num_outputs() - block_.shape.num_experts : std::ssize(block_.others);
        count > 0) {
      if (block_.names.router_kind == RouterKind::joint) {
        others = joint_experts(make);
      } else if (block_.is_by_modality()) {
        others = experts_of_images(make);
      } else if (block_.names.skips) {
        others = ExpertList(std::vector(std::size_t(count), ZeroExpert<Scalar>{block_.d()}));
      } else {
        others = ExpertList(std::vector(std::size_t(count), CopyExpert<Scalar>{block_.d()}));
      }
    }
    if (!compute) return others;
    auto computing =
        block_.with_type_for<Scalar>(make, block_.type_of_experts(), block_.first_expert(), [&]<class W>(W) {
          return any_bank<W>(make, block_.tensors, block_.spelling, block_.shape.hidden, ExpertsOf::routed);
        });
    if (!others) return computing;
    return JoinedExperts(std::move(computing), *std::move(others));
  }

  /// The FFN below one of these prefixes, of this width.
  template <class Make>
  typename Make::Experts any_ffn(const Make& make, std::string_view prefixes, Index ff, const HiddenActivation& hidden,
                                 bool biased) const {
    const Names names = find_names(block_.tensors, ffn_spellings, prefixes, is_gated(hidden));
    const StoredType type = block_.type_of<Scalar>({names.gate, names.up, names.down});
    return block_.with_type_for<Scalar>(make, type, block_.tensors.at(names.up), [&]<class W>(W) {
      constexpr ExpertsOf of = ExpertsOf::shared;
      if (is_swiglu(hidden)) return make.experts(ffn<W, SwiGlu>(names, ff, hidden, biased), of);
      if (is_gated(hidden)) return make.experts(ffn<W, AnyGatedActivation>(names, ff, hidden, biased), of);
      return make.experts(ffn<W, AnyActivation>(names, ff, hidden, biased), of);
    });
  }

  /// Experts by names of any layout, of one type of weights and of activation.
  template <class W, class Act>
  FfnBank<W, Act> bank(const WeightTensors& tensors, const Names& names, const HiddenActivation& hidden,
                       Index width = 0) const {
    const Index in = block_.shape.d_latent > 0 ? block_.shape.d_latent : block_.d(),
                ff = width > 0 ? width : block_.shape.d_ff;
    const auto [gate, up, down] = ffn_parts(names.layout, in, ff, is_turned(tensors, names, in, ff),
                                            names.interleaved || block_.names.interleaved);
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

  /// The shared expert, likewise.
  template <class W, class Act>
  FfnBank<W, Act> shared() const {
    return ffn<W, Act>(
        find_names(block_.tensors, ffn_spellings, block_.names.shared, is_gated(block_.shape.hidden_shared)),
        block_.shape.d_ff_shared, block_.shape.hidden_shared, block_.shape.expert_bias);
  }

 private:
  /// The second half of those that the file numbers through, of another width.
  template <class Make>
  typename Make::Experts experts_of_images(const Make& make) const {
    const Index n = block_.shape.num_experts;
    const WeightTensors tensors = block_.tensors.of_others(n, n).only(block_.all ? all_of(n) : block_.others);
    return block_.with_type_for<Scalar>(make, block_.type_of_experts(), block_.first_expert(), [&]<class W>(W) {
      return any_bank<W>(make, tensors, block_.spelling, block_.shape.hidden, ExpertsOf::others,
                         block_.d_ff_of_others());
    });
  }

  /// Shared experts that the router weighs.
  template <class Make>
  typename Make::Experts joint_experts(const Make& make) const {
    const WeightTensors tensors =
        block_.tensors.of_others(0, block_.num_joint()).only(block_.all ? all_of(block_.num_joint()) : block_.others);
    const Names names = find_names(tensors, expert_spellings, block_.names.shared, true);
    const StoredType type = block_.type_of<Scalar>({names.gate, names.up, names.down});
    return block_.with_type_for<Scalar>(make, type, tensors.at(names.up), [&]<class W>(W) {
      return any_bank<W>(make, tensors, names, block_.shape.hidden_shared, ExpertsOf::others);
    });
  }

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
    if (!there(up) && !there(down) && !block_.names.always_biased) return {};
    if (names.layout != Layout::fused) {
      if (names.gate.empty()) return {.up = each(names.up, ff), .down = each(names.down, in)};
      return {.gate = each(names.gate, ff), .up = each(names.up, ff), .down = each(names.down, in)};
    }
    const Matrix<Scalar> both = each(names.up, 2 * ff);
    const FfnParts parts = ffn_parts(names.layout, in, ff, false, names.interleaved || block_.names.interleaved);
    return {.gate = both(Eigen::seqN(parts.gate.first, ff, parts.gate.step), every),
            .up = both(Eigen::seqN(parts.up.first, ff, parts.up.step), every),
            .down = each(names.down, in)};
  }

  template <class W, class Act>
  FfnBank<W, Act> ffn(const Names& names, Index ff, const HiddenActivation& hidden, bool biased) const {
    const auto bias = [&](const std::string& weight, Index size) {
      return biased ? Matrix<Scalar>(block_.tensors.copy<Scalar>(bias_name(weight), {size})) : Matrix<Scalar>();
    };
    const auto down = [&] { return block_.tensors.single<W>(names.down, block_.d(), ff, 0, block_.d()); };
    if constexpr (std::is_same_v<Act, AnyActivation>) {
      return {block_.tensors.single<W>(names.up, ff, block_.d(), 0, ff),
              down(),
              activation<Act>(hidden),
              {.up = bias(names.up, ff), .down = bias(names.down, block_.d())}};
    } else {
      if (names.layout == Layout::fused) {
        return {block_.tensors.single<W>(names.up, 2 * ff, block_.d(), 0, ff),
                block_.tensors.single<W>(names.up, 2 * ff, block_.d(), ff, ff), down(), activation<Act>(hidden)};
      }
      return {block_.tensors.single<W>(names.gate, ff, block_.d(), 0, ff),
              block_.tensors.single<W>(names.up, ff, block_.d(), 0, ff),
              down(),
              activation<Act>(hidden),
              {.gate = bias(names.gate, ff), .up = bias(names.up, ff), .down = bias(names.down, block_.d())}};
    }
  }

  const BlockReader& block_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
