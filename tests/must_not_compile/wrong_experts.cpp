// An expert has Scalar, d_model() and forward(x, y, scratch) const; what is missing is named.
// expect: moe: this expert has no `using Scalar = float;`
// expect: moe: this expert has no `Index d_model\(\) const`
// expect: moe: this expert has no `void forward\(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch\) const` for its Scalar
// expect: moe: this expert's forward\(\) returns something, expected void: it writes y
#include "moe/experts/expert_list.hpp"

struct WithoutScalar {
  moe::Index d_model() const { return 4; }
  void forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float> y, moe::Scratch&) const { y = x; }
};
struct WithoutWidth {
  using Scalar = float;
  void forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float> y, moe::Scratch&) const { y = x; }
};
struct OfAnotherScalar : WithoutScalar {
  using Scalar = double;
};
struct Returns : WithoutWidth {
  moe::Index d_model() const { return 4; }
  moe::Matrix<float> forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float>, moe::Scratch&) const {
    return x;
  }
};
struct Right : WithoutScalar {
  using Scalar = float;
};

template <class E>
using Try = decltype(sizeof(moe::ExpertList<E>));

#ifdef MOE_POSITIVE_CONTROL
Try<Right> right;
#else
Try<WithoutScalar> without_scalar;
Try<WithoutWidth> without_width;
Try<OfAnotherScalar> of_another_scalar;
Try<Returns> returns;
#endif
