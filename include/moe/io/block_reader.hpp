/// @file  One MoE block of a model, as those who load its parts ask for it.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What some weights are stored as.
struct StoredType {
  static constexpr const char* mixed = "mixed";

  std::string name = {};  // or "mixed"
  bool coded = false;     // any of them

  void add(const Tensor& tensor) {
    name = name.empty() || name == tensor.dtype ? tensor.dtype : std::string(mixed);
    coded = coded || tensor.coded != nullptr;
  }
};

/// The settings, names and tensors of one block, and which of its experts are loaded.
class BlockReader {
 public:
  /// @param experts  which of them are loaded, in ascending order; else all
  BlockReader(const WeightTensors& all_tensors, const Config& its_config, const Architecture& architecture,
              const std::optional<std::vector<Index>>& experts)
      : config(its_config),
        names(architecture),
        shape(shape_of(all_tensors, its_config, architecture)),
        tensors((experts ? all_tensors.only(within(*experts, 0, shape.num_experts)) : all_tensors)
                    .with_spare(shape.num_zero_experts)),
        others(experts ? within(*experts, shape.num_experts, num_outputs()) : std::vector<Index>()),
        all(!experts),
        spelling(find_names(tensors, expert_spellings, architecture.experts, architecture.gated)) {
    if (experts) require_ascending(*experts, num_outputs(), "experts");
  }

  const Config& config;
  const Architecture& names;
  const MoeShape shape;
  const WeightTensors tensors;
  const std::vector<Index> others;  // of those that do not compute, which are loaded
  const bool all;                   // or else the chosen
  const Names spelling;             // of its experts

  Index d() const { return shape.d_model; }
  const TopKOptions& top_k_options() const { return std::get<TopKOptions>(shape.router); }
  bool is_by_modality() const { return detail::is_by_modality(tensors, names); }
  Index num_joint() const { return names.router_kind == RouterKind::joint ? top_k_options().always_chosen : 0; }

  /// Of the router: experts that compute, and others that it may choose.
  Index num_outputs() const {
    return shape.num_experts + shape.num_zero_experts + (names.skips ? 1 : 0) + num_joint() +
           (is_by_modality() ? shape.num_experts : 0);
  }

  /// How many others of them compute, beside those that the router chooses.
  Index num_others() const { return is_by_modality() ? shape.num_experts : num_joint(); }
  Index d_ff_of_others() const { return is_by_modality() ? config.integer_in_list(names.d_ff, 1) : shape.d_ff; }

  /// Whether weights of experts are read at all: there may be only such as do not compute.
  bool has_experts() const { return all || tensors.num_read() > 0; }

  // ---- numbers

  template <class Scalar>
  Vector<Scalar> vector_if(bool has, std::string_view name, const std::vector<Index>& sizes) const {
    return has ? finite<Scalar>(name, sizes) : Vector<Scalar>();
  }

  /// The numbers of what chooses experts, or weighs or shifts their answers: with a NaN among them nothing would look
  /// wrong, but for an expert that is never chosen.
  template <class Scalar>
  Vector<Scalar> finite(std::string_view name, const std::vector<Index>& sizes) const {
    const Vector<Scalar> numbers = tensors.copy<Scalar>(name, sizes);
    for (Index i = 0; i < numbers.size(); ++i) {
      if (std::isfinite(numbers(i))) continue;
      fail(to_string(tensors.at(name)), " holds ", numbers(i), " at ", i, " of ", numbers.size(),
           ", expected finite numbers: the file is damaged, or was saved by a run that diverged");
    }
    return numbers;
  }

  // ---- types of weights

  Tensor first_expert() const {
    return tensors.at(expert_tensor(spelling.gate.empty() ? spelling.up : spelling.gate, 0));
  }

  /// Of the experts' weights.
  const StoredType& type_of_experts() const {
    if (!type_) type_ = found_type();
    return *type_;
  }

