/// @file  A layer whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/types.hpp"
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

/// Any Layer of this Scalar behind one type, as a model with layers of several kinds holds them. Copies share the
/// layer.
template <class Scalar_>
class AnyLayer : public ShortForwards<AnyLayer<Scalar_>> {
 public:
  using Scalar = Scalar_;

  /// Moves the layer in; copies of this share it.
  template <Layer L>
    requires(!std::same_as<L, AnyLayer> && std::same_as<typename L::Scalar, Scalar>)
  AnyLayer(L layer) : held_(std::make_shared<Held<L>>(std::move(layer))) {}

  Index d_model() const { return held_->d_model(); }

  /// As the layer's own.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    held_->forward(x, y, ws, executor);
  }
  using ShortForwards<AnyLayer>::forward;

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
                         ExecutorRef executor) const = 0;
  };

  template <class L>
  struct Held final : Interface {
    explicit Held(L its_layer) : layer(std::move(its_layer)) {}
    Index d_model() const override { return layer.d_model(); }
    void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
                 ExecutorRef executor) const override {
      layer.forward(x, y, ws, executor);
    }
    L layer;
  };

  std::shared_ptr<const Interface> held_;
};

}  // namespace moe::inline MOE_TARGET
