/// @file  The comparison as a table of at most 120 columns.
#pragma once

#include <cstdio>
#include <optional>
#include <span>
#include <string>

#include "moe/models/presets.hpp"
#include "row.hpp"
#include "text.hpp"

namespace moe::bench {

inline const char* title_of(Kind kind) {
  switch (kind) {
    case Kind::moe:
      return "sparse: moe::MoeLayer";
    case Kind::moe_fast:
      return "sparse, fast products";
    case Kind::moe_packed:
      return "sparse, packed, fast";
    case Kind::moe_invariant:
      return "sparse, batch-invariant";
    case Kind::dense_active:
      return "dense, active size";
    case Kind::dense_total:
      return "dense, total size";
    case Kind::eigen_per_token:
      return "by hand, per token";
    case Kind::eigen_grouped:
      return "by hand, grouped";
  }
  return "";
}

inline std::string table_head() {
  return " tokens  layer                  total active    reads    error      time  tokens/s  GFLOP/s share of x "
         "faster "
         "x slower\n"
         "                               params params                                                  limit than "
         "tot. "
         "than act.\n";
}

inline std::string table_line(const Row& row, std::span<const Row> rows, const MoeShape& shape, bool first) {
  const LayerParams params = params_of(row.kind, shape);
  const std::string start =
      text("%7s  %-21s %6s %6s ", first ? std::to_string(row.tokens).c_str() : "", title_of(row.kind),
           count_text(double(params.total)).c_str(), count_text(double(params.active)).c_str());
  if (!row.measured) return start + "not measured: a call may take " + seconds_text(row.seconds) + "\n";
  const auto ratio = [](std::optional<double> number) { return number ? three_digits(*number) : std::string("-"); };
  const auto faster = times_as_long(rows, Kind::dense_total, row);
  auto slower = times_as_long(rows, Kind::dense_active, row);
  if (slower) slower = 1 / *slower;
  const std::string error = row.error ? text("%.2g", *row.error) : "-";
  return start + text("%8s %8s %9s %9s %8s %8s %9s %9s\n", bytes_text(row.experts.bytes).c_str(), error.c_str(),
                      seconds_text(row.seconds).c_str(), three_digits(double(row.tokens) / row.seconds).c_str(),
                      three_digits(row.gflops()).c_str(), percent_text(row.limit_share).c_str(), ratio(faster).c_str(),
                      ratio(slower).c_str());
}

/// All rows of one number of tokens.
inline std::string table_lines(std::span<const Row> rows, const MoeShape& shape) {
  std::string lines;
  for (const Row& row : rows) lines += table_line(row, rows, shape, &row == rows.data());
  return lines;
}

/// What --list-presets prints.
inline std::string table_of_presets() {
  std::string lines = text("%-16s %8s %7s %8s %6s   %-21s   %-21s\n", "name", "d_model", "d_ff", "experts", "top_k",
                           "one layer: total act.", "model: total active");
  const auto line = [](std::string_view name, const MoeShape& moe, LayerParams layer, const std::string& model) {
    return text("%-16s %8td %7td %8td %6td   %10s %10s   %s\n", std::string(name).c_str(), moe.d_model, moe.d_ff,
                moe.num_experts, moe.top_k, count_text(double(layer.total)).c_str(),
                count_text(double(layer.active)).c_str(), model.c_str());
  };
  for (const Preset& preset : presets()) {
    const ModelParams model = count_params(preset);
    lines += line(preset.name, preset.moe, count_params(preset.moe),
                  text("%10s %10s", count_text(double(model.total)).c_str(), count_text(double(model.active)).c_str()));
  }
  for (const LayerPreset& preset : layer_presets()) {
    lines += line(preset.name, preset.moe, count_params(preset.moe), text("%10s %10s", "-", "-"));
  }
  return lines;
}

}  // namespace moe::bench
