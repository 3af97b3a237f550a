// A sparse layer beside its dense equivalents: as costly for a token, and as large in memory.
#include <moe/models.hpp>
#include <moe/moe.hpp>

#include <cstdio>

int main() {
  const moe::Index d_model = 64, d_ff = 96, num_experts = 8, top_k = 2;
  const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, 1), {.top_k = top_k});
  const moe::MoeLayer sparse(router, moe::random_bank<float>(num_experts, d_model, d_ff, 2));
  const auto active = moe::dense_of_equal_active_size(sparse);  // the first top_k experts side by side
  const auto total = moe::dense_of_equal_total_size(sparse);    // all experts side by side

  const auto params = [](const auto& bank) { return 3 * bank.num_experts() * bank.d_model() * bank.d_ff(); };
  std::printf("%-22s %10s %16s\n", "", "parameters", "used by a token");
  std::printf("%-22s %10td %16td\n", "sparse", params(sparse.experts()),
              params(sparse.experts()) / num_experts * top_k);
  std::printf("%-22s %10td %16td\n", "dense, as costly", params(active.expert()), params(active.expert()));
  std::printf("%-22s %10td %16td\n", "dense, as large", params(total.expert()), params(total.expert()));

  // The large one computes the sum of all experts; the sparse one picks from the same answers.
  const moe::Matrix<float> x = moe::random_tokens<float>(d_model, 10, 3);
  moe::Matrix<float> sum = moe::Matrix<float>::Zero(d_model, 10);
  for (moe::Index e = 0; e < num_experts; ++e) {
    moe::GatedFfn<float> expert{sparse.experts().w_gate()[e], sparse.experts().w_up()[e], sparse.experts().w_down()[e]};
    moe::Matrix<float> y(d_model, 10);
    moe::Scratch scratch;
    expert.forward(x, y, scratch);
    sum += y;
  }
  std::printf("dense, as large, is the sum of all experts: %s\n", total.forward(x).isApprox(sum, 1e-5f) ? "yes" : "no");
}

/* Output:
                       parameters  used by a token
sparse                     147456            36864
dense, as costly            36864            36864
dense, as large            147456           147456
dense, as large, is the sum of all experts: yes
*/
