/// @file  A command line to a program's options.
#pragma once

#include <optional>

#include <CLI/CLI.hpp>

namespace moe::bench {

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
