// A router has Scalar, d_model(), num_experts() and route(tokens, routing, workers) const; what is missing is named.
// expect: moe: this router has no `using Scalar = float;`
// expect: moe: this router has no `Index d_model\(\) const`
// expect: moe: this router has no `Index num_experts\(\) const`
// expect: moe: this router has no `void route\(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers\) const` for its Scalar; it adds its routes to `routing` and returns nothing
// expect: moe: this router's route\(\) is not const: one router serves many threads
// expect: moe: this router's route\(\) returns something, expected void: it adds its routes to `routing`
#include "moe/routers/filters/capacity.hpp"

struct WithoutScalar {
  moe::Index d_model() const { return 4; }
  moe::Index num_experts() const { return 1; }
  void route(const moe::ConstMatrixRef<float>&, moe::Routing<float>&, moe::Workers&) const {}
};
struct WithoutWidth {
  using Scalar = float;
  moe::Index num_experts() const { return 1; }
  void route(const moe::ConstMatrixRef<float>&, moe::Routing<float>&, moe::Workers&) const {}
};
struct WithoutNumber {
  using Scalar = float;
  moe::Index d_model() const { return 4; }
  void route(const moe::ConstMatrixRef<float>&, moe::Routing<float>&, moe::Workers&) const {}
};
struct Right : WithoutScalar {
  using Scalar = float;
};
struct ReturnsItsRouting : Right {
  moe::Routing<float> route(const moe::ConstMatrixRef<float>&) const { return {}; }
};
struct NotConst : Right {
  void route(const moe::ConstMatrixRef<float>&, moe::Routing<float>&, moe::Workers&) {}
};
struct ReturnsItsCount : Right {
  int route(const moe::ConstMatrixRef<float>&, moe::Routing<float>&, moe::Workers&) const { return 0; }
};

template <class R>
using Try = decltype(sizeof(moe::WithCapacity<R>));

#ifdef MOE_POSITIVE_CONTROL
Try<Right> right;
#else
Try<WithoutScalar> without_scalar;
Try<WithoutWidth> without_width;
Try<WithoutNumber> without_number;
Try<ReturnsItsRouting> returns_its_routing;
Try<NotConst> not_const;
Try<ReturnsItsCount> returns_its_count;
#endif
