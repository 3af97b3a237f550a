/// @file  A layer that learns, of a type known only at run time.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/lora/merged.hpp"
#include "moe/lora/named_adapters.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/detail/calls.hpp"
#include "moe/train/freeze.hpp"
#include "moe/train/parameter_pieces.hpp"

namespace moe::inline MOE_TARGET {

/// Any layer with a tape_of(), forward(), backward() and visit_parameters(), beside its gradients and its tape: what a
/// model holds of each of its layers while it learns.
template <class Scalar_>
class TrainableLayer {
 public:
  using Scalar = Scalar_;

  /// Moves the layer in, and makes gradients of zeros beside it.
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
    held_->follow_adapters();
    held_->backward(x, d_y, d_x, executor);
  }

  /// Both are listed anew, and gradients are zeros, once adapters of other ranks were loaded (adopt_adapters()): an
  /// optimiser of those before must be made anew, too.
  const std::vector<Parameter<Scalar>>& parameters() const {
    held_->follow_adapters();
    return held_->parameters;
  }
  /// Zeros until backward(): one for each of parameters(), in their order. See there.
  const std::vector<Parameter<Scalar>>& gradients() const {
    held_->follow_adapters();
    return held_->gradients;
  }

  /// What the layer holds beside, that never learns.
  const std::vector<AnyParameter>& frozen_parameters() const { return held_->frozen; }

  /// Its adapters, to be saved or loaded.
  /// @param name  of the layer in its model: "model.layers.3.mlp"
  std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) { return held_->named_adapters(name); }

  /// The same layer, to serve: with its adapters added into weights of its own.
  /// @throws std::invalid_argument if it is none that can serve.
  AnyLayer<Scalar> merged() const { return held_->merged(); }

  /// What merged() serves, to be looked through: itself, if it has no adapters, good as long as it neither moves nor
  /// dies; else a copy.
  AnyParts<Scalar> merged_parts() { return held_->merged_parts(); }

  /// What is to be known of its router before it learns; empty if there is nothing. training_report() says it, too.
  const std::string& note() const { return held_->note; }

  /// Side inputs and numerics to set; the routing of the last forward() to read.
  Workspace<Scalar>& workspace() { return held_->workspace(); }

  /// (num_experts × n_tokens) where losses add ∂L/∂logits between forward() and backward(); empty without a router.
  Eigen::Map<Matrix<Scalar>> logit_gradient() { return held_->logit_gradient(); }

  /// (d_model × n_tokens) ∂L/∂ workspace().side.router_input of the last backward(); empty where the router has read x.
  Eigen::Map<Matrix<Scalar>> router_input_gradient() { return held_->router_input_gradient(); }

  /// (num_experts that are not always chosen) of its router, for update_bias() after each step: that is how it learns.
  /// Empty if it has none, or one that is mapped or of another type.
  Eigen::Map<Vector<Scalar>> selection_bias() {
    for (const AnyParameter& part : held_->frozen) {
      if (part.name.ends_with("selection_bias") && part.to_write != nullptr && part.type == &detail::type_id<Scalar>) {
        return {reinterpret_cast<Scalar*>(part.to_write), part.size()};
      }
    }
    return {nullptr, 0};
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, ExecutorRef executor) = 0;
    virtual void backward(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, MatrixRef<Scalar> d_x,
                          ExecutorRef executor) = 0;
    virtual Workspace<Scalar>& workspace() = 0;
    virtual Eigen::Map<Matrix<Scalar>> logit_gradient() = 0;
    virtual Eigen::Map<Matrix<Scalar>> router_input_gradient() = 0;
    virtual std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) = 0;
    virtual AnyLayer<Scalar> merged() const = 0;
    virtual AnyParts<Scalar> merged_parts() = 0;
    virtual void follow_adapters() = 0;

    std::vector<Parameter<Scalar>> parameters, gradients;
    std::vector<AnyParameter> frozen;
    std::string note;
  };

  template <class L>
  struct Held final : Interface {
    using Place = std::pair<const Scalar*, Index>;

    explicit Held(L its_layer)
        : layer(std::move(its_layer)),
          gradient(zeros_like(layer)),
          tape(tape_of(layer)),
          adapters(moe::named_adapters("", layer)) {
      Interface::frozen = moe::frozen_parameters(layer);
      Interface::note = detail::router_note(layer);
      list_parameters();
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
    Eigen::Map<Matrix<Scalar>> router_input_gradient() override {
      if constexpr (requires { tape.router_input_gradient(); }) {
        return tape.router_input_gradient();
      } else {
        return {nullptr, 0, 0};
      }
    }
    std::vector<NamedAdapter<Scalar>> named_adapters(const std::string& name) override {
      return moe::named_adapters(name, layer);
    }
    AnyLayer<Scalar> merged() const override {
      if constexpr (Layer<decltype(detail::call_merged(layer))>) {
        return detail::call_merged(layer);
      } else {
        throw std::invalid_argument("merged: this layer has no forward(x, y, workspace, executor) to serve by");
      }
    }

    AnyParts<Scalar> merged_parts() override {
      if (adapters.empty()) return {nullptr, [this](ParameterVisitor<Scalar>& visit) { visit.in("", layer); }};
      const auto sum = std::make_shared<decltype(detail::call_merged(layer))>(detail::call_merged(layer));
      return {sum, [part = sum.get()](ParameterVisitor<Scalar>& visit) { visit.in("", *part); }};
    }

    /// Adapters of other ranks lie elsewhere.
    void follow_adapters() override {
      bool same = true;
      for (std::size_t i = 0; i < adapters.size(); ++i) same = same && place_of(*adapters[i].adapter) == known[i];
      if (same) return;
      if constexpr (std::is_move_assignable_v<L>) gradient = zeros_like(layer);
      list_parameters();
    }

    void list_parameters() {
      Interface::parameters = moe::parameters(layer);
      Interface::gradients = moe::parameters(gradient);
      known.clear();
      for (const auto& named : adapters) known.push_back(place_of(*named.adapter));
    }

    static Place place_of(const Adapter<Scalar>& adapter) { return {adapter.a.data(), adapter.rank()}; }

    L layer, gradient;
    decltype(tape_of(std::declval<const L&>())) tape;
    std::vector<NamedAdapter<Scalar>> adapters;
    std::vector<Place> known;  // where the numbers of each lay when they were listed
  };

  std::unique_ptr<Interface> held_;
};

/// The layer with its adapters added into weights of its own, to serve.
/// @throws std::invalid_argument if it is none that can serve.
template <class Scalar>
AnyLayer<Scalar> merged(const TrainableLayer<Scalar>& layer) {
  return layer.merged();
}

/// As that of the layer that it holds.
template <class Scalar>
std::string training_report(const TrainableLayer<Scalar>& layer) {
  return training_report(layer.parameters(), layer.parameters(), layer.frozen_parameters()) + layer.note();
}

}  // namespace moe::inline MOE_TARGET
