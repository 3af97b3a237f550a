/// @file  A small language model around FFNs: it guesses a byte from those before it.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "learning/corpus.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/parameter_pieces.hpp"
#include "moe/train/trainable_layer.hpp"

namespace moe::bench {

struct ContextModelShape {
  Index context = 16;    // bytes that it sees
  Index embedding = 24;  // numbers that stand for one of them
  Index d_model = 64;
};

/// h = W_in · [embeddings of the bytes]; then h += FFN(norm(h)) for each block; logits = W_out · norm(h), where
/// norm(h) = √d · h / ‖h‖. Matrices begin with the deviation of PyTorch's Linear, 1 / √(3 · columns).
class ContextModel {
 public:
  ContextModel(const ContextModelShape& shape, std::vector<TrainableLayer<float>> blocks, std::uint64_t seed)
      : shape_(shape), blocks_(std::move(blocks)) {
    const auto random = [&](Index rows, Index cols, double deviation, std::uint64_t which) {
      Weight<float> w(rows, cols);
      for (Index i = 0; i < w.size(); ++i) {
        w.data()[i] = float(deviation * normal_number(seed * 8 + which, std::uint64_t(i)));
      }
      return w;
    };
    const Index width = shape.context * shape.embedding;
    table_ = random(256, shape.embedding, 1, 0);
    in_ = random(shape.d_model, width, 1 / std::sqrt(3 * double(width)), 1);
    out_ = random(256, shape.d_model, 1 / std::sqrt(3 * double(shape.d_model)), 2);
    d_table_ = Weight<float>::Zero(table_.rows(), table_.cols());
    d_in_ = Weight<float>::Zero(in_.rows(), in_.cols());
    d_out_ = Weight<float>::Zero(out_.rows(), out_.cols());
  }

  std::vector<TrainableLayer<float>>& blocks() { return blocks_; }

  std::vector<Parameter<float>> parameters() {
    return list(table_, in_, out_, [](auto& b) { return b.parameters(); });
  }
  std::vector<Parameter<float>> gradients() {
    return list(d_table_, d_in_, d_out_, [](auto& b) { return b.gradients(); });
  }

  /// Bits for each next byte, on average.
  double bits(const Examples& examples, ExecutorRef executor) {
    run(examples, executor);
    return bits_of(examples);
  }

  /// The same, and adds to the gradients those of nats; they begin as zeros, as AdamW::take() leaves them.
  /// `add_losses(block)` may add to a block's logit_gradient().
  /// @param jitter  what each block reads is multiplied by a random number within this distance of 1
  /// @param seed    of these
  template <class F>
  double learn(const Examples& examples, ExecutorRef executor, const F& add_losses, double jitter = 0,
               std::uint64_t seed = 0) {
    run(examples, executor, jitter, seed);
    const double bits = bits_of(examples);
    const Index n = Index(examples.next.size());
    for (auto& block : blocks_) add_losses(block);

    Matrix<float>& d_logits = logits_;  // softmax − what came
    for (Index t = 0; t < n; ++t) d_logits(examples.next[std::size_t(t)], t) -= 1;
    d_logits /= float(n);
    d_out_.noalias() += d_logits * normed_.back().transpose();
    d_normed_.noalias() = out_.transpose() * d_logits;
    d_hidden_.setZero(shape_.d_model, n);
    add_norm_gradient(blocks_.size());
    for (std::size_t b = blocks_.size(); b-- > 0;) {
      d_normed_.setZero(shape_.d_model, n);
      blocks_[b].backward(noise_.empty() ? normed_[b] : noisy_[b], d_hidden_, d_normed_, executor);
      if (!noise_.empty()) d_normed_.array() *= noise_[b].array();
      add_norm_gradient(b);
    }
    d_in_.noalias() += d_hidden_ * embedded_.transpose();
    d_embedded_.noalias() = in_.transpose() * d_hidden_;
    for (Index t = 0; t < n; ++t) {
      for (Index k = 0; k < shape_.context; ++k) {
        d_table_.row(examples.context(k, t)) +=
            d_embedded_.col(t).segment(k * shape_.embedding, shape_.embedding).transpose();
      }
    }
    return bits;
  }

