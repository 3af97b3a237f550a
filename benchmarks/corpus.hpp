/// @file  Text to learn from: bytes, some of them held out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
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

  explicit Corpus(std::string text, Index context) : text_(std::move(text)), context_(context) {
    const Index chunks = Index(text_.size()) / chunk;
    if (chunks < held_out_every) {
      throw std::invalid_argument("the text has " + std::to_string(text_.size()) + " bytes, expected at least " +
                                  std::to_string(held_out_every * chunk));
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

inline std::string read_text(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::invalid_argument(file.string() + ": cannot be read");
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// All headers below a folder, in order of name: those of Eigen are on every machine that builds this.
inline std::string read_headers(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".h") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::string text;
  for (const auto& file : files) text += read_text(file);
  return text;
}

}  // namespace moe::bench
