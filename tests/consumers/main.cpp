// A user's first program: two experts that are the same, weighted to a sum of one, are that expert.
#include <iostream>
#include <vector>

#include <moe/moe.hpp>

int main() {
  constexpr moe::Index d_model = 4, d_ff = 6;
  const moe::GatedFfn<float> expert{.w_gate = moe::Weight<float>::Random(d_ff, d_model),
                                    .w_up = moe::Weight<float>::Random(d_ff, d_model),
                                    .w_down = moe::Weight<float>::Random(d_model, d_ff)};
  const moe::LinearTopK<float> router(moe::Weight<float>::Random(2, d_model), {.top_k = 2, .renormalize = true});
  const moe::MoeLayer layer(router, std::vector{expert, expert});

  const moe::Matrix<float> tokens = moe::Matrix<float>::Random(d_model, 3);
  moe::Matrix<float> expected(d_model, 3);
  moe::Scratch scratch;
  expert.forward(tokens, expected, scratch);

  const bool same = layer.forward(tokens).isApprox(expected);
  std::cout << (same ? "The layer is its expert.\n" : "The layer is not its expert.\n");
  return same ? 0 : 1;
}
