/// @file  Writes a folder whole or not at all.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <utility>

#include "moe/io/atomic_file.hpp"
#include "moe/io/error.hpp"

#if defined(__linux__) && __has_include(<sys/syscall.h>)
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// A new empty folder beside `folder`, so that renaming it is no copy.
inline std::filesystem::path create_folder_beside(const std::filesystem::path& folder) {
  for (int attempt = 0;; ++attempt) {
    std::filesystem::path temporary = folder;
    temporary += ".tmp" + std::to_string(attempt);
    std::error_code error;
    if (std::filesystem::create_directory(temporary, error)) return temporary;
    if (error || attempt == 1000) {
      fail(utf8(folder), ": cannot be written: ", error ? error.message() : "too many folders *.tmp beside it");
    }
  }
}

/// Each takes the other's name at one moment, if the system can do that.
inline bool exchange([[maybe_unused]] const std::filesystem::path& a, [[maybe_unused]] const std::filesystem::path& b) {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned rename_exchange = 2;  // RENAME_EXCHANGE, which not every C library names
  return ::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), rename_exchange) == 0;
#else
  return false;
#endif
}

/// Moves a folder to where another one is, which is gone then. In between, where the system cannot exchange two, there
/// is none of this name for a moment, and the old one is beside, with ".old" behind its name.
inline std::error_code replace(const std::filesystem::path& with, const std::filesystem::path& folder) {
  std::error_code error, ignored;
  if (exchange(with, folder)) {
    std::filesystem::remove_all(with, ignored);
    return {};
  }
  std::filesystem::path old = folder;
  old += ".old";
  std::filesystem::rename(folder, old, error);
  if (error) return error;
  std::filesystem::rename(with, folder, error);
  if (error) {
    std::filesystem::rename(old, folder, ignored);
  } else {
    std::filesystem::remove_all(old, ignored);
  }
  return error;
}

/// @throws Error unless nothing is there; or, if that may go, a folder without other folders in it that holds a file of
///         this name, or nothing: whoever writes "~" there by mistake keeps what is in it.
inline void require_replaceable(const std::filesystem::path& folder, bool overwrite, const char* its_file) {
  std::error_code error;
  const auto status = std::filesystem::status(folder, error);
  if (status.type() == std::filesystem::file_type::not_found) return;
  if (!overwrite) fail(utf8(folder), ": is there already: choose another name, or ask to overwrite it");
  if (!std::filesystem::is_directory(status)) fail(utf8(folder), ": is no folder, and will not be overwritten");
  bool is_one = false, is_empty = true;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    is_empty = false;
    is_one = is_one || entry->path().filename() == its_file;
    if (entry->is_directory(error)) {
      fail(utf8(folder), ": holds the folder ", utf8(entry->path().filename()), ", and will not be overwritten");
    }
  }
  if (error) fail(utf8(folder), ": ", error.message());
  if (!is_one && !is_empty) {
    fail(utf8(folder), ": holds no ", its_file, ", so it is none of ours, and will not be overwritten");
  }
}

}  // namespace detail

/// Calls write(a new folder beside `folder`), which then takes its name: whoever looks sees the old folder or the whole
/// new one. Mappings of files of the old one stay valid (on Windows they prevent it).
/// @param overwrite  whether there may be a folder of this name, which is then replaced with all that is in it
/// @param its_file   a file that such a folder must hold
/// @param check      check(the new folder) is called when all is in it; if that throws, it stays beside `folder`, as
///                   "….refused"
/// @throws Error if that fails, or whatever write() throws, or what check() does; a folder that was there is then as it
///         was.
template <class F>
void write_folder_atomically(std::filesystem::path folder, bool overwrite, const char* its_file, const F& write,
                             const std::function<void(const std::filesystem::path&)>& check = {}) {
  if (!folder.has_filename()) folder = folder.parent_path();  // "out/"
  std::error_code error;
  if (std::filesystem::is_symlink(folder, error)) {
    const std::filesystem::path target = std::filesystem::canonical(folder, error);
    if (error) fail(utf8(folder), ": ", error.message());
    folder = target;
  }
  detail::require_replaceable(folder, overwrite, its_file);
  const std::filesystem::path temporary = detail::create_folder_beside(folder);
  try {
    write(temporary);
    detail::flush_folder_to_disk(temporary);
    detail::check_or_keep(temporary, folder, check);
    detail::require_replaceable(folder, overwrite, its_file);  // still
    if (std::filesystem::exists(folder, error)) {
      error = detail::replace(temporary, folder);
    } else {
      std::filesystem::rename(temporary, folder, error);
    }
    if (error) fail(utf8(folder), ": cannot be written: ", error.message());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    throw;
  }
  detail::flush_folder_to_disk(folder.parent_path());
}

}  // namespace moe::inline MOE_TARGET::io
