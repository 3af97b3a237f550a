/// @file  Routing traces from files, whoever wrote them.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/random_number.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/npy.hpp"
#include "moe/io/store/trace.hpp"

namespace moe::inline MOE_TARGET::io {

/// What counts alone do not say.
struct ReadTraceOptions {
  Index top_k = 0;            // experts of a token in a layer; needed where a file has counts
  Index tokens = 512;         // to draw
  std::uint64_t seed = 2026;  // …
};

namespace detail {

/// One line of a file of traces.
struct TracedRoute {
  Index call, token, layer, expert, line;
};

/// Numbers layers through, and gathers calls.
/// @throws Error naming file, line and both values, if a call is of two layers, or a token is sent to an expert twice.
inline Trace trace_of(std::vector<TracedRoute> routes, const std::string& file) {
  const auto order = [](const TracedRoute& r) { return std::tuple(r.call, r.layer, r.token, r.expert, r.line); };
  std::ranges::sort(routes, {}, order);
  Trace trace;
  for (const TracedRoute& route : routes) trace.layer_numbers.push_back(route.layer);
  std::ranges::sort(trace.layer_numbers);
  trace.layer_numbers.erase(std::unique(trace.layer_numbers.begin(), trace.layer_numbers.end()),
                            trace.layer_numbers.end());
  trace.token.reserve(routes.size()), trace.expert.reserve(routes.size());
  for (std::size_t r = 0; r < routes.size(); ++r) {
    const TracedRoute &its = routes[r], &last = routes[r == 0 ? 0 : r - 1];
    const bool same_call = r > 0 && its.call == last.call;
    if (same_call && its.layer != last.layer) {
      fail(file, ":", std::max(its.line, last.line), ": call ", its.call, " is of layer ", last.layer, " and of layer ",
           its.layer, ", expected one layer a call");
    }
    if (same_call && its.token == last.token && its.expert == last.expert) {
      fail(file, ":", its.line, ": token ", its.token, " is sent to expert ", its.expert, " of layer ", its.layer,
           " twice, first on line ", last.line);
    }
    if (!same_call) {
      const auto layer = std::ranges::lower_bound(trace.layer_numbers, its.layer) - trace.layer_numbers.begin();
      trace.calls.push_back({layer, Index(r), Index(r)});
    }
    ++trace.calls.back().end;
    trace.token.push_back(its.token);
    trace.expert.push_back(its.expert);
  }
  return trace;
}

/// A file of lines with commas between their fields; the first line names the columns. Lines that are empty or begin
/// with # are passed over.
class CsvLines {
 public:
  CsvLines(std::string_view text, std::string file) : text_(text), file_(std::move(file)) {
    if (next()) columns_.assign(fields_.begin(), fields_.end());
  }

  /// Where a column is; none if there is no such column.
  std::optional<std::size_t> column(std::string_view name) const {
    const auto found = std::ranges::find(columns_, name);
    return found == columns_.end() ? std::nullopt : std::optional(std::size_t(found - columns_.begin()));
  }

  std::string columns() const {
    std::string all;
    for (const std::string& name : columns_) all += (all.empty() ? "" : ",") + name;
    return all;
  }

  /// @return whether there is another line
  bool next() {
    while (!text_.empty()) {
      const std::size_t end = std::min(text_.find('\n'), text_.size());
      const std::string_view line = trimmed(text_.substr(0, end));
      text_.remove_prefix(std::min(end + 1, text_.size()));
      ++line_;
      if (line.empty() || line.front() == '#') continue;
      split(line);
      if (columns_.empty() || fields_.size() == columns_.size()) return true;
      fail(file_, ":", line_, ": ", fields_.size(), " fields, expected ", columns_.size(), ": ", columns());
    }
    return false;
  }

  Index line() const { return line_; }

