// Qwen3-MoE or Mixtral from a Hugging Face folder, in numbers of tokens: what a tokenizer makes of a text goes in, the
// likeliest continuation comes out. The MoE layer is one line of it: see Decoder::read() in decoder.hpp.
//   decoder FOLDER --tokens 1,2,3 --generate 8    (--help: what else)
#include "decoder.hpp"

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <map>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "recorded.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace {

using moe::Index;

/// What the command line may say behind the folder, and what holds where it does not.
std::map<std::string, std::string> read_options(int argc, char** argv) {
  std::map<std::string, std::string> options = {
      {"--tokens", "1,2,3"},                                   // of the vocabulary, to begin with
      {"--generate", "8"},                                     // so many more
      {"--threads", std::to_string(moe::OpenMp().workers())},  // so many
      {"--logits", ""},                                        // compare with those in this file, and no more
      {"--routing", ""}};                                      // write to this file where tokens went, as JSON lines
  for (int i = 2; i < argc; i += 2) {
    if (!options.contains(argv[i])) throw std::invalid_argument(std::string(argv[i]) + " is no option; see --help");
    if (i + 1 == argc) throw std::invalid_argument(std::string(argv[i]) + " has no value; see --help");
    options[argv[i]] = argv[i + 1];
  }
  return options;
}

/// Whole numbers with commas between them.
std::vector<Index> to_numbers(const std::string& text) {
  std::vector<Index> numbers;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const bool is_number = !word.empty() && word.size() < 10 && word.find_first_not_of("0123456789") == word.npos;
    if (!is_number) throw std::invalid_argument("\"" + text + "\" has \"" + word + "\", expected whole numbers: 1,2,3");
    numbers.push_back(std::stol(word));
  }
  if (numbers.empty()) throw std::invalid_argument("no number, expected whole numbers: 1,2,3");
  return numbers;
}

/// A line that the next one overwrites, on standard error, and only if that is a terminal; empty: it is gone.
void show_progress(const std::string& what) {
#if defined(__unix__) || defined(__APPLE__)
  static const bool is_watched = isatty(STDERR_FILENO) != 0;
  if (is_watched) std::fprintf(stderr, "\r\033[K%s", what.c_str());
#endif
}

void show_progress(const char* doing, Index done, Index all) {
  show_progress(std::string(doing) + " " + std::to_string(done) + " of " + std::to_string(all));
}

/// The logits of so many last tokens. They are read some at a time, so that attention never has more than `piece`
/// columns of scores.
moe::Matrix<float> read(const decoder::Decoder& model, std::span<const Index> tokens, decoder::Text& text, Index last,
                        std::size_t piece, moe::ExecutorRef executor) {
  moe::Matrix<float> all(model.settings.d_model, std::ssize(tokens));
  for (std::size_t first = 0; first < tokens.size(); first += piece) {
    show_progress("token", Index(first), std::ssize(tokens));
    const auto some = tokens.subspan(first, std::min(piece, tokens.size() - first));
    all.middleCols(Index(first), std::ssize(some)) = model.read(some, text, executor);
  }
  show_progress("");
  return model.logits(all.rightCols(last), executor);
}

/// Compares with recorded logits: all tokens at once, and one by one with the cache.
bool agrees(const decoder::Decoder& model, const std::string& file, moe::ExecutorRef executor) {
  const auto [tokens, recorded] = decoder::read_recorded(file);
  decoder::Text at_once, one_by_one;
  const moe::Matrix<float> all = read(model, tokens, at_once, recorded.cols(), tokens.size(), executor),
                           each = read(model, tokens, one_by_one, recorded.cols(), 1, executor);
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
  const std::string folder = argc > 1 ? argv[1] : "tests/real/mixtral";
  if (folder == "--help") {
    std::puts("decoder [FOLDER [--tokens 1,2,3] [--generate N] [--threads N] [--logits FILE] [--routing FILE]]");
    return 0;
  }
  auto options = read_options(argc, argv);
  const std::vector<Index> tokens = to_numbers(options["--tokens"]);
  const Index generate = to_numbers(options["--generate"])[0];
  const moe::OpenMp executor(to_numbers(options["--threads"])[0]);
  Eigen::setNbThreads(1);  // heads are split over our own

  const decoder::Decoder model =
      decoder::load(folder, [](Index layer, Index of) { show_progress("loading layer", layer, of); });
  show_progress("");
  if (!options["--logits"].empty()) return agrees(model, options["--logits"], executor) ? 0 : 1;

  using Clock = std::chrono::steady_clock;
  decoder::Text text;
  const auto began = Clock::now();
  moe::Matrix<float> logits = read(model, tokens, text, 1, 512, executor);
  const auto was_read = Clock::now();
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
  if (const std::string& path = options["--routing"]; !path.empty()) {
    std::ofstream file(path);
    if (!(file << moe::to_json_line(layers)).flush()) throw std::runtime_error(path + ": cannot be written");
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
