/// @file  Does sparse pay in what it learns? Byte-level language models on real text: dense FFNs against sparse ones of
///        equal active size, with the same data in the same order.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
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

/// All texts and seeds, some at once.
class Learning {
 public:
  explicit Learning(const LearnOptions& options) : o_(options), file_(options.json) {
    for (Text& text : texts_of(o_)) {
      names_.push_back(text.name);
      corpora_.emplace_back(std::move(text.bytes), o_.shape.context, text.name, o_.batch);
    }
    runs_.resize(corpora_.size(), std::vector<std::vector<Run>>(std::size_t(o_.seeds)));
    for (const Kind& kind : o_.kinds) all_work_ += work_of(kind, o_) * double(o_.seeds) * double(corpora_.size());
  }

  /// @throws what a run throws; the others then end after their part.
  void run() {
    const auto at_once = std::size_t(std::min<Index>(o_.at_once, Index(corpora_.size()) * o_.seeds));
    std::printf("%s, %td thread%s%s, %s; %td steps of %td bytes, d_model %td, %td active units in each of %td blocks\n",
                processor_name().c_str(), o_.threads, o_.threads == 1 ? "" : "s",
                at_once > 1 ? text(" a run, %zu runs at once", at_once).c_str() : "", compiler_name().c_str(), o_.steps,
                o_.batch, o_.shape.d_model, o_.active, o_.blocks);
    {
      std::vector<std::jthread> others;
      for (std::size_t i = 1; i < at_once; ++i) others.emplace_back([this] { learn_in_turn(); });
      learn_in_turn();
    }
    progress_.clear();
    if (error_) std::rethrow_exception(error_);
    std::printf("\n%.1f minutes in all\n", progress_.seconds() / 60);
  }

 private:
  void learn_in_turn() {
    while (true) {
      const std::size_t job = next_++, seeds = std::size_t(o_.seeds);
      if (job >= corpora_.size() * seeds) return;
      try {
        learn(job / seeds, job % seeds);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_ = corpora_.size() * seeds;
        return;
      }
    }
  }

  void learn(std::size_t which, std::size_t nth) {
    const auto seed = std::uint64_t(o_.first_seed) + nth;
    std::vector<std::size_t> records;  // where these runs are in the file
    const auto keep = [&](const std::vector<Run>& runs, bool all) {
      for (std::size_t k = 0; k < runs.size(); ++k) {
        if (records.size() == k) records.push_back(file_.size());
        file_.set(records[k], record_of(runs[k], all ? runs : std::vector<Run>(), names_[which], o_));
      }
      file_.write();
    };
    auto runs = learn_all(corpora_[which], corpora_[which].held_out(8192), o_, seed,
                          [&](const std::vector<Run>& so_far, double work) {
                            const std::lock_guard lock(mutex_);
                            if (error_) throw std::runtime_error("another run has failed");
                            done_ += work;
                            progress_.show(done_ / all_work_, names_[which] + ", seed " + std::to_string(seed));
                            keep(so_far, false);
                          });
    const std::lock_guard lock(mutex_);
    keep(runs, true);
    runs_[which][nth] = std::move(runs);
    print_what_is_complete();
  }

  /// Texts in their order.
  void print_what_is_complete() {
    for (; printed_ < runs_.size(); ++printed_) {
      const auto& seeds = runs_[printed_];
      if (std::ranges::any_of(seeds, [](const auto& runs) { return runs.empty(); })) return;
      progress_.clear();
      std::printf("\n%s, %.2f MB, every tenth chunk held out\n%s\n", names_[printed_].c_str(),
                  1e-6 * double(corpora_[printed_].size()), learning_head);
      for (const auto& runs : seeds) {
        for (const Run& run : runs) std::printf("%s\n", line_of(run, runs).c_str());
      }
      std::printf("\nTo dense, means over seeds (least ... most):\n");
      for (std::size_t k = 1; k < o_.kinds.size(); ++k) std::printf("%s\n", verdict_of(seeds, k).c_str());
      std::fflush(stdout);
    }
  }

  const LearnOptions& o_;
  RecordsFile file_;  // first of all: said before anything is learnt
  std::vector<std::string> names_;
  std::vector<Corpus> corpora_;
  std::atomic<std::size_t> next_ = 0;  // text and seed
  std::mutex mutex_;                   // of what follows, and of the file
  Progress progress_;
  double all_work_ = 0, done_ = 0;
  std::vector<std::vector<std::vector<Run>>> runs_;  // of each text, of each seed
  std::size_t printed_ = 0;                          // texts
  std::exception_ptr error_;
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
