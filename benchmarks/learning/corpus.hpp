/// @file  Text to learn from: bytes, some of them held out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"

namespace moe::bench {

/// A byte and those before it, for each column.
struct Examples {
  Eigen::Array<std::uint8_t, Eigen::Dynamic, Eigen::Dynamic> context;  // (context length × examples), oldest first
  std::vector<std::uint8_t> next;
};

class Corpus {
 public:
  static constexpr Index chunk = 8192, held_out_every = 10;  // every tenth chunk of so many bytes is held out
  static constexpr Index few = 16;

  /// @param name   of the text, for errors
  /// @param batch  of a step
  /// @throws std::invalid_argument if the text is shorter than a few batches, or has no chunk to hold out.
  Corpus(std::string text, Index context, const std::string& name, Index batch)
      : text_(std::move(text)), context_(context) {
    const Index chunks = Index(text_.size()) / chunk, least = std::max(held_out_every * chunk, few * batch);
    if (Index(text_.size()) < least) {
      throw std::invalid_argument(name + " has " + std::to_string(text_.size()) + " bytes, expected at least " +
                                  std::to_string(least));
    }
    if (context >= chunk) {
      throw std::invalid_argument("--context is " + std::to_string(context) + ", expected less than " +
                                  std::to_string(chunk));
    }
    for (Index c = 0; c < chunks; ++c) (c % held_out_every == held_out_every - 1 ? held_out_ : training_).push_back(c);
  }

  Index size() const { return Index(text_.size()); }

  /// The batch of a step: the same for all who ask with the same seed.
  Examples batch(Index size, std::uint64_t seed, std::uint64_t step) const {
    return draw(training_, size, seed, step * std::uint64_t(size));
  }
  Examples held_out(Index size) const { return draw(held_out_, size, 0, 0); }

 private:
  Examples draw(const std::vector<Index>& chunks, Index size, std::uint64_t seed, std::uint64_t first) const {
    Examples examples{{context_, size}, std::vector<std::uint8_t>(std::size_t(size))};
    const Index places = chunk - context_;
    for (Index i = 0; i < size; ++i) {
      const Index n = random_below(Index(chunks.size()) * places, seed, first + std::uint64_t(i));
      const auto at = std::size_t(chunks[std::size_t(n / places)] * chunk + n % places);
      for (Index k = 0; k < context_; ++k) examples.context(k, i) = std::uint8_t(text_[at + std::size_t(k)]);
      examples.next[std::size_t(i)] = std::uint8_t(text_[at + std::size_t(context_)]);
    }
    return examples;
  }

  std::string text_;
  Index context_;
  std::vector<Index> training_, held_out_;
};

}  // namespace moe::bench
