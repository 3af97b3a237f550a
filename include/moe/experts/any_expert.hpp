/// @file  Experts of different types in one layer.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/detail/erased_call.hpp"
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
  AnyExpert(E expert)
      : d_model_(expert.d_model()),
        forward_(std::make_shared<E>(std::move(expert)),
                 [](const E& its, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) {
                   its.forward(x, y, scratch);
                 }) {}

  Index d_model() const { return d_model_; }
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const {
    forward_(x, y, scratch);
  }

 private:
  Index d_model_;
  detail::ErasedCall<const ConstMatrixRef<Scalar>&, MatrixRef<Scalar>, Scratch&> forward_;
};

}  // namespace moe::inline MOE_TARGET