 private:
  template <class F>
  std::vector<Parameter<float>> list(Weight<float>& table, Weight<float>& in, Weight<float>& out, const F& of_block) {
    std::vector<Parameter<float>> all;
    ParameterVisitor<float> visit(all);
    visit("embedding.weight", table);
    visit("in.weight", in);
    visit("out.weight", out);
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      for (auto parameter : of_block(blocks_[b])) {
        parameter.name = "blocks." + std::to_string(b) + "." + parameter.name;
        all.push_back(std::move(parameter));
      }
    }
    return all;
  }

  /// Leaves softmax(logits) in logits_.
  void run(const Examples& examples, ExecutorRef executor, double jitter = 0, std::uint64_t seed = 0) {
    const Index n = Index(examples.next.size());
    embedded_.resize(shape_.context * shape_.embedding, n);
    for (Index t = 0; t < n; ++t) {
      for (Index k = 0; k < shape_.context; ++k) {
        embedded_.col(t).segment(k * shape_.embedding, shape_.embedding) =
            table_.row(examples.context(k, t)).transpose();
      }
    }
    const std::size_t num = blocks_.size();
    normed_.resize(num + 1);
    norms_.resize(num + 1);
    hidden_.noalias() = in_ * embedded_;
    answer_.resize(shape_.d_model, n);
    noise_.resize(jitter > 0 ? num : 0);
    noisy_.resize(noise_.size());
    for (std::size_t b = 0; b < num; ++b) {
      norm(b);
      if (jitter > 0) add_noise(b, jitter, seed);
      blocks_[b].forward(noise_.empty() ? normed_[b] : noisy_[b], answer_, executor);
      hidden_ += answer_;
    }
    norm(num);
    logits_.noalias() = out_ * normed_[num];
    for (Index t = 0; t < n; ++t) {
      auto column = logits_.col(t).array();
      column = (column - column.maxCoeff()).exp();
      column /= column.sum();
    }
  }

  double bits_of(const Examples& examples) const {
    double sum = 0;
    for (std::size_t t = 0; t < examples.next.size(); ++t)
      sum -= std::log2(double(logits_(examples.next[t], Index(t))));
    return sum / double(examples.next.size());
  }

  void add_noise(std::size_t which, double jitter, std::uint64_t seed) {
    Matrix<float>& noise = noise_[which];
    noise.resizeLike(normed_[which]);
    for (Index i = 0; i < noise.size(); ++i) {
      noise.data()[i] = float(1 + jitter * (2 * uniform_number(seed + which, std::uint64_t(i)) - 1));
    }
    noisy_[which] = normed_[which].cwiseProduct(noise);
  }

  void norm(std::size_t which) {
    norms_[which] = hidden_.colwise().norm().cwiseMax(1e-6f) / std::sqrt(float(shape_.d_model));
    normed_[which] = hidden_.array().rowwise() / norms_[which].array();
  }

  /// d_hidden_ += (d_normed_ − n · mean(n ⊙ d_normed_)) / norm, for n = normed_[which].
  void add_norm_gradient(std::size_t which) {
    const Matrix<float>& n = normed_[which];
    const Eigen::RowVectorXf along = n.cwiseProduct(d_normed_).colwise().mean();
    d_hidden_.array() += (d_normed_.array() - n.array().rowwise() * along.array()).rowwise() / norms_[which].array();
  }

  ContextModelShape shape_;
  std::vector<TrainableLayer<float>> blocks_;
  Weight<float> table_, in_, out_, d_table_, d_in_, d_out_;
  Matrix<float> embedded_, d_embedded_, hidden_, d_hidden_, answer_, d_normed_, logits_;
  std::vector<Matrix<float>> normed_;         // what each block reads, then what W_out reads
  std::vector<Matrix<float>> noise_, noisy_;  // what that is multiplied by, and what comes of it; none without jitter
  std::vector<Eigen::RowVectorXf> norms_;     // ‖h‖ / √d of each token
};

}  // namespace moe::bench
