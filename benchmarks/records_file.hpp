/// @file  A JSON file that grows by one record after the other.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <ios>
#include <ostream>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "moe/io/atomic_file.hpp"
#include "moe/io/error.hpp"
#include "moe/io/ordered_json.hpp"

namespace moe::bench {

/// Whether what is there takes bytes and keeps no file of them: a terminal, /dev/null, a pipe.
inline bool is_stream(const std::filesystem::path& file) {
  std::error_code ignored;
  const auto status = std::filesystem::status(file, ignored);
  return std::filesystem::is_character_file(status) || std::filesystem::is_fifo(status);
}

/// The file that a path means, whether it is there or not: where links lead.
/// @throws io::Error naming it, if they lead nowhere.
inline std::filesystem::path where_links_lead(std::filesystem::path file) {
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(file, error)); ++links) {
    const std::filesystem::path target = std::filesystem::read_symlink(file, error);
    if (error || links == 40) io::fail(io::utf8(file), ": cannot be written: its links lead nowhere");
    file = file.parent_path() / target;
  }
  return file;
}

/// @throws io::Error naming the file, if it cannot be written as a whole.
inline void require_writable(const std::filesystem::path& file) {
  for (const char* output : {"/dev/stdout", "/dev/stderr"}) {  // where a shell sends it to a file
    std::error_code ignored;
    if (std::filesystem::equivalent(file, output, ignored)) {
      io::fail(file.string(), ": cannot be written: what this program prints goes there; choose another name");
    }
  }
  io::detail::require_file(file);
  io::detail::TemporaryFile temporary = io::detail::create_beside(where_links_lead(file));
  temporary.stream.reset();
  std::filesystem::remove(temporary.path);
}

/// Records in a file that is there as a whole after each that is added: so what was finished is kept, whatever ends the
/// program. A terminal or a pipe gets all of them after each.
class RecordsFile {
 public:
  /// @param file  empty for none
  /// @throws io::Error naming the file, if it cannot be written: now, and not after all was measured.
  explicit RecordsFile(std::filesystem::path file) : file_(std::move(file)) {
    if (file_.empty()) return;
    if (is_stream(file_)) {
      stream_.open(file_, std::ios::binary);
      require_written();
    } else {
      require_writable(file_);
      file_ = where_links_lead(file_);
    }
  }

  std::size_t size() const { return all_.size(); }

  void add(io::OrderedJson record) {
    set(size(), std::move(record));
    write();
  }

  /// Adds a record, or puts it in the place of one of before; write() then writes all of them.
  void set(std::size_t at, io::OrderedJson record) { all_[at] = std::move(record); }

  void write() {
    if (file_.empty()) return;
    const std::string text = all_.dump(1) + "\n";
    if (stream_.is_open()) {
      stream_ << text << std::flush;
      require_written();
    } else {
      io::write_atomically(file_, {std::as_bytes(std::span(text))});
    }
  }

 private:
  void require_written() const {
    if (!stream_) io::fail(file_.string(), ": cannot be written");
  }

  std::filesystem::path file_;
  std::ofstream stream_;  // open if file_ is no file
  io::OrderedJson all_ = io::OrderedJson::array();
};

}  // namespace moe::bench
