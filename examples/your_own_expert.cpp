// An expert of your own: a struct with Scalar, d_model() and forward(). The layer does the rest.
#include <moe/moe.hpp>

#include <cstdio>
#include <vector>

// y = W_out · relu(W_in · x)², the FFN of Primer (So et al. 2021, arXiv:2109.08668).
struct SquaredRelu {
  using Scalar = float;
  moe::Matrix<float> w_in, w_out;  // (d_ff × d_model), (d_model × d_ff)

  moe::Index d_model() const { return w_out.rows(); }

  void forward(const moe::ConstMatrixRef<float>& x, moe::MatrixRef<float> y, moe::Scratch& scratch) const {
    auto hidden = scratch.matrix<float>(w_in.rows(), x.cols());
    hidden.noalias() = w_in * x;
    hidden = hidden.cwiseMax(0.0f).cwiseAbs2();
    y.noalias() = w_out * hidden;
  }
};

int main() {
  const moe::Index d_model = 8, d_ff = 16, num_experts = 4;
  std::vector<SquaredRelu> experts;
  for (unsigned e = 0; e < num_experts; ++e) {
    experts.push_back(
        {moe::random_weight<float>(d_ff, d_model, 2 * e), moe::random_weight<float>(d_model, d_ff, 2 * e + 1)});
  }
  const moe::LinearTopK<float> router(moe::random_weight<float>(num_experts, d_model, 100), {.top_k = 2});
  const moe::MoeLayer layer(router, experts);  // a vector of experts is a group of experts
  const moe::Matrix<float> y = layer.forward(moe::random_tokens<float>(d_model, 3, 200), moe::OpenMp());
  std::printf("%td tokens of %td numbers, the first %.4f\n", y.cols(), y.rows(), double(y(0, 0)));

  // Or a lambda; or experts of different types in one layer.
  using Any = moe::AnyExpert<float>;
  const auto twice = moe::expert_from<float>(d_model, [](const auto& x, auto out) { out = 2 * x; });
  const moe::MoeLayer mixed(router, std::vector<Any>{experts[0], experts[1], twice, twice});
  std::printf("mixed: the first %.4f\n", double(mixed.forward(moe::random_tokens<float>(d_model, 3, 200))(0, 0)));
}

/* Output:
3 tokens of 8 numbers, the first 0.2685
mixed: the first 0.7189
*/
