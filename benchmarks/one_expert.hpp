/// @file  One expert, whose weights lie in the caches: some tokens beside as many as fill a block, in turns.
#pragma once

#include <vector>

#include "arena.hpp"
#include "moe/moe.hpp"
#include "timing.hpp"

namespace moe::bench {

/// d_model 512, d_ff 256: 1.5 MB of float.
template <class W>
class OneExpert {
  static constexpr Index d_model = 512, d_ff = 256;

 public:
  /// Tokens of the next full block, of 64.
  static Index full(Index num_tokens) { return (num_tokens + 63) / 64 * 64; }

  explicit OneExpert(Index num_tokens)
      : num_tokens_(num_tokens), tokens_(d_model, full(num_tokens)), y_(d_model, full(num_tokens)) {
    ws_.numerics.products = Products::fast;
    for (int warm_up = 0; warm_up < 2; ++warm_up) time_both();
    some_.clear(), all_.clear();
  }

  void time_both() {
    const Index all = full(num_tokens_);
    const auto x = tokens_.next(all);
    some_.push_back(seconds_of([&] { layer_.forward(x.leftCols(num_tokens_), y_.leftCols(num_tokens_), ws_); }));
    all_.push_back(seconds_of([&] { layer_.forward(x, y_, ws_); }));
  }

  double gflops() const { return 1e-9 * double(6 * d_model * d_ff * num_tokens_) / median(some_); }
  /// The time by these tokens' share of that of the full block.
  double excess() const { return median(some_) * double(full(num_tokens_)) / (median(all_) * double(num_tokens_)); }

 private:
  Index num_tokens_;
  Tokens tokens_;
  Matrix<float> y_;
  Workspace<float> ws_;
  DenseLayer<FfnBank<W, SwiGlu>> layer_{moe::random_bank<W>(1, d_model, d_ff, 1)};
  std::vector<double> some_, all_;
};

}  // namespace moe::bench
