/// @file  A command line to a program's options.
#pragma once

#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <system_error>

#include <CLI/CLI.hpp>

namespace moe::bench {

namespace detail {

/// A check that says `expected` of any word that is no Number or that is not fine(number).
template <class Number, class F>
CLI::Validator expect(const std::string& expected, F fine) {
  return CLI::Validator(
      [=](std::string& said) -> std::string {
        Number number = 0;
        const char* const end = said.data() + said.size();
        const auto [after, error] = std::from_chars(said.data(), end, number);
        if (error == std::errc() && after == end && fine(number)) return "";
        return "got " + said + ", expected " + expected;
      },
      "");
}

}  // namespace detail

/// For threads, which OpenMP counts by int.
inline CLI::Validator thread_count() {
  return detail::expect<int>("a whole number from 1 to 2147483647", [](int n) { return n >= 1; });
}

/// For other counts: steps, tokens.
inline CLI::Validator at_least_one() {
  return detail::expect<long long>("a whole number from 1 on", [](long long n) { return n >= 1; });
}

/// For seconds and other amounts.
inline CLI::Validator above_zero() {
  return detail::expect<double>("a number above 0", [](double n) { return n > 0 && std::isfinite(n); });
}

/// @return the exit code if all is said: 0 after --help, 1 after a mistake
inline std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
}

}  // namespace moe::bench
