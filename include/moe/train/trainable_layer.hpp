/// @file  A layer that learns, of a type known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/named_adapters.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// By these names a member finds the functions beside a layer, and not itself.
template <class... Args>
void call_forward(Args&&... args) {
  forward(std::forward<Args>(args)...);
}
template <class... Args>
void call_backward(Args&&... args) {
  backward(std::forward<Args>(args)...);
}

}  // namespace detail

/// Any layer with a tape_of(), forward(), backward() and visit_parameters(), beside its gradients and its tape: what a
/// model holds of each of its layers while it learns.
template <class Scalar_>
class TrainableLayer {
 public:
  using Scalar = Scalar_;

  template <class L>
    requires std::same_as<typename L::Scalar, Scalar>
  explicit TrainableLayer(L layer) : held_(std::make_unique<Held<L>>(std::move(layer))) {}

  Index d_model() const { return held_->d_model(); }

  /// y = layer(x), to be followed by a backward() for the same x.  Both (d_model × n_tokens).
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, ExecutorRef executor = Serial{}) {
    held_->forward(x, y, executor);
  }

  /// Adds to gradients(), and to d_x, what ∂L/∂y makes of them: once after each forward(), with the same x.
  void backward(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x,
                ExecutorRef executor = Serial{}) {
    held_->backward(x, d_y, d_x, executor);
  }

  const std::vector<Parameter<Scalar>>& parameters() const { return held_->parameters; }
  const std::vector<Parameter<Scalar>>& gradients() const { return held_->gradients; }

  /// What the layer holds beside, that never learns.
  const std::vector<AnyParameter>& frozen_parameters() const { return held_->frozen; }

  /// Its adapters, to be saved or loaded.
  /// @param name  of the layer in its model: "model.layers.3.mlp"
  std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) { return held_->named_adapters(name); }

  /// Side inputs and numerics to set; the routing of the last forward() to read.
  Workspace<Scalar>& workspace() { return held_->workspace(); }

  /// (num_experts × n_tokens) where losses add ∂L/∂logits between forward() and backward(); empty without a router.
  Eigen::Map<Matrix<Scalar>> logit_gradient() { return held_->logit_gradient(); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, ExecutorRef executor) = 0;
    virtual void backward(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x,
                          ExecutorRef executor) = 0;
    virtual Workspace<Scalar>& workspace() = 0;
    virtual Eigen::Map<Matrix<Scalar>> logit_gradient() = 0;
    virtual std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) = 0;

    std::vector<Parameter<Scalar>> parameters, gradients;
    std::vector<AnyParameter> frozen;
  };

  template <class L>
  struct Held final : Interface {
    explicit Held(L its_layer) : layer(std::move(its_layer)), gradient(zeros_like(layer)), tape(tape_of(layer)) {
      Interface::parameters = moe::parameters(layer);
      Interface::gradients = moe::parameters(gradient);
      Interface::frozen = moe::frozen_parameters(layer);
    }
    Index d_model() const override { return layer.d_model(); }
    void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, ExecutorRef executor) override {
      detail::call_forward(layer, x, y, tape, executor);
    }
    void backward(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x,
                  ExecutorRef executor) override {
      detail::call_backward(layer, x, d_y, tape, d_x, gradient, executor);
    }
    Workspace<Scalar>& workspace() override { return tape.workspace(); }
    Eigen::Map<Matrix<Scalar>> logit_gradient() override { return tape.logit_gradient(); }
    std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) override {
      return moe::named_adapters(name, layer);
    }

    L layer, gradient;
    decltype(tape_of(std::declval<const L&>())) tape;
  };

  std::unique_ptr<Interface> held_;
};

}  // namespace moe::inline MOE_TARGET
