/// @file  Logits that another program has computed, to compare with.
#pragma once

#include <moe/io/safetensors.hpp>
#include <moe/moe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <span>
#include <vector>

namespace decoder {

using moe::Index;

struct Recorded {
  std::vector<Index> tokens;
  moe::Matrix<float> logits;  // (vocabulary × n_tokens)
};

/// @param file  with input_ids (1, n) and logits (1, n, vocabulary)
/// @throws moe::io::Error naming file and tensor, if it has none.
inline Recorded read_recorded(const std::filesystem::path& file) {
  const moe::io::Tensors tensors = moe::io::Tensors::open(file);
  const moe::io::Tensor ids = tensors.at("input_ids"), logits = tensors.at("logits");
  const std::span<const std::int64_t> tokens = moe::io::as<std::int64_t>(ids);
  moe::io::require_shape(logits, {1, std::ssize(tokens), logits.shape.empty() ? 0 : logits.shape.back()});
  const moe::Weight<float> numbers = moe::io::read(logits);
  return {{tokens.begin(), tokens.end()},
          Eigen::Map<const moe::Matrix<float>>(numbers.data(), logits.shape.back(), std::ssize(tokens))};
}

struct Agreement {
  double largest_difference;   // |a − b| / max(1, |b|); infinite if one is no number
  Index same_best, positions;  // how often the likeliest token is the same

  bool is_within(double tolerance) const { return largest_difference <= tolerance && same_best == positions; }
};

inline Index best_token(const moe::Matrix<float>& logits, Index position) {
  Index best = 0;
  logits.col(position).maxCoeff(&best);
  return best;
}

inline Agreement compare(const moe::Matrix<float>& a, const moe::Matrix<float>& b) {
  moe::require_equal(a.rows(), b.rows(), "decoder: logits.rows()");
  moe::require_equal(a.cols(), b.cols(), "decoder: logits.cols()");
  const Eigen::ArrayXXd off =
      (a - b).cwiseAbs().cast<double>().array() / b.cwiseAbs().cwiseMax(1.0F).cast<double>().array();
  Agreement agreement{off.isFinite().all() ? off.maxCoeff() : std::numeric_limits<double>::infinity(), 0, a.cols()};
  for (Index t = 0; t < a.cols(); ++t) agreement.same_best += best_token(a, t) == best_token(b, t);
  return agreement;
}

}  // namespace decoder
