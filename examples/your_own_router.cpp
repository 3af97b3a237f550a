// A router of your own: it writes routes (token, expert, weight). This one looks at nothing but the token's position,
// as hash layers look at nothing but its number in the vocabulary (Roller et al. 2021, arXiv:2106.04426).
#include <moe/moe.hpp>

#include <cstdio>

struct RoundRobin {
  using Scalar = float;
  moe::Index width, experts;

  moe::Index d_model() const { return width; }
  moe::Index num_experts() const { return experts; }

  void route(const moe::ConstMatrixRef<float>& x, moe::Routing<float>& routing, moe::Workers& /*workers*/) const {
    for (moe::Index t = 0; t < x.cols(); ++t) routing.add(t, t % experts, 1.0f);
  }
};

int main() {
  const moe::MoeLayer layer(RoundRobin{.width = 8, .experts = 3}, moe::random_bank<float>(3, 8, 16, /*seed=*/1));
  const moe::Matrix<float> x = moe::random_tokens<float>(8, 7, /*seed=*/2);
  moe::Matrix<float> y(8, 7);
  moe::Workspace<float> workspace;
  layer.forward(x, y, workspace);
  for (moe::Index e = 0; e < 3; ++e) std::printf("expert %td has %td tokens\n", e, workspace.plan.view().count(e));
}

/* Output:
expert 0 has 3 tokens
expert 1 has 2 tokens
expert 2 has 2 tokens
*/