  /// Of such of these as there are.
  template <class Scalar>
  StoredType type_of(const std::vector<std::string>& some) const {
    StoredType type;
    for (const std::string& name : some) {
      if (!name.empty() && tensors.contains(name)) type.add(*tensors.find(name));
    }
    if (type.name.empty()) type.name = dtype_name<Scalar>;
    return type;
  }

  /// f(W()), where weights are of type W: as they are stored; of several types Quantized if any of them is coded, and
  /// else float.
  template <class Scalar, class F>
  auto with_weight_type(const StoredType& type, const Tensor& tensor, const F& f) const {
    if constexpr (std::is_same_v<Scalar, double>) {
      if (type.name == dtype_name<double>) return f(double());
      fail(to_string(tensor), " has dtype ", type.name, ", expected F64 for a layer of double");
    } else {
      if (type.coded) return f(Quantized());
      if (type.name == dtype_name<bfloat16>) return f(bfloat16());
      if (type.name == dtype_name<float16>) return f(float16());
      if (type.name == dtype_name<float> || type.name == StoredType::mixed) return f(float());
      fail(to_string(tensor), " has dtype ", type.name, ", expected F32, BF16 or F16", why_not_read(type.name));
    }
  }

  /// The same, as a make wants them.
  template <class Scalar, class Make, class F>
  auto with_type_for(const Make&, const StoredType& type, const Tensor& tensor, const F& f) const {
    if constexpr (Make::widens) {
      return f(Scalar());
    } else {
      return with_weight_type<Scalar>(type, tensor, f);
    }
  }

  /// @throws Error if a tensor or a setting of the block is left over.
  void require_all_read() const {
    tensors.ignore(names.ignored);
    if (!names.shared_gate.empty() && shape.d_ff_shared == 0) tensors.ignore(names.shared_gate);
    const auto left = tensors.unread(names.scope);
    if (!left.empty()) {
      fail(to_string(left[0]), " is of the block \"", tensors.block(), "\", and a layer of model_type \"",
           config.text("model_type"), "\" with these settings has nothing that reads it",
           left.size() > 1 ? ", nor " + std::to_string(left.size() - 1) + " others" : "",
           ": to leave it out would change what the layer computes");
    }
    require_no_other_settings(config, names);
  }

 private:
  /// One part of a block may lie by itself: ERNIE 4.5 VL's "text_moe", beside which the shared expert is.
  static MoeShape shape_of(const WeightTensors& of, const Config& said, const Architecture& architecture) {
    MoeShape its = moe_shape(said, architecture, of.block());
    if (is_part_of_block(of, architecture)) its.d_ff_shared = 0;
    return its;
  }

  /// Those in [first, end), numbered from 0.
  static std::vector<Index> within(const std::vector<Index>& experts, Index first, Index end) {
    std::vector<Index> some;
    for (const Index e : experts) {
      if (e >= first && e < end) some.push_back(e - first);
    }
    return some;
  }

  /// How many tensors there are of a pattern, of experts that are read: at least one.
  Index num_tensors() const { return spelling.layout == Layout::separate ? std::max<Index>(tensors.num_read(), 1) : 1; }
  std::string expert_tensor(std::string_view pattern, Index i) const {
    if (spelling.layout != Layout::separate) return std::string(pattern);
    return WeightTensors::numbered(pattern, tensors.num_read() > 0 ? tensors.expert(i) : 0);
  }

  StoredType found_type() const {
    StoredType type;
    type.add(first_expert());
    for (const std::string_view pattern : {spelling.gate, spelling.up, spelling.down}) {
      if (pattern.empty()) continue;
      for (Index i = 0; i < num_tensors(); ++i) {
        const Tensor* const tensor = spelling.layout == Layout::separate && tensors.num_read() > 0
                                         ? tensors.find(pattern, tensors.expert(i))
                                         : tensors.find(expert_tensor(pattern, i));
        if (tensor == nullptr) break;  // whoever reads it will say so
        type.add(*tensor);
      }
    }
    return type;
  }

  mutable std::optional<StoredType> type_;  // of experts, once it was asked for
};

}  // namespace moe::inline MOE_TARGET::io::detail
