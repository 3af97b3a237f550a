/// @file  Does sparse pay in what it learns? Byte-level language models on real text: dense FFNs against sparse ones of
///        equal active size, with the same data in the same order.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "learning/corpus.hpp"
#include "learning/options.hpp"
#include "learning/record.hpp"
#include "learning/report.hpp"
#include "learning/seed.hpp"
#include "learning/texts.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "records_file.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

/// @throws std::invalid_argument if there is none.
std::vector<Text> texts_of(const LearnOptions& o) {
  std::vector<Text> texts;
  for (const std::string& file : o.texts) texts.push_back({file, read_text(file)});
  if (!o.texts.empty()) return texts;
  for (const KnownText& known : known_texts(EIGEN_FOLDER)) {
    if (auto text = find(known)) {
      texts.push_back(std::move(*text));
    } else {
      std::fprintf(stderr, "learn: %s\n", how_to_get(known).c_str());
    }
  }
  if (texts.empty()) throw std::invalid_argument("no text to learn from: name one by --text");
  return texts;
}

/// All texts and seeds, one after the other.
class Learning {
 public:
  explicit Learning(const LearnOptions& options) : o_(options), file_(options.json) {
    for (Text& text : texts_of(o_)) {
      names_.push_back(text.name);
      corpora_.emplace_back(std::move(text.bytes), o_.shape.context, text.name, o_.batch);
    }
    for (const Kind& kind : o_.kinds) all_work_ += work_of(kind, o_) * double(o_.seeds) * double(corpora_.size());
  }

  void run() {
    std::printf("%s, %td thread%s, %s; %td steps of %td bytes, d_model %td, %td active units in each of %td blocks\n",
                processor_name().c_str(), o_.threads, o_.threads == 1 ? "" : "s", compiler_name().c_str(), o_.steps,
                o_.batch, o_.shape.d_model, o_.active, o_.blocks);
    for (std::size_t i = 0; i < corpora_.size(); ++i) learn_from(i);
    progress_.clear();
    std::printf("\n%.1f minutes in all\n", progress_.seconds() / 60);
  }

 private:
  void learn_from(std::size_t which) {
    const Corpus& corpus = corpora_[which];
    const std::string& name = names_[which];
    progress_.clear();
    std::printf("\n%s, %.2f MB, every tenth chunk held out\n%s\n", name.c_str(), 1e-6 * double(corpus.size()),
                learning_head);
    std::fflush(stdout);
    const Examples held_out = corpus.held_out(8192);
    std::vector<std::vector<Run>> seeds;
    const auto begin = std::uint64_t(o_.first_seed);
    for (std::uint64_t seed = begin; seed < begin + std::uint64_t(o_.seeds); ++seed) {
      const std::size_t first = file_.size();
      const auto keep = [&](const std::vector<Run>& runs, bool all) {
        for (std::size_t k = 0; k < runs.size(); ++k)
          file_.set(first + k, record_of(runs[k], all ? runs : std::vector<Run>(), name, o_));
        file_.write();
      };
      seeds.push_back(learn_all(corpus, held_out, o_, seed, [&](const std::vector<Run>& runs, double work) {
        done_ += work;
        progress_.show(done_ / all_work_, name + ", seed " + std::to_string(seed));
        keep(runs, false);
      }));
      keep(seeds.back(), true);
      progress_.clear();
      for (const Run& run : seeds.back()) std::printf("%s\n", line_of(run, seeds.back()).c_str());
      std::fflush(stdout);
    }
    std::printf("\nTo dense, means over seeds (least ... most):\n");
    for (std::size_t k = 1; k < o_.kinds.size(); ++k) std::printf("%s\n", verdict_of(seeds, k).c_str());
    std::fflush(stdout);
  }

  const LearnOptions& o_;
  RecordsFile file_;  // first of all: said before anything is learnt
  std::vector<std::string> names_;
  std::vector<Corpus> corpora_;
  Progress progress_;
  double all_work_ = 0, done_ = 0;
};

}  // namespace

int main(int argc, char** argv) try {
  LearnOptions options;
  if (const auto exit_code = read_options(argc, argv, options)) return *exit_code;
  Eigen::setNbThreads(int(options.threads));
  Learning(options).run();
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "learn: %s\n", error.what());
  return EXIT_FAILURE;
}
