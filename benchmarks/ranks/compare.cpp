/// @file  What moe_compare does on many ranks, where there is MPI.
#include "ranks/compare.hpp"

#include <algorithm>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "machine.hpp"
#include "memory.hpp"
#include "moe/distributed/run.hpp"
#include "moe/io/ordered_json.hpp"
#include "ranks/comparison.hpp"
#include "ranks/report.hpp"
#include "records.hpp"
#include "subject.hpp"
#include "table.hpp"

namespace moe::bench {

namespace {

/// On rank 0 alone.
void say(const Ranks& ranks, const std::string& what) {
  if (ranks.rank() != 0) return;
  std::printf("%s", what.c_str());
  std::fflush(stdout);
}

std::string counted(Index count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

/// What all rows have in common.
struct Measurement {
  const Ranks& ranks;
  const CommandLine& line;
  std::vector<Index> token_counts;  // of a rank
  Index threads;                    // of a rank

  Index max_tokens() const { return *std::max_element(token_counts.begin(), token_counts.end()); }

  /// Those that one process has which takes over this machine's ranks.
  Index threads_of_one_process() const { return threads * ranks.on_this_machine(); }
};

/// Why rank 0 cannot run all experts by itself beside all ranks that run theirs; empty if it can.
std::string why_not_alone(const Measurement& m, const Subject& subject, Index layers, double bytes_on_ranks) {
  if (usable_cores() < m.threads_of_one_process()) {
    return "may use " + counted(usable_cores(), "core") + " for " + counted(m.threads_of_one_process(), "thread") +
           " (mpirun --bind-to none)";
  }
  const double needed =
      bytes_of_arena(subject.shape, layers, bytes_of(subject.weights), m.max_tokens() * m.ranks.size()) +
      bytes_on_ranks;
  const double available = available_memory();
  if (needed <= available) return "";
  return "needs " + bytes_text(needed) + " of memory beside the ranks; " + bytes_text(available) + " are available";
}

/// Prints the table while it grows, and writes what is measured.
template <class W>
void compare(const Measurement& m, const Subject& subject, RecordsFile& file) {
  const auto& [ranks, line, token_counts, threads] = m;
  const MoeShape& shape = subject.shape;
  const double bytes_a_weight = sizeof(W);
  const auto placement = distributed::place_in_blocks(shape.num_experts, ranks.size());
  const MoeShape own_shape = shape_on_rank(shape, placement, ranks.rank());
  const Index layers = layers_on_ranks(shape, bytes_a_weight, ranks.size());

  const double own_bytes = layer_bytes(own_shape, bytes_a_weight);
  const double bytes_on_ranks =
      ranks.max(bytes_of_arena(own_shape, layers, bytes_a_weight, m.max_tokens())) * ranks.on_this_machine();
  const double available = -ranks.max(-available_memory());
  if (ranks.rank() == 0) require_memory(bytes_on_ranks, subject.name + " on a machine's ranks", available);

  std::string refusal = why_not_alone(m, subject, layers, bytes_on_ranks);
  const bool alone = ranks.of_all(int(refusal.empty()))[0] != 0;
  if (!alone) refusal = "One process with all experts is left out: rank 0 " + refusal + ".\n";

  const auto bytes = ranks.of_all(own_bytes);
  const auto [least, most] = std::minmax_element(bytes.begin(), bytes.end());
  say(ranks, description(subject) +
                 text("weights in memory: %s to %s a rank, %s in one process\n", bytes_text(*least).c_str(),
                      bytes_text(*most).c_str(), bytes_text(layer_bytes(shape, bytes_a_weight)).c_str()) +
                 refusal + "\n" + head_on_ranks());

  distributed::Traffic traffic;
  const distributed::ExpertParallelOptions options{
      .chunks = line.chunks,
      .wire = line.wire == "bfloat16" ? distributed::Wire::bfloat16 : distributed::Wire::exact,
      .answers = line.answers == "summed" ? distributed::Answers::summed : distributed::Answers::each,
      .traffic = &traffic};
  const auto no_progress = [](double) {};
  ComparisonOnRanks comparison(
      ranks,
      make_sparse_on_ranks(make_arena<W>(own_shape, layers, threads, no_progress), shape, layers, placement, options),
      traffic, shape.d_model, m.max_tokens(), line.patience);
  if (alone) {
    std::optional<Arena<W>> arena;
    if (ranks.rank() == 0) arena = make_arena<W>(shape, layers, m.threads_of_one_process(), no_progress);
    for (const Kind kind : {Kind::moe, Kind::dense_active, Kind::dense_total}) {
      comparison.add_on_rank_0(name_of(kind), kind == Kind::moe ? "sparse, one process" : title_of(kind),
                               arena ? make_contender(kind, *arena) : nullptr);
    }
  }

  io::OrderedJson setting{
      {"shape", subject.name},        {"weights", name_of(subject.weights)},
      {"ranks", ranks.size()},        {"threads", threads},
      {"chunks", line.chunks},        {"wire", line.wire},
      {"answers", line.answers},      {"weight_bytes", bytes},
      {"d_model", shape.d_model},     {"d_ff", shape.d_ff},
      {"experts", shape.num_experts}, {"top_k", shape.top_k},
  };
  for (const Index tokens : token_counts) {
    const auto rows = comparison.rows_for(tokens);
    say(ranks, lines_on_ranks(rows, tokens) + "\n");
    for (const RowOnRanks& row : rows) {
      if (row.measured) file.add(record_of(row, setting));
    }
  }
}

int run(const CommandLine& line) {
  const Ranks ranks;
  RecordsFile file(ranks.rank() == 0 ? line.json : "");
  const Index share_of_cores = std::max(Index(1), default_threads() / ranks.on_this_machine());
  const Measurement m{ranks, line, parse_numbers(line.tokens, "--tokens"), line.threads.value_or(share_of_cores)};
  say(ranks, processor_name() + ", " + counted(ranks.size(), "rank") + " of " + counted(m.threads, "thread") + ", " +
                 std::to_string(ranks.on_this_machine()) + " on this machine, " + compiler_name() + "\n" +
                 (ranks.size() == 1 ? "One rank alone: for more, mpirun -n 2 moe_compare --distributed\n\n" : "\n"));
  for (const Subject& subject : subjects_of(line)) {
    with_float_type(subject.weights, [&]<class W>(std::type_identity<W>) { compare<W>(m, subject, file); });
  }
  say(ranks, wrapped("Time: of each call the slowest rank's, and of calls the median. Exchange: packing, waiting for "
                     "other ranks, combining. Experts: with the shared one; what is left is routing. Imbalance: the "
                     "routes of the busiest rank, by the mean. One process has as many threads "
                     "as all ranks of a machine together, and runs the tokens of all ranks, as the dense FFNs do.") +
                 "\n");
  return 0;
}

}  // namespace

int compare_on_ranks(int argc, char** argv, const CommandLine& line) {
  return distributed::run(argc, argv, [&] { return run(line); });
}

}  // namespace moe::bench
