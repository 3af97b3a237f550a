// A sparse layer of 8 experts, of which each token uses 2.
#include <moe/moe.hpp>

#include <cstdio>

int main() {
  const moe::Index d_model = 16, d_ff = 32, num_experts = 8, top_k = 2;
  const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, /*seed=*/1),
                                      {.top_k = top_k, .renormalize = true});
  const moe::MoeLayer layer(router, moe::random_bank<float>(num_experts, d_model, d_ff, /*seed=*/2));

  const moe::Matrix<float> x = moe::random_tokens<float>(d_model, 5, /*seed=*/3);  // a column is a token
  moe::Matrix<float> y(d_model, 5);
  moe::Workspace<float> workspace;  // reuse it: then forward() allocates nothing
  layer.forward(x, y, workspace);

  for (moe::Index t = 0; t < x.cols(); ++t) {
    std::printf("token %td goes to", t);
    for (moe::Index k = 0; k < top_k; ++k) {
      const auto r = static_cast<std::size_t>(t * top_k + k);
      std::printf(" expert %td (%.2f)", workspace.routing.expert[r], double(workspace.routing.weight[r]));
    }
    std::printf(", y[0] = %+.3f\n", double(y(0, t)));
  }
}

/* Output:
token 0 goes to expert 3 (0.81) expert 4 (0.19), y[0] = +0.373
token 1 goes to expert 3 (0.88) expert 4 (0.12), y[0] = +0.885
token 2 goes to expert 5 (0.57) expert 3 (0.43), y[0] = -0.415
token 3 goes to expert 5 (0.60) expert 6 (0.40), y[0] = +0.039
token 4 goes to expert 7 (0.84) expert 5 (0.16), y[0] = +0.433
*/
