// An expert of your own that learns: the struct of your_own_expert, untouched, and two functions beside it.
#include <moe/moe.hpp>
#include <moe/train.hpp>

#include <cstdio>
struct SquaredRelu {  // y = W_out · relu(W_in · x)²
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

// From ∂L/∂y: adds ∂L/∂x to d_x, and ∂L/∂W to `gradient`, an expert as well.
void backward(const SquaredRelu& expert, const moe::ConstMatrixRef<float>& x, const moe::ConstMatrixRef<float>& d_y,
              moe::MatrixRef<float> d_x, SquaredRelu& gradient, moe::Scratch& scratch) {
  auto active = scratch.matrix<float>(expert.w_in.rows(), x.cols());
  auto d_hidden = scratch.matrix<float>(expert.w_in.rows(), x.cols());
  active = (expert.w_in * x).cwiseMax(0.0f);
  d_hidden.noalias() = expert.w_out.transpose() * d_y;
  gradient.w_out += d_y * active.cwiseAbs2().transpose();
  d_hidden = 2 * d_hidden.cwiseProduct(active);
  gradient.w_in += d_hidden * x.transpose();
  d_x.noalias() += expert.w_in.transpose() * d_hidden;
}

void visit_parameters(SquaredRelu& expert, moe::ParameterVisitor<float>& visit) {
  visit("w_in", expert.w_in), visit("w_out", expert.w_out);
}

int main() {
  const moe::Index d_model = 8, tokens = 64;
  std::vector<SquaredRelu> experts;
  for (unsigned e = 0; e < 4; ++e)
    experts.push_back({moe::random_weight<float>(16, d_model, e), moe::random_weight<float>(d_model, 16, 10 + e)});
  moe::MoeLayer layer(moe::LinearTopK<float>(moe::random_weight<float>(4, d_model, 100), {.top_k = 2}), experts);
  auto gradient = moe::zeros_like(layer);
  auto tape = moe::tape_of(layer);
  moe::AdamW<float> adam(moe::parameters(layer), {.learning_rate = 0.01, .weight_decay = 0});
  moe::Matrix<float> y(d_model, tokens), d_x(d_model, tokens);
  float first = 0, last = 0;
  for (unsigned step = 0; step <= 1000; ++step) {  // learns y = x
    const auto x = moe::random_tokens<float>(d_model, tokens, 200 + step);
    moe::forward(layer, x, y, tape);
    (step == 0 ? first : last) = (y - x).squaredNorm();
    moe::set_to_zero(moe::parameters(gradient)), d_x.setZero();  // both are added to
    moe::backward(layer, x, (y - x) / float(tokens), tape, d_x, gradient);
    adam.step(moe::parameters(gradient));
  }
  std::printf("After 1000 steps the error is %s a tenth of what it was.\n", last < first / 10 ? "less than" : "above");
}

/* Output:
After 1000 steps the error is less than a tenth of what it was.
*/
