/// @file  Experts of different types in one layer.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Any Expert of this Scalar behind one type: std::vector<AnyExpert<float>>{SwiGluExpert{…}, MyExpert{…}}.
/// Copies share the expert.
template <class Scalar_>
class AnyExpert {
 public:
  using Scalar = Scalar_;

  /// Moves the expert in; copies of this share it.
  template <Expert E>
    requires(!std::same_as<E, AnyExpert> && std::same_as<typename E::Scalar, Scalar>)
  AnyExpert(E expert) : held_(std::make_shared<Held<E>>(std::move(expert))) {}

  Index d_model() const { return held_->d_model(); }
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const {
    held_->forward(x, y, scratch);
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const = 0;
  };

  template <class E>
  struct Held final : Interface {
    explicit Held(E its_expert) : expert(std::move(its_expert)) {}
    Index d_model() const override { return expert.d_model(); }
    void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const override {
      expert.forward(x, y, scratch);
    }
    E expert;
  };

  std::shared_ptr<const Interface> held_;
};

}  // namespace moe::inline MOE_TARGET
