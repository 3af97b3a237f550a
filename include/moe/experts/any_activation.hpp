/// @file  Activations whose type is known only at run time.
#pragma once

#include <concepts>
#include <string>
#include <utility>
#include <variant>

#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// One of these.
template <class... Acts>
class OneActivation {
 public:
  using Held = std::variant<Acts...>;  ///< All that it can be.

  constexpr OneActivation() = default;

  template <class Act>
    requires(std::same_as<Act, Acts> || ...)
  constexpr OneActivation(Act act) : held_(std::move(act)) {}  ///< Any of Held.

  const Held& held() const { return held_; }

  /// Is it one of this type?
  template <class Act>
  bool is() const {
    return std::holds_alternative<Act>(held_);
  }

  bool operator==(const OneActivation&) const = default;

 private:
  Held held_;
};

}  // namespace detail

/// One of the activations that published models name. Where speed counts, a type of its own is a little faster for tiny
/// experts; for others there is no difference.
class AnyActivation : public detail::OneActivation<Silu, Relu, ReluSquared, Gelu, GeluTanh> {
 public:
  using OneActivation::OneActivation;

  /// Element by element.
  template <class X>
  [[gnu::noinline]] typename X::PlainObject operator()(const Eigen::ArrayBase<X>& x) const {
    return std::visit([&](const auto& act) -> typename X::PlainObject { return act(x.derived()); }, held());
  }
};

/// One of the gated activations that published models name.
class AnyGatedActivation
    : public detail::OneActivation<SwiGlu, GeGlu, GeGluTanh, ReGlu, Glu<ReluSquared>, GptOssGlu, ClampedInputGlu<Silu>,
                                   ClampedOutputGlu<Silu>, SoftcappedSwiGlu> {
 public:
  using OneActivation::OneActivation;

  /// Element by element, of gate and up of one shape.
  template <class G, class U>
  [[gnu::noinline]] typename G::PlainObject operator()(const Eigen::ArrayBase<G>& gate,
                                                       const Eigen::ArrayBase<U>& up) const {
    return std::visit([&](const auto& act) -> typename G::PlainObject { return act(gate.derived(), up.derived()); },
                      held());
  }
};

/// What an expert computes between its layers: gated, or not. SwiGLU, unless something else is said.
using HiddenActivation = std::variant<AnyGatedActivation, AnyActivation>;

/// Has the expert a gate?
constexpr bool is_gated(const HiddenActivation& hidden) { return std::holds_alternative<AnyGatedActivation>(hidden); }

/// Is it SwiGLU, which needs no mention?
inline bool is_swiglu(const HiddenActivation& hidden) {
  return is_gated(hidden) && std::get<AnyGatedActivation>(hidden).is<SwiGlu>();
}

namespace detail {

inline std::string shown(float number) {
  std::string text = std::to_string(number);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

struct NameOfActivation {
  std::string operator()(Silu) const { return "silu"; }
  std::string operator()(Relu) const { return "relu"; }
  std::string operator()(ReluSquared) const { return "relu²"; }
  std::string operator()(Gelu) const { return "gelu"; }
  std::string operator()(GeluTanh) const { return "gelu (tanh)"; }
  std::string operator()(SwiGlu) const { return "SwiGLU"; }
  std::string operator()(GeGlu) const { return "GeGLU"; }
  std::string operator()(GeGluTanh) const { return "GeGLU (tanh)"; }
  std::string operator()(ReGlu) const { return "ReGLU"; }
  std::string operator()(Glu<ReluSquared>) const { return "ReGLU²"; }
  std::string operator()(const GptOssGlu& its) const {
    return "gpt-oss GLU (limit " + shown(its.limit) + ", alpha " + shown(its.alpha) + ")";
  }
  std::string operator()(const ClampedInputGlu<Silu>& its) const {
    return "SwiGLU (inputs within " + shown(its.limit) + ")";
  }
  std::string operator()(const ClampedOutputGlu<Silu>& its) const {
    return "SwiGLU (factors within " + shown(its.limit) + ")";
  }
  std::string operator()(const SoftcappedSwiGlu& its) const {
    return "SwiGLU (soft caps " + shown(its.gate_cap) + " and " + shown(its.up_cap) + ")";
  }
};

}  // namespace detail

/// As tables write it: "SwiGLU", "gpt-oss GLU (limit 7, alpha 1.702)".
inline std::string to_string(const HiddenActivation& hidden) {
  return std::visit([](const auto& any) { return std::visit(detail::NameOfActivation{}, any.held()); }, hidden);
}

}  // namespace moe::inline MOE_TARGET
