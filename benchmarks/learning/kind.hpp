/// @file  A model to compare, as it is named on the command line.
#pragma once

#include <cmath>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

#include "moe/core/types.hpp"
#include "text.hpp"

namespace moe::bench {

/// `64x7+1`: each block has 64 experts of which a token meets 7, and one more that it always meets, all of one width:
/// an eighth of the active width. `dense`: one FFN of the active width; `dense*4`: of four times as much. With `@0.5`
/// it takes half of the time that `dense` takes for its steps, with `@1` as long.
struct Kind {
  std::string spec;
  Index experts = 1, top_k = 1, shared = 0;
  Index width = 1;  // of a dense FFN, in active widths
  double time = 0;  // in those of `dense`; 0: as many steps as that

  bool is_dense() const { return experts == 1; }
  Index units(Index active) const { return active / (top_k + shared); }  // hidden ones of each expert

  /// 64 experts, top 7, 1 shared
  std::string words() const {
    std::string all = is_dense() ? "dense" : text("%td experts, top %td", experts, top_k);
    if (shared > 0) all += text(", %td shared", shared);
    if (width > 1) all += text(", %td times as large", width);
    if (time == 1) return all + ", the time of dense";
    return time > 0 ? all + text(", %g of dense's time", time) : all;
  }
};

/// @throws CLI::ValidationError saying what was expected.
inline Kind parse_kind(const std::string& spec) {
  const auto refuse = [&](const std::string& why) {
    throw CLI::ValidationError("--models", "got " + spec + ", expected " + why);
  };
  Kind kind{spec};
  const char* rest = spec.c_str();
  const auto read = [&](const std::string& mark) {  // a number behind the mark, if that comes next
    if (!std::string(rest).starts_with(mark)) return 0.0;
    char* end = nullptr;
    const char* const number = rest + mark.size();
    const double value = std::strtod(number, &end);
    if (end == number || !(value > 0) || !std::isfinite(value)) refuse("a number above 0 behind " + mark);
    rest = end;
    return value;
  };
  const auto read_whole = [&](const std::string& mark) {
    const double value = read(mark);
    if (value != std::floor(value) || value > 65536) refuse("a whole number up to 65536 behind " + mark);
    return Index(value);
  };
  if (spec.starts_with("dense")) {
    rest += 5;
    if (const Index width = read_whole("*")) kind.width = width;
  } else {
    if (rest[0] < '0' || rest[0] > '9') refuse("dense, dense*4, 8x2 or 64x7+1, and perhaps @0.5 behind it");
    kind.experts = read_whole("");
    kind.top_k = read_whole("x");
    kind.shared = read_whole("+");
    if (kind.top_k < 1) refuse("a whole number up to 65536 behind x");
    if (kind.experts < 2 || kind.top_k > kind.experts) refuse("2 experts or more, of which 1 to all are active");
  }
  kind.time = read("@");
  if (*rest != '\0') refuse("nothing behind " + spec.substr(0, spec.size() - std::string(rest).size()));
  return kind;
}

}  // namespace moe::bench
