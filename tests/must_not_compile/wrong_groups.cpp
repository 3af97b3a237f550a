// A group has Scalar, d_model(), num_experts() and apply(x, plan, y, workers) const; what is missing is named.
// expect: moe: this group of experts has no `using Scalar = float;`
// expect: moe: this group of experts has no `Index d_model\(\) const`
// expect: moe: this group of experts has no `Index num_experts\(\) const`
// expect: moe: this group's apply\(\) is not const: one group serves many threads
// expect: moe: this group of experts has no `void apply\(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Workers& workers\) const` for its Scalar
// expect: moe: this group's apply\(\) returns something, expected void: it adds to y
// expect: moe: one of these computes in float and the other in double, expected one Scalar
#include "moe/experts/expert_subset.hpp"
#include "moe/experts/joined_experts.hpp"

template <class S>
struct Applies {
  void apply(const moe::ConstMatrixRef<S>&, const moe::DispatchPlan<S>&, moe::MatrixRef<S>, moe::Workers&) const {}
};
struct WithoutScalar : Applies<float> {
  moe::Index d_model() const { return 4; }
  moe::Index num_experts() const { return 1; }
};
struct WithoutWidth : Applies<float> {
  using Scalar = float;
  moe::Index num_experts() const { return 1; }
};
struct WithoutNumber : Applies<float> {
  using Scalar = float;
  moe::Index d_model() const { return 4; }
};
template <class S>
struct Right : Applies<S> {
  using Scalar = S;
  moe::Index d_model() const { return 4; }
  moe::Index num_experts() const { return 1; }
};
struct NotConst : Right<float> {
  void apply(const moe::ConstMatrixRef<float>&, const moe::DispatchPlan<float>&, moe::MatrixRef<float>, moe::Workers&) {
  }
};
struct WithoutApply : Right<float> {
  void apply() const {}
};
struct Returns : Right<float> {
  int apply(const moe::ConstMatrixRef<float>&, const moe::DispatchPlan<float>&, moe::MatrixRef<float>,
            moe::Workers&) const {
    return 0;
  }
};

template <class G>
using Try = decltype(sizeof(moe::ExpertSubset<G>));
template <class A, class B>
using TryBoth = decltype(sizeof(moe::JoinedExperts<A, B>));

#ifdef MOE_POSITIVE_CONTROL
Try<Right<float>> right;
TryBoth<Right<float>, Right<float>> right_too;
#else
Try<WithoutScalar> without_scalar;
Try<WithoutWidth> without_width;
Try<WithoutNumber> without_number;
Try<NotConst> not_const;
Try<WithoutApply> without_apply;
Try<Returns> returns;
TryBoth<Right<float>, Right<double>> of_two_scalars;
#endif
