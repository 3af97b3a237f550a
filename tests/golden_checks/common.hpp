/// @file  What all comparisons with reference data use.
#pragma once

#include <cmath>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/io/config.hpp"
#include "moe/io/safetensors.hpp"

namespace moe::golden {

namespace fs = std::filesystem;

/// A case: a folder with config.json and case.safetensors, beside model.safetensors with the weights of a layer. Sizes
/// are read from these, never from the folder's name.
struct Case {
  io::Config config;
  io::Tensors tensors;

  static Case open(const fs::path& folder) {
    return {io::Config::open(folder / "config.json"), io::Tensors::open(folder / "case.safetensors")};
  }

  Index size(const char* key) const { return config.integer(key); }
  bool has(const std::string& name) const { return tensors.contains(name); }

  /// A tensor as a column-major matrix: its last dimension is a column, all others together are the columns. So tokens
  /// [T, d_model] become (d_model × T), and a Linear weight [out, in] its transpose.
  template <class T = float>
  Matrix<T> columns(const std::string& name) const {
    const io::Tensor tensor = tensors.at(name);
    const auto values = io::as<T>(tensor);
    const Index rows = tensor.shape.empty() ? 1 : tensor.shape.back();
    return Eigen::Map<const Matrix<T>>(values.data(), rows, rows == 0 ? 0 : Index(values.size()) / rows);
  }

  /// A Linear weight [out, in] as it is stored.
  Weight<float> weight(const std::string& name) const { return columns(name).transpose(); }

  /// One that is applied as x·W, stored [in, out].
  Weight<float> turned_weight(const std::string& name) const { return columns(name); }

  Eigen::VectorXf vector(const std::string& name) const { return columns(name).reshaped(); }
  float number(const std::string& name) const { return vector(name)(0); }
  std::vector<Index> shape(const std::string& name) const { return tensors.at(name).shape; }
};

/// W·x, number by number: Eigen's blocked products take seconds to compile.
inline Matrix<float> product(const Weight<float>& w, const Matrix<float>& x) { return w.lazyProduct(x); }

/// Every |got − expected| ≤ tolerance + tolerance · |expected|, element by element; shapes must agree.
template <class Got, class Expected>
void expect_close(const Got& got, const Expected& expected, const std::string& what, double tolerance = 1e-5) {
  ASSERT_EQ(got.rows(), expected.rows()) << what;
  ASSERT_EQ(got.cols(), expected.cols()) << what;
  for (Index c = 0; c < got.cols(); ++c) {
    for (Index r = 0; r < got.rows(); ++r) {
      const auto g = double(got(r, c)), e = double(expected(r, c));
      ASSERT_TRUE(std::abs(g - e) <= tolerance + tolerance * std::abs(e))
          << what << " (" << r << ", " << c << ") is " << g << ", expected " << e;
    }
  }
}

/// A loss: 1e-5 relative.
inline void expect_loss(double got, double expected, const std::string& what) {
  EXPECT_NEAR(got, expected, 1e-5 * std::abs(expected)) << what;
}

/// What each token gives each expert, (num_experts × n_tokens); dropped routes give nothing.
inline Matrix<float> weights_of(const Routing<float>& routing, Index num_experts, Index num_tokens) {
  Matrix<float> weights = Matrix<float>::Zero(num_experts, num_tokens);
  for (Index r = 0; r < routing.size(); ++r) {
    const auto i = std::size_t(r);
    if (!routing.is_dropped(r)) weights(routing.expert[i], routing.token[i]) += routing.weight[i];
  }
  return weights;
}

/// The routes of each token are those of the tensors `index` and `weight` [T, k], in any order: references ask for an
/// unsorted top-k. An index of −1 stands for a route that was dropped.
inline void expect_same_routes(const Routing<float>& routing, Index num_experts, const Case& reference,
                               const std::string& index = "topk_index", const std::string& weight = "topk_weight") {
  const auto experts = reference.columns<std::int64_t>(index);
  const auto weights = reference.columns(weight);
  const Index num_tokens = experts.cols();
  Eigen::MatrixXi chosen = Eigen::MatrixXi::Zero(num_experts, num_tokens), expected_chosen = chosen;
  Matrix<float> expected = Matrix<float>::Zero(num_experts, num_tokens);
  Index kept = 0;
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index k = 0; k < experts.rows(); ++k) {
      const Index e = experts(k, t);
      if (e < 0) continue;
      ++kept;
      ++expected_chosen(e, t);
      expected(e, t) = weights(k, t);
    }
  }
  for (Index r = 0; r < routing.size(); ++r) {
    if (!routing.is_dropped(r)) ++chosen(routing.expert[std::size_t(r)], routing.token[std::size_t(r)]);
  }
  EXPECT_EQ(routing.size(), experts.size());
  EXPECT_EQ(routing.size() - routing.num_dropped(), kept);
  for (Index t = 0; t < num_tokens; ++t) {
    EXPECT_EQ(chosen.col(t), expected_chosen.col(t)) << "experts of token " << t;
  }
  expect_close(weights_of(routing, num_experts, num_tokens), expected, weight);
}

}  // namespace moe::golden
