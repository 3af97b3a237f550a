// Compiled several times with other flags, as the function PART, for one program.
#include "part.hpp"

#include <atomic>

#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/executors/openmp.hpp"

inline std::atomic<int> lanes_seen = 0;

/// SwiGLU, which is asked for a register at a time: so it sees which kernel runs. One name in all files, as users'
/// types have.
struct Watching {
  template <class Register>
  auto operator()(const Register& gate, const Register& up) const {
    lanes_seen = int(Register::SizeAtCompileTime);
    return gate * up / (1 + (-gate).exp());
  }
};

Ran PART() {
  const moe::Index d_model = 64, d_ff = 128, num_experts = 8;
  const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, 1), {.top_k = 2});
  const moe::MoeLayer layer(
      router, moe::GatedFfnBank<float, Watching>(moe::random_stack<float>(num_experts, d_ff, d_model, 2),
                                                 moe::random_stack<float>(num_experts, d_ff, d_model, 3),
                                                 moe::random_stack<float>(num_experts, d_model, d_ff, 4)));
  const moe::Matrix<float> x = moe::random_tokens<float>(d_model, 10, 5);
  const moe::OpenMp executor;
  double sum = 0;
  for (int repeat = 0; repeat < 3; ++repeat) sum = layer.forward(x, executor).cwiseAbs().sum();
  return {moe::target_name, lanes_seen, int(executor.workers()), sum};
}
