/// @file  A layer whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/detail/erased_call.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// What MoeLayer, DenseLayer and WithSharedExpert have in common: y = layer(x), both (d_model × n_tokens).
template <class L>
concept Layer = requires(const L& layer, const ConstMatrixRef<typename L::Scalar>& x, MatrixRef<typename L::Scalar> y,
                         Workspace<typename L::Scalar>& ws, ExecutorRef executor) {
  { layer.d_model() } -> std::convertible_to<Index>;
  { layer.forward(x, y, ws, executor) } -> std::same_as<void>;
};

namespace detail {

/// What a layer is around, or itself.
template <class L>
auto& innermost(L& layer) {
  if constexpr (requires {
                  { layer.layer().d_model() } -> std::convertible_to<Index>;
                  requires std::is_lvalue_reference_v<decltype(layer.layer())>;
                }) {
    return innermost(layer.layer());
  } else {
    return layer;
  }
}

/// An AnyRouter or AnyExperts of a part, whose owner it keeps; that of an AnyLayer; none of what is neither.
template <class Any, class Owner, class Part>
std::optional<Any> share(const std::shared_ptr<Owner>& owner, Part&& part) {
  using Its = std::remove_reference_t<Part>;
  if constexpr (std::is_same_v<std::remove_cv_t<Its>, std::optional<Any>>) {
    return part;
  } else if constexpr (std::is_lvalue_reference_v<Part> && std::constructible_from<Any, std::shared_ptr<Its>>) {
    return Any(std::shared_ptr<Its>(owner, &part));
  } else {
    return std::nullopt;
  }
}

}  // namespace detail

/// Any Layer of this Scalar behind one type, as a model with layers of several kinds holds them. Copies share the
/// layer.
template <class Scalar_>
class AnyLayer : public ShortForwards<AnyLayer<Scalar_>> {
 public:
  using Scalar = Scalar_;

  /// Moves the layer in; copies of this share it.
  template <Layer L>
    requires(!std::same_as<L, AnyLayer> && std::same_as<typename L::Scalar, Scalar>)
  AnyLayer(L layer) : AnyLayer(std::make_shared<L>(std::move(layer))) {}

  /// The same, of a layer all of whose parts have visit_parameters(): all_parameters(layer), parts<T>(layer).
  template <Layer L>
  static AnyLayer with_parameters(L layer) {
    const auto held = std::make_shared<L>(std::move(layer));
    AnyLayer any(held);
    any.visit_.emplace(held, [](L& its, ParameterVisitor<Scalar>& visit) { visit.in("", its); });
    return any;
  }

  Index d_model() const { return d_model_; }

  /// As the layer's own.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    forward_(x, y, ws, executor);
  }
  using ShortForwards<AnyLayer>::forward;

  /// Its router and its routed experts, whatever stands around them; none of a layer that has none.
  const std::optional<AnyRouter<Scalar>>& router() const { return router_; }
  const std::optional<AnyExperts<Scalar>>& experts() const { return experts_; }

  /// @throws std::invalid_argument unless it was made with_parameters().
  void visit_parameters(ParameterVisitor<Scalar>& visit) const {
    require(visit_.has_value(), "AnyLayer: was made without its parameters, expected AnyLayer::with_parameters(layer)");
    (*visit_)(visit);
  }

 private:
  template <class L>
  explicit AnyLayer(std::shared_ptr<L> layer)
      : d_model_(layer->d_model()),
        forward_(layer, [](const L& its, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
                           ExecutorRef executor) { its.forward(x, y, ws, executor); }) {
    auto& inner = detail::innermost(*layer);
    if constexpr (requires { inner.router(); }) router_ = detail::share<AnyRouter<Scalar>>(layer, inner.router());
    if constexpr (requires { inner.experts(); }) experts_ = detail::share<AnyExperts<Scalar>>(layer, inner.experts());
  }

  Index d_model_;
  detail::ErasedCall<const ConstMatrixRef<Scalar>&, MatrixRef<Scalar>, Workspace<Scalar>&, ExecutorRef> forward_;
  std::optional<detail::ErasedCall<ParameterVisitor<Scalar>&>> visit_;
  std::optional<AnyRouter<Scalar>> router_;
  std::optional<AnyExperts<Scalar>> experts_;
};

}  // namespace moe::inline MOE_TARGET
