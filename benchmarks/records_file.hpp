/// @file  A JSON file that grows by one record after the other.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

namespace moe::bench {

/// The file is there as a whole or not at all.
/// @throws std::runtime_error naming the file.
inline void write_whole(const std::filesystem::path& file, const std::string& content) {
  std::filesystem::path unfinished = file;
  unfinished += ".part";
  std::ofstream out(unfinished, std::ios::binary);
  out << content;
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(unfinished, file, error);
  if (!out || error) throw std::runtime_error("cannot write " + file.string());
}

/// @throws std::runtime_error naming the file, if write_whole() would.
inline void require_writable(const std::filesystem::path& file) {
  std::filesystem::path unfinished = file;
  unfinished += ".part";
  std::error_code ignored;
  const bool opens = std::ofstream(unfinished, std::ios::binary | std::ios::app).is_open();
  if (opens) std::filesystem::remove(unfinished, ignored);
  if (!opens || std::filesystem::is_directory(file, ignored)) throw std::runtime_error("cannot write " + file.string());
}

/// Records in a file that is there as a whole after each that is added: so what was finished is kept, whatever ends the
/// program.
class RecordsFile {
 public:
  /// @param file  empty for none
  /// @throws std::runtime_error naming the file, if it cannot be written: now, and not after all was measured.
  explicit RecordsFile(std::filesystem::path file) : file_(std::move(file)) {
    if (!file_.empty()) require_writable(file_);
  }

  std::size_t size() const { return all_.size(); }

  void add(nlohmann::ordered_json record) {
    set(size(), std::move(record));
    write();
  }

  /// Adds a record, or puts it in the place of one of before; write() then writes all of them.
  void set(std::size_t at, nlohmann::ordered_json record) { all_[at] = std::move(record); }

  void write() const {
    if (!file_.empty()) write_whole(file_, all_.dump(1) + "\n");
  }

 private:
  std::filesystem::path file_;
  nlohmann::ordered_json all_ = nlohmann::ordered_json::array();
};

}  // namespace moe::bench
