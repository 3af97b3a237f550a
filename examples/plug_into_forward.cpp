// The layer in a forward pass of your own: a transformer block on plain Eigen whose FFN is a mixture of experts.
#include <moe/moe.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

using Eigen::MatrixXf;

MatrixXf rms_norm(MatrixXf x) {  // a token at a time: Eigen 3.4's sqrt() of arrays is an estimate
  for (auto token : x.colwise()) token /= std::sqrt(token.squaredNorm() / float(x.rows()) + 1e-6f);
  return x;
}

struct Block {
  MatrixXf w_query, w_key, w_value, w_out;
  moe::MoeLayer<moe::LinearTopK<float>, moe::GatedFfnBank<float>> ffn;

  MatrixXf attention(const MatrixXf& x) const {  // one head, causal
    MatrixXf scores = (w_key * x).transpose() * (w_query * x) / std::sqrt(float(x.rows()));
    for (Eigen::Index t = 0; t < scores.cols(); ++t) {
      auto seen = scores.col(t).head(t + 1);
      moe::softmax(seen, seen);
      scores.col(t).tail(scores.rows() - t - 1).setZero();
    }
    return w_out * (w_value * x) * scores;
  }

  void forward(MatrixXf& x, moe::Workspace<float>& workspace) const {
    x += attention(rms_norm(x));
    const MatrixXf normed = rms_norm(x);
    MatrixXf y(x.rows(), x.cols());
    ffn.forward(normed, y, workspace);  // here
    x += y;
  }
};

int main() {
  const Eigen::Index d = 32;
  const auto random = [&](unsigned seed) { return MatrixXf(moe::random_weight<float>(d, d, seed)); };
  const moe::LinearTopK<float> router(moe::random_weight<float>(4, d, 5), {.top_k = 2, .renormalize = true});
  const Block block{random(1), random(2), random(3), random(4), {router, moe::random_bank<float>(4, d, 64, 6)}};

  std::vector<float> tokens(static_cast<std::size_t>(d * 6), 0.1f);  // [tokens, d_model] of any framework: map it
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = moe::random_number(7, i);
  MatrixXf x = Eigen::Map<const MatrixXf>(tokens.data(), d, 6);

  moe::Workspace<float> workspace;
  for (int depth = 0; depth < 3; ++depth) block.forward(x, workspace);
  std::printf("after 3 blocks |x| = %.2f\n", double(x.norm()));
}

/* Output:
after 3 blocks |x| = 32.94
*/
