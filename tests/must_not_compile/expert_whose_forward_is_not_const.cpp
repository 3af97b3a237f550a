// One expert serves many threads: its forward() is const.
// expect: moe: this expert's forward\(\) is not const: one expert serves many threads
#include "moe/experts/expert_list.hpp"

#ifdef MOE_POSITIVE_CONTROL
#define CONST const
#else
#define CONST
#endif

struct Twice {
  using Scalar = float;
  moe::Index d_model() const { return 4; }
  void forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float> y, moe::Scratch&) CONST { y = 2 * x; }
};

moe::ExpertList list(std::vector<Twice>(3));
