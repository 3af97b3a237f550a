// Record the routes of a noisy router, then take the very same ones again: what reinforcement learning needs (train on
// the routes that were sampled), and what makes a difference between two machines findable.
#include <moe/moe.hpp>

#include <cstdint>
#include <cstdio>

int main() {
  const moe::Index d_model = 16, d_ff = 32, num_experts = 8, num_tokens = 20;
  const auto weight = [&](std::uint64_t seed) { return moe::random_weight<float>(num_experts, d_model, seed); };
  const moe::NoisyTopK<float> noisy(weight(1), weight(2), {.top_k = 2, .renormalize = true});
  const moe::Replay router(noisy);
  const moe::MoeLayer layer(router, moe::random_bank<float>(num_experts, d_model, d_ff, /*seed=*/3));
  const moe::Matrix<float> x = moe::random_tokens<float>(d_model, num_tokens, /*seed=*/4);

  const auto forward = [&](const moe::SideInputs<float>& side, moe::Routing<float>* record = nullptr) {
    moe::Matrix<float> y(d_model, num_tokens);
    moe::Workspace<float> workspace;
    workspace.side = side;
    layer.forward(x, y, workspace);
    if (record) *record = workspace.routing;
    return y;
  };

  moe::Routing<float> recorded;
  const moe::Matrix<float> sampled = forward({.seed = 7}, &recorded);
  const moe::Matrix<float> sampled_anew = forward({.seed = 8});
  const moe::Matrix<float> replayed = forward({.seed = 8, .recorded = &recorded});
  std::printf("%td routes recorded\n", recorded.size());
  std::printf("another sample differs:  %s\n", sampled_anew == sampled ? "no" : "yes");
  std::printf("the replay is the same:  %s\n", replayed == sampled ? "yes, to the bit" : "no");
}

/* Output:
40 routes recorded
another sample differs:  yes
the replay is the same:  yes, to the bit
*/
