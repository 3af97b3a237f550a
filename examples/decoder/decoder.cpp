// Qwen3-MoE or Mixtral from a Hugging Face folder, in numbers of tokens: what a tokenizer makes of a text goes in, the
// likeliest continuation comes out. The MoE layer is one line of it: see Decoder::read() in decoder.hpp.
//   decoder FOLDER --tokens 1,2,3 --generate 8    (--help: what else)
#include "decoder.hpp"

#include <charconv>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "recorded.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace {

using moe::Index;

/// What the command line may say, and what holds where it does not.
struct Options {
  std::string folder = "tests/real/mixtral";
  std::map<std::string_view, std::string> value = {
      {"--tokens", "1,2,3"},                                   // of the vocabulary, to begin with
      {"--generate", "8"},                                     // so many more
      {"--threads", std::to_string(moe::OpenMp().workers())},  // so many
      {"--logits", ""},                                        // compare with those in this file, and no more
      {"--routing", ""}};                                      // write to this file where tokens went, as JSON lines

  Options(int argc, char** argv) {
    if (argc > 1) folder = argv[1];
    for (int i = 2; i < argc; i += 2) {
      const auto named = value.find(argv[i]);
      if (named == value.end()) throw std::invalid_argument(std::string(argv[i]) + " is no option; see --help");
      if (i + 1 == argc) throw std::invalid_argument(std::string(argv[i]) + " has no value; see --help");
      named->second = argv[i + 1];
    }
  }

  /// Whole numbers with commas between them.
  std::vector<Index> numbers(std::string_view option) const {
    std::vector<Index> numbers;
    std::istringstream text(value.at(option));
    for (std::string word; std::getline(text, word, ',');) {
      const char* const end = word.data() + word.size();
      const auto [after, error] = std::from_chars(word.data(), end, numbers.emplace_back());
      if (error != std::errc() || after != end) numbers.back() = -1;
    }
    if (numbers.empty() || std::ranges::min(numbers) < 0) {
      throw std::invalid_argument(std::string(option) + " is \"" + text.str() + "\", expected whole numbers: 1,2,3");
    }
    return numbers;
  }
  Index number(std::string_view option) const {
    const std::vector<Index> all = numbers(option);
    if (all.size() != 1) throw std::invalid_argument(std::string(option) + ": expected one number");
    return all[0];
  }
};

/// A line that the next one overwrites, on standard error, and only if that is a terminal; empty: it is gone.
void show_progress(const std::string& what) {
#if defined(__unix__) || defined(__APPLE__)
  static const bool is_watched = isatty(STDERR_FILENO) != 0;
  if (is_watched) std::fprintf(stderr, "\r\033[K%s", what.c_str());
#endif
}

std::string so_far(const char* doing, Index done, Index all) {
  return std::string(doing) + " " + std::to_string(done) + " of " + std::to_string(all);
}

/// What may follow these tokens: (vocabulary × 1) logits. They are read some at a time, so that attention never has
/// more than so many columns of scores.
moe::Matrix<float> prefill(const decoder::Decoder& model, std::span<const Index> tokens, decoder::Text& text,
                           moe::ExecutorRef executor) {
  constexpr std::size_t piece = 512;
  moe::Matrix<float> x;
  for (std::size_t first = 0; first < tokens.size(); first += piece) {
    show_progress(so_far("token", text.length(), std::ssize(tokens)));
    x = model.read(tokens.subspan(first, std::min(piece, tokens.size() - first)), text, executor);
  }
  return model.logits(x.rightCols(1), executor);
}

/// Compares with recorded logits: all tokens at once, and one by one with the cache.
bool agrees(const decoder::Decoder& model, const std::string& file, moe::ExecutorRef executor) {
  const auto [tokens, recorded] = decoder::read_recorded(file);
  decoder::Text at_once, one_by_one;
  const moe::Matrix<float> all = model.logits(model.read(tokens, at_once, executor), executor);
  moe::Matrix<float> each(all.rows(), all.cols());
  for (Index t = 0; t < all.cols(); ++t) {
    show_progress(so_far("token", t, all.cols()));
    each.col(t) = model.logits(model.read({&tokens[std::size_t(t)], 1}, one_by_one, executor), executor);
  }
  show_progress("");
  bool all_agree = true;
  const auto tell = [&](const char* what, const moe::Matrix<float>& a, const moe::Matrix<float>& b) {
    const decoder::Agreement agreement = decoder::compare(a, b);
    std::printf("%s: largest difference %.1e, likeliest token the same at %td of %td positions\n", what,
                agreement.largest_difference, agreement.same_best, agreement.positions);
    all_agree &= agreement.is_within(1e-4);
  };
  tell("at once, and recorded   ", all, recorded);
  tell("one by one, and recorded", each, recorded);
  tell("one by one, and at once ", each, all);
  return all_agree;
}

void tell_rate(const char* what, Index tokens, std::chrono::duration<double> seconds) {
  std::fprintf(stderr, "%s %td tokens, %.1f a second\n", what, tokens, double(tokens) / seconds.count());
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options(argc, argv);
  if (options.folder == "--help") {
    std::puts("decoder [FOLDER [--tokens 1,2,3] [--generate N] [--threads N] [--logits FILE] [--routing FILE]]");
    return 0;
  }
  const std::vector<Index> tokens = options.numbers("--tokens");
  const Index generate = options.number("--generate");
  const moe::OpenMp executor(options.number("--threads"));
  Eigen::setNbThreads(1);  // rows and heads are split over our own

  const decoder::Decoder model =
      decoder::load(options.folder, [](Index layer, Index of) { show_progress(so_far("loading layer", layer, of)); });
  show_progress("");
  if (const std::string& file = options.value.at("--logits"); !file.empty()) {
    return agrees(model, file, executor) ? 0 : 1;
  }

  using Clock = std::chrono::steady_clock;
  decoder::Text text;
  const auto began = Clock::now();
  moe::Matrix<float> logits = prefill(model, tokens, text, executor);
  const auto was_read = Clock::now();
  show_progress("");
  for (Index i = 0; i < generate; ++i) {
    const Index next = decoder::best_token(logits, 0);
    std::printf(i == 0 ? "%td" : ",%td", next);
    std::fflush(stdout);
    if (i + 1 < generate) logits = model.logits(model.read({&next, 1}, text, executor), executor);
  }
  const auto ended = Clock::now();
  std::puts("");
  tell_rate("read", std::ssize(tokens), was_read - began);
  if (generate > 1) tell_rate("generated", generate - 1, ended - was_read);  // the first was free

  std::puts("layer  tokens  busiest expert  idle experts  entropy");
  std::vector<moe::LayerStats> layers;
  for (const auto& [layer, stats] : text.routing) {
    std::printf("%5td  %6td  %7.2f × mean  %12td  %4.2f nats\n", layer, stats.num_tokens(), stats.load_peak(),
                stats.num_dead_experts(), stats.mean_entropy());
    layers.push_back({"layer " + std::to_string(layer), stats});
  }
  if (const std::string& path = options.value.at("--routing"); !path.empty()) {
    std::ofstream file(path);
    file << moe::to_json_line(layers);
    if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
  }
} catch (const std::exception& error) {
  show_progress("");
  std::fprintf(stderr, "decoder: %s\n", error.what());
  return 2;
}

/* Output:
51,1,27,8,35,41,27,9
layer  tokens  busiest expert  idle experts  entropy
    0      10     3.60 × mean             2  1.28 nats
    1      10     2.80 × mean             2  1.48 nats
*/
