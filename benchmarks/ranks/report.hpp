/// @file  The comparison on many ranks as a table of at most 120 columns, or as JSON.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "moe/io/ordered_json.hpp"
#include "ranks/comparison.hpp"
#include "text.hpp"
#include "verdict.hpp"

namespace moe::bench {

inline std::string head_on_ranks() {
  return " tokens  layer                     time  tokens/s   x slower   sent by      exchange,       experts,  "
         "imbalance\n"
         " a rank                                   of all  than first    a rank     % of time      % of time    of "
         "routes\n";
}

/// "5 to 12": of the least to the most of all ranks.
template <class Number>
std::string span_on_ranks(const RowOnRanks& row, const Number& number, const char* format = "%.0f") {
  std::vector<double> numbers;
  for (const RankCalls& rank : row.calls) numbers.push_back(number(rank));
  return detail::span_text(numbers, [&](double n) { return text(format, n); });
}

/// All rows of one number of tokens a rank.
inline std::string lines_on_ranks(std::span<const RowOnRanks> rows, Index tokens) {
  std::string lines;
  for (const RowOnRanks& row : rows) {
    lines += text("%7s  %-21s ", &row == rows.data() ? std::to_string(tokens).c_str() : "", row.title.c_str());
    if (!row.measured) {
      lines += "not measured: a call may take " + seconds_text(row.seconds) + "\n";
      continue;
    }
    lines += text("%9s %9s", seconds_text(row.seconds).c_str(), three_digits(double(row.tokens) / row.seconds).c_str());
    if (rows[0].measured) lines += text(" %11s", three_digits(row.seconds / rows[0].seconds).c_str());
    if (!row.calls.empty()) {
      double most = 0;
      for (const RankCalls& rank : row.calls) most = std::max(most, rank.bytes_a_call());
      const auto exchange = [](const RankCalls& rank) { return 100 * rank.share_of(rank.traffic.seconds_in_exchange); };
      const auto experts = [](const RankCalls& rank) { return 100 * rank.share_of(rank.traffic.seconds_in_experts); };
      lines += text(" %9s %13s %14s %10s", bytes_text(most).c_str(), span_on_ranks(row, exchange).c_str(),
                    span_on_ranks(row, experts).c_str(), three_digits(row.load_imbalance()).c_str());
    }
    lines += "\n";
  }
  return lines;
}

/// `setting` is what all rows have in common; lists have a number for each rank.
inline io::OrderedJson record_of(const RowOnRanks& row, const io::OrderedJson& setting) {
  io::OrderedJson record = setting;
  record["kind"] = row.kind;
  record["tokens"] = row.tokens;
  record["ms"] = 1e3 * row.seconds;
  for (const RankCalls& rank : row.calls) {
    const double calls = double(rank.traffic.calls);
    record["bytes_sent"].push_back(rank.bytes_a_call());
    record["routes"].push_back(double(rank.traffic.routes) / calls);
    record["ms_in_exchange"].push_back(1e3 * rank.traffic.seconds_in_exchange / calls);
    record["ms_in_experts"].push_back(1e3 * rank.traffic.seconds_in_experts / calls);
  }
  return record;
}

}  // namespace moe::bench
