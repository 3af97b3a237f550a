/// @file  An expert from a lambda.
#pragma once

#include <concepts>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// function(x, y) maps tokens x (d_model × n) to y, column by column. See expert_from().
template <class Scalar_, class F>
  requires std::invocable<const F&, const ConstMatrixRef<Scalar_>&, MatrixRef<Scalar_>>
class FunctionExpert {
 public:
  using Scalar = Scalar_;

  /// @param function  function(x, y), const: called by many threads at once
  FunctionExpert(Index d_model, F function) : d_model_(d_model), function_(std::move(function)) {}

  Index d_model() const { return d_model_; }
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& /*scratch*/) const { function_(x, y); }

 private:
  Index d_model_;
  F function_;
};

/// expert_from<float>(d_model, [](const auto& x, auto y) { y = 2 * x; })
template <class Scalar, class F>
FunctionExpert<Scalar, F> expert_from(Index d_model, F function) {
  return {d_model, std::move(function)};
}

}  // namespace moe::inline MOE_TARGET
