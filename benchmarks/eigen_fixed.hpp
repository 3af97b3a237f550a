/// @file  What a C++ user writes on Eigen for one shape alone, known to the compiler.
///
/// Nothing of moe/ is used here. It is meant to be good: nothing is allocated, sizes are constants, every product can
/// be unrolled.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include <Eigen/Core>

namespace moe::bench::eigen_fixed {

/// How weights lie and are multiplied; which is fastest depends on the shape.
enum class Product {
  rows,             ///< rows of weights side by side, as checkpoints have them; a dot product each
  columns,          ///< columns side by side, as Eigen has them by default; Eigen chooses
  columns_in_place  ///< the same as one expression, which small sizes unroll
};

template <class W, int d_model, int d_ff, int num_experts, int top_k, Product product>
class Layer {
 public:
  using Token = Eigen::Matrix<float, d_model, 1>;

  template <class T, int outputs, int inputs>
  using Weights = Eigen::Matrix<T, outputs, inputs, product == Product::rows ? Eigen::RowMajor : Eigen::ColMajor>;

  struct Expert {
    Weights<W, d_ff, d_model> gate, up;
    Weights<W, d_model, d_ff> down;
  };

  Weights<float, num_experts, d_model> router;
  std::vector<Expert, Eigen::aligned_allocator<Expert>> experts;

  /// Softmax over all experts; the weights of the best top_k, as they are.
  void forward(const Eigen::Map<const Token>& its_x, Eigen::Map<Token> its_y) const {
    const Token x = its_x;
    Token y = Token::Zero();
    Eigen::Array<float, num_experts, 1> logits = multiply<float>(router, x);
    Eigen::Array<float, num_experts, 1> share = (logits - logits.maxCoeff()).exp();
    share /= share.sum();
    for (int k = 0; k < top_k; ++k) {
      int best = 0;
      for (int e = 1; e < num_experts; ++e) {
        if (logits(e) > logits(best)) best = e;
      }
      const Expert& expert = experts[std::size_t(best)];
      Eigen::Matrix<float, d_ff, 1> gate, up;
      Token answer;
      gate.noalias() = multiply<W>(expert.gate, x);
      up.noalias() = multiply<W>(expert.up, x);
      gate.array() *= up.array() / (1 + (-gate.array()).exp());
      answer.noalias() = multiply<W>(expert.down, gate);
      y += share(best) * answer;
      logits(best) = -std::numeric_limits<float>::infinity();
    }
    its_y = y;
  }

 private:
  template <class T, class M, class X>
  static auto multiply(const M& weights, const X& x) {
    if constexpr (std::is_same_v<T, float>) {
      if constexpr (product == Product::columns) {
        return weights * x;
      } else {
        return weights.lazyProduct(x);
      }
    } else {
      if constexpr (product == Product::columns) {
        return weights.template cast<float>() * x;
      } else {
        return weights.template cast<float>().lazyProduct(x);
      }
    }
  }
};

}  // namespace moe::bench::eigen_fixed
