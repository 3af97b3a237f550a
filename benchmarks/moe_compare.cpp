/// @file  Is sparse worth it here? Measures a sparse layer against dense ones, and against Eigen by hand.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "answer_error.hpp"
#include "coded_pool.hpp"
#include "command_line.hpp"
#include "compare.hpp"
#include "limits.hpp"
#include "machine.hpp"
#include "memory.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "ranks/compare.hpp"
#include "records.hpp"
#include "subject.hpp"
#include "table.hpp"
#include "verdict.hpp"

namespace {

using namespace moe::bench;
using moe::Index;

Index largest(const std::vector<Index>& numbers) { return *std::max_element(numbers.begin(), numbers.end()); }

/// Says so if it does not.
bool fits_in_memory(const Subject& subject, Index max_tokens) {
  try {
    require_memory(bytes_of_arena(subject.shape, subject.num_layers(), bytes_of(subject.weights), max_tokens),
                   subject.name + " with " + name_of(subject.weights) + " weights");
    return true;
  } catch (const DoesNotFit& refusal) {
    std::fprintf(stderr, "moe_compare: %s\n", refusal.what());
    return false;
  }
}

Limits measure_and_print_limits(Index threads) {
  Progress progress;
  progress.show(0, "what this machine can do");
  const Limits limits = measure_limits(threads);
  progress.clear();
  std::printf(
      "%s, %td thread%s, %s, kernels for %s\nlimits measured: %s GFLOP/s of float multiply-adds, %s of bytes, %s GB/s "
      "read from memory\n\n",
      processor_name().c_str(), threads, threads == 1 ? "" : "s", compiler_name().c_str(), moe::target_name,
      three_digits(limits.fma_gflops).c_str(), three_digits(limits.bytes_gflops).c_str(),
      three_digits(limits.read_gbs).c_str());
  return limits;
}

/// Whether fast products are others than exact ones, of weights that are coded.
template <class W>
bool multiplies_integers([[maybe_unused]] const Subject& subject, [[maybe_unused]] const Arena<W>& arena) {
  if constexpr (std::is_same_v<W, moe::Quantized>) {
    return subject.layer || experts_of(arena, 0).w_gate().are_integers();
  } else {
    return false;
  }
}

/// Prints the table while it grows, and writes what is measured.
template <class W>
void compare(const Subject& subject, const std::vector<Index>& token_counts, Index threads, const Limits& limits,
             const Patience& patience, RecordsFile& file) {
  Progress progress;
  const auto show = [&](double step, const std::string& what) {
    progress.show(step / double(token_counts.size() + 1), name_of(subject.weights) + (", " + what));
  };
  const auto arena = make_arena<W>(subject.weights, subject.shape, subject.num_layers(), threads,
                                   [&](double share) { show(share, "making up weights"); });
  std::vector<Measured> sparse;
  for (const Kind kind : {Kind::moe, Kind::moe_fast}) {
    const moe::Numerics numerics = numerics_of(kind);
    if (kind == Kind::moe_fast && !multiplies_integers(subject, arena)) continue;
    if (subject.layer) {  // nobody knows what real weights were
      sparse.push_back(
          {kind, std::make_unique<Sparse<moe::AnyLayer<float>>>(std::vector{*subject.layer}, subject.shape,
                                                                bytes_of(subject.weights), threads, numerics)});
    } else {
      sparse.push_back({kind, make_sparse(arena, numerics), answer_error(arena, numerics)});
    }
  }
  Comparison comparison(arena, std::move(sparse), subject.weights, largest(token_counts), limits, patience);
  progress.clear();
  std::printf("%s\n%s", description(subject).c_str(), table_head().c_str());

  const Setting setting{subject.name, subject.shape, subject.weights, threads, limits};
  std::vector<Row> rows;
  for (std::size_t i = 0; i < token_counts.size(); ++i) {
    show(double(i + 1), detail::tokens_text(token_counts[i]));
    const auto new_rows = comparison.rows_for(token_counts[i]);
    progress.clear();
    std::printf("%s\n", table_lines(new_rows, subject.shape).c_str());
    std::fflush(stdout);
    rows.insert(rows.end(), new_rows.begin(), new_rows.end());
    for (const Row& row : new_rows) {
      if (row.measured) file.add(record_of(row, setting));
    }
  }
  std::printf("%s\n\n", wrapped(verdict(rows)).c_str());
}

void print_legend(bool real_weights) {
  const std::string legend =
      "reads: bytes of the experts that were used. error: how far the sparse layer's answers are from those of float "
      "weights, by their norm. share of limit: the time that the measured limits allow, by the "
      "time "
      "taken; of fast products those of bytes. Dense FFNs of as many parameters as one token meets (active), or as "
      "there are (total), run on this "
      "library "
      "as well. By hand: Eigen's matrix-vector products for each token, or its matrix products for each expert; "
      "weights "
      "of 16 bits are cast to float first. Nothing is combined after the experts: they add to the output where they "
      "work. Every call gets other tokens, ";
  const char* const which = real_weights ? "and the same weights, of one layer." : "and weights that no cache holds.";
  std::printf("%s\n", wrapped(legend + which).c_str());
}

int run(const CommandLine& line) {
  RecordsFile file(line.json);
  auto subjects = subjects_of(line);
  const auto token_counts = parse_numbers(line.tokens, "--tokens");
  const Index max_tokens = largest(token_counts), threads = line.threads.value_or(default_threads());
  const bool some_refused =
      std::erase_if(subjects, [&](const Subject& s) { return !fits_in_memory(s, max_tokens); }) > 0;
  if (subjects.empty()) return 1;

  const Limits limits = measure_and_print_limits(threads);
  for (const Subject& subject : subjects) {
    with_type(subject.weights, [&]<class W>(std::type_identity<W>) {
      compare<W>(subject, token_counts, threads, limits, line.patience, file);
    });
  }
  print_legend(!line.checkpoint.empty());
  return some_refused ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) try {
  CommandLine line;
  if (const auto exit_code = read_command_line(argc, argv, line)) return *exit_code;
  if (line.list_presets) {
    std::printf("%s", table_of_presets().c_str());
    return 0;
  }
  if (line.distributed) return compare_on_ranks(argc, argv, line);
  return run(line);
} catch (const std::exception& error) {
  std::fprintf(stderr, "moe_compare: %s\n", error.what());
  return 1;
}