  /// @throws Error naming file, line and what is there, unless it is a number in [0, end).
  Index number(std::size_t column, Index end) const {
    const std::string_view field = fields_[column];
    Index number = -1;
    const auto [after, error] = std::from_chars(field.data(), field.data() + field.size(), number);
    if (error == std::errc() && after == field.data() + field.size() && number >= 0 && number < end) return number;
    fail(file_, ":", line_, ": ", columns_[column], " is \"", field.substr(0, 40), "\", expected a number from 0 to ",
         end - 1);
  }

 private:
  static std::string_view trimmed(std::string_view text) {
    const std::size_t first = std::min(text.find_first_not_of(" \t\r"), text.size());
    return text.substr(first, text.find_last_not_of(" \t\r") + 1 - first);
  }

  void split(std::string_view line) {
    fields_.clear();
    for (std::size_t first = 0; first <= line.size();) {
      const std::size_t end = std::min(line.find(',', first), line.size());
      fields_.push_back(trimmed(line.substr(first, end - first)));
      first = end + 1;
    }
  }

  std::string_view text_;
  std::string file_;
  Index line_ = 0;
  std::vector<std::string> columns_;
  std::vector<std::string_view> fields_;
};

inline constexpr Index most_traced = Index(1) << 48;  // tokens, calls, counts

/// Calls of one token each, whose experts are drawn in proportion to their counts, a token's different ones.
/// @throws Error naming the file, if a layer has fewer experts of a count above 0 than are to be drawn.
inline Trace drawn(const std::vector<std::pair<ExpertId, Index>>& counts, const ReadTraceOptions& options,
                   const std::string& file) {
  if (options.top_k < 1) {
    fail(file, ": has counts alone, and top_k is ", options.top_k, ", expected how many experts a token is sent to");
  }
  std::vector<TracedRoute> routes;
  std::uint64_t draws = 0;
  for (std::size_t first = 0, end = 0; first < counts.size(); first = end) {
    const Index layer = counts[first].first.layer;
    Index can_be_drawn = 0;
    double all = 0;
    for (end = first; end < counts.size() && counts[end].first.layer == layer; ++end) {
      can_be_drawn += counts[end].second > 0;
      all += double(counts[end].second);
    }
    if (can_be_drawn < options.top_k) {
      fail(file, ": layer ", layer, " has ", can_be_drawn, " experts with a count above 0, expected at least top_k, ",
           options.top_k);
    }
    for (Index token = 0; token < options.tokens; ++token) {
      std::vector<double> left;
      for (std::size_t i = first; i < end; ++i) left.push_back(double(counts[i].second));
      double sum = all;
      for (Index k = 0; k < options.top_k; ++k) {
        double at = sum * uniform_number(options.seed, draws++);
        std::size_t chosen = 0;  // the last that is left, if rounding carries `at` past the end
        for (std::size_t i = 0; i < left.size() && at >= 0; at -= left[i++]) {
          if (left[i] > 0) chosen = i;
        }
        routes.push_back({token * most_traced_layers + layer, token, layer, counts[first + chosen].first.expert, 0});
        sum -= std::exchange(left[chosen], 0);
      }
    }
  }
  return trace_of(std::move(routes), file);
}

inline Trace read_csv_trace(const std::filesystem::path& path, const ReadTraceOptions& options) {
  const std::string name = utf8(path);
  const MappedFile file = read_file(path);
  CsvLines lines({reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()}, name);
  const auto token = lines.column("token"), layer = lines.column("layer"), expert = lines.column("expert"),
             count = lines.column("count"), call = lines.column("call");
  if (!layer || !expert || (!token && !count)) {
    fail(name, ":", lines.line(), ": columns are \"", lines.columns().substr(0, 200),
         "\", expected token, layer and expert; or layer, expert and count");
  }
  std::vector<TracedRoute> routes;
  std::vector<std::pair<ExpertId, Index>> counts;
  while (lines.next()) {
    const Index l = lines.number(*layer, most_traced_layers), e = lines.number(*expert, most_traced_experts);
    if (!token) {
      counts.push_back({{l, e}, lines.number(*count, most_traced)});
      continue;
    }
    const Index t = lines.number(*token, most_traced);
    routes.push_back({call ? lines.number(*call, most_traced) : t * most_traced_layers + l, t, l, e, lines.line()});
  }
  if (routes.empty() && counts.empty()) fail(name, ": 0 lines below the names of columns, expected at least 1");
  if (token) return trace_of(std::move(routes), name);
  std::ranges::stable_sort(counts, {}, &std::pair<ExpertId, Index>::first);
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  if (const auto twice = std::ranges::adjacent_find(counts, same); twice != counts.end()) {
    fail(name, ": expert ", twice->first.expert, " of layer ", twice->first.layer, " has the counts ", twice->second,
         " and ", std::next(twice)->second, ", expected one");
  }
  return drawn(counts, options, name);
}

inline Trace read_npy_trace(const std::filesystem::path& path) {
  const std::string name = utf8(path);
  const IntegerArray array = read_npy(path);
  if (array.shape.size() != 3) {
    fail(name, ": has shape ", to_string(array.shape), ", expected [tokens, layers, experts of a token]");
  }
  const Index tokens = array.shape[0], layers = array.shape[1], top_k = array.shape[2];
  if (layers > most_traced_layers) fail(name, ": has ", layers, " layers, expected at most ", most_traced_layers);
  const auto at = [&](Index t, Index l, Index k) { return array.numbers[std::size_t((t * layers + l) * top_k + k)]; };
  std::vector<TracedRoute> routes;
  for (Index l = 0; l < layers; ++l) {
    bool dense = top_k > 1;  // nobody wrote there: zeros alone
    for (Index t = 0; dense && t < tokens; ++t) {
      for (Index k = 0; k < top_k; ++k) dense = dense && at(t, l, k) == 0;
    }
    for (Index t = 0; !dense && t < tokens; ++t) {
      for (Index k = 0; k < top_k; ++k) {
        const std::int64_t expert = at(t, l, k);
        if (expert == -1) continue;  // no expert
        const auto where = [&] { return to_string(std::vector<Index>{t, l, k}); };
        if (expert < 0 || expert >= most_traced_experts) {
          fail(name, ": expert ", where(), " is ", expert, ", expected 0 to ", most_traced_experts - 1,
               ", or -1 for none");
        }
        for (Index other = 0; other < k; ++other) {
          if (at(t, l, other) == expert)
            fail(name, ": expert ", where(), " is ", expert, ", as is that of k = ", other);
        }
        routes.push_back({t * most_traced_layers + l, t, l, Index(expert), 0});
      }
    }
  }
  if (routes.empty()) fail(name, ": has shape ", to_string(array.shape), " and no route, expected at least one");
  return trace_of(std::move(routes), name);
}

}  // namespace detail

/// A file is one of
///   text with the columns token, layer, expert, and maybe others, which the first line names: one line a route. Lines
///     of one number of `call` are one call, for several tokens (save_trace); without this column each token is a call
///   an array [tokens, layers, k] of numpy.save(), as vLLM returns routed experts; −1 is none, and a layer of zeros
///     alone a dense one
///   text with the columns layer, expert, count: tokens are drawn, each by itself, so that nothing is told of how much
///     a token's experts are those of the tokens before
/// @throws Error naming file, line, what is there and what was expected.
inline Trace read_trace(const std::filesystem::path& path, const ReadTraceOptions& options = {}) {
  const MappedFile file = map_file(path);
  const std::string_view start(reinterpret_cast<const char*>(file.bytes.data()),
                               std::min<std::size_t>(file.bytes.size(), 6));
  return start == detail::npy_magic || start.starts_with("PK") ? detail::read_npy_trace(path)
                                                               : detail::read_csv_trace(path, options);
}

}  // namespace moe::inline MOE_TARGET::io
