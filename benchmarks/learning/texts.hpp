/// @file  The texts to learn from.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace moe::bench {

struct Text {
  std::string name, bytes;
};

/// @throws std::invalid_argument naming the file, if it cannot be read, or what it holds is no text.
inline std::string read_text(const std::filesystem::path& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) {
    throw std::invalid_argument(file.string() + " is a folder, expected a file of text: cat " + (file / "*").string() +
                                " > text makes one");
  }
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw std::invalid_argument(file.string() + ": cannot be read");
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  if (const std::size_t at = bytes.find('\0'); at != std::string::npos) {
    throw std::invalid_argument(file.string() + " is no text: byte " + std::to_string(at) + " is 0");
  }
  return bytes;
}

/// A text that other software brings along: all its files, in the order of their paths.
struct KnownText {
  std::string name, extension, in_words;       // where its files lie
  std::vector<std::filesystem::path> folders;  // the first that has such files is read
  bool below = false;                          // folders in this folder as well
  std::string package;                         // of Debian
};

namespace detail {

/// Those in `parent` whose names begin so, the latest version first.
inline std::vector<std::filesystem::path> folders_named(const std::filesystem::path& parent, const std::string& begin,
                                                        const std::filesystem::path& within = {}) {
  std::vector<std::filesystem::path> all;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(parent, ignored)) {
    if (entry.path().filename().string().starts_with(begin)) all.push_back(entry.path() / within);
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    const auto size = [](const auto& path) { return path.string().size(); };
    return std::pair(size(b), b) < std::pair(size(a), a);  // 3.11 is later than 3.9
  });
  return all;
}

inline std::vector<std::filesystem::path> files_of(const KnownText& text, const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code ignored;
  for (std::filesystem::recursive_directory_iterator at(folder, ignored), end; at != end; at.increment(ignored)) {
    if (at->is_directory(ignored) && !text.below) at.disable_recursion_pending();
    if (at->is_regular_file(ignored) && at->path().extension() == text.extension) files.push_back(at->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace detail

/// C++, Python and English.
/// @param eigen  the folder of Eigen's headers, which are on every machine that builds this
inline std::vector<KnownText> known_texts(const std::filesystem::path& eigen) {
  std::vector<std::filesystem::path> python, perl;
  for (const char* lib : {"/usr/lib", "/usr/local/lib", "/opt/homebrew/lib"}) {
    const auto more = detail::folders_named(lib, "python3.");
    python.insert(python.end(), more.begin(), more.end());
  }
  for (const char* share : {"/usr/share/perl", "/usr/local/share/perl", "/usr/share/perl5", "/usr/lib/perl5"}) {
    const auto more = detail::folders_named(share, "", "pod");
    perl.insert(perl.end(), more.begin(), more.end());
  }
  return {{"Eigen's headers", ".h", "*.h below " + eigen.string(), {eigen}, true, "libeigen3-dev"},
          {"Python's library", ".py", "/usr/lib/python3.*/*.py", python, false, "libpython3-stdlib"},
          {"Perl's manual", ".pod", "/usr/share/perl/*/pod/*.pod", perl, false, "perl-doc"}};
}

/// @return nothing where there is less than a megabyte of it
inline std::optional<Text> find(const KnownText& known) {
  constexpr std::size_t enough = 1000000;
  for (const auto& folder : known.folders) {
    Text text{known.name, {}};
    for (const auto& file : detail::files_of(known, folder)) text.bytes += read_text(file);
    if (text.bytes.size() >= enough) return text;
  }
  return std::nullopt;
}

/// What to say of one that is not there.
inline std::string how_to_get(const KnownText& known) {
  return "left out: " + known.name + ", for there are no " + known.in_words +
         " of a megabyte in all. On Debian, apt-get install " + known.package +
         " brings them; --text FILE takes any other text";
}

}  // namespace moe::bench
