/// @file  Two layers of as many bytes and products, in turns: with gated experts, and with experts that are not.
#pragma once

#include <vector>

#include "arena.hpp"
#include "moe/moe.hpp"
#include "timing.hpp"

namespace moe::bench {

/// d_model 2048, 32 experts of which a token meets 8; d_ff 768 of gated ones, and half as much again of the others.
template <class W>
class GatedOrNot {
  static constexpr Index d_model = 2048, d_ff = 768, num_experts = 32, top_k = 8;

 public:
  explicit GatedOrNot(Index num_tokens)
      : num_tokens_(num_tokens), tokens_(d_model, num_tokens), y_(d_model, num_tokens) {
    for (int warm_up = 0; warm_up < 2; ++warm_up) time_both();
    gated_.clear(), plain_.clear();
  }

  /// Both see the same tokens, others each time.
  void time_both() {
    const auto x = tokens_.next(num_tokens_);
    gated_.push_back(seconds_of([&] { of_gated_.forward(x, y_, ws_); }));
    plain_.push_back(seconds_of([&] { of_plain_.forward(x, y_, ws_); }));
  }

  /// Medians, in seconds.
  double gated() const { return median(gated_); }
  double plain() const { return median(plain_); }

 private:
  static LinearTopK<float> router() { return {moe::random_weight<float>(num_experts, d_model, 1), {.top_k = top_k}}; }

  Index num_tokens_;
  Tokens tokens_;
  Matrix<float> y_;
  Workspace<float> ws_;
  MoeLayer<LinearTopK<float>, FfnBank<W, SwiGlu>> of_gated_{router(),
                                                            moe::random_bank<W>(num_experts, d_model, d_ff, 2)};
  MoeLayer<LinearTopK<float>, FfnBank<W, ReluSquared>> of_plain_{
      router(), moe::random_bank<W, ReluSquared>(num_experts, d_model, 3 * d_ff / 2, 3)};
  std::vector<double> gated_, plain_;
};

}  // namespace moe::bench
