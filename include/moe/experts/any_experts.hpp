/// @file  A group of experts whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Any Experts of this Scalar behind one type. (AnyExpert is one expert of any type.) Copies share the group.
template <class Scalar_>
class AnyExperts {
 public:
  using Scalar = Scalar_;

  /// Moves the group in; copies of this share it.
  template <Experts G>
    requires(!std::same_as<G, AnyExperts> && std::same_as<typename G::Scalar, Scalar>)
  AnyExperts(G group) : held_(std::make_shared<Held<G>>(std::move(group))) {}

  Index d_model() const { return held_->d_model(); }
  Index num_experts() const { return held_->num_experts(); }
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    held_->apply(x, plan, y, workers);
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual Index num_experts() const = 0;
    virtual void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                       Workers& workers) const = 0;
  };

  template <class G>
  struct Held final : Interface {
    explicit Held(G its_group) : group(std::move(its_group)) {}
    Index d_model() const override { return group.d_model(); }
    Index num_experts() const override { return group.num_experts(); }
    void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
               Workers& workers) const override {
      group.apply(x, plan, y, workers);
    }
    G group;
  };

  std::shared_ptr<const Interface> held_;
};

}  // namespace moe::inline MOE_TARGET
