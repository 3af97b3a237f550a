/// @file  Writes a file whole or not at all.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "moe/io/error.hpp"

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#elif __has_include(<unistd.h>)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Why the C library's last call failed.
inline std::error_code last_error() { return {errno != 0 ? errno : EIO, std::generic_category()}; }

using Stream = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

/// A new file to write, never somebody else's: null, and errno EEXIST, if there is one of this name.
inline Stream create(const std::filesystem::path& path) {
#if defined(_WIN32)  // whose fopen takes no name beyond its code page, and in its older library no "x"
  const int file =
      ::_wopen(path.c_str(), _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
  return {file < 0 ? nullptr : ::_fdopen(file, "wb"), &std::fclose};
#else
  return {std::fopen(path.c_str(), "wbx"), &std::fclose};
#endif
}

/// @throws Error naming what is there, or where links lead, if that is no file, such as a device or a pipe: a file must
///         not take its place.
inline void require_file(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    fail(utf8(path), ": cannot be written: it is ", std::filesystem::is_directory(status) ? "a folder" : "no file",
         ", and will not be replaced; choose another name");
  }
}

struct TemporaryFile {
  std::filesystem::path path;
  Stream stream;
};

/// A new empty file beside `path`, so that renaming it is no copy.
inline TemporaryFile create_beside(const std::filesystem::path& path) {
  for (int attempt = 0;; ++attempt) {
    std::filesystem::path temporary = path;
    temporary += ".tmp" + std::to_string(attempt);
    Stream stream = create(temporary);
    const std::error_code error = last_error();
    if (stream) return {std::move(temporary), std::move(stream)};
    if (error != std::errc::file_exists || attempt == 1000) {
      fail(utf8(path), ": cannot be written: ", error.message());
    }
  }
}

/// True when the file is on the disk, not just in the system's memory.
inline bool flush_to_disk(std::FILE* stream) {
  if (std::fflush(stream) != 0) return false;
#if defined(_WIN32)
  return ::_commit(::_fileno(stream)) == 0;
#elif __has_include(<unistd.h>)
  return ::fsync(::fileno(stream)) == 0;
#else
  return true;
#endif
}

/// Calls check(written), and if that throws, leaves what was written beside `path`, as "….refused" or "….refused1" and
/// so on: to write it may have taken hours.
/// @throws Error that says what check() did, and the name
inline void check_or_keep(const std::filesystem::path& written, const std::filesystem::path& path,
                          const std::function<void(const std::filesystem::path&)>& check) {
  if (!check) return;
  try {
    check(written);
  } catch (const std::exception& error) {
    const std::string what = error.what();
    for (int attempt = 0; attempt < 1000; ++attempt) {
      std::filesystem::path kept = path;
      kept += ".refused" + (attempt == 0 ? "" : std::to_string(attempt));
      std::error_code failed;
      if (std::filesystem::exists(std::filesystem::symlink_status(kept, failed))) continue;
      std::filesystem::rename(written, kept, failed);
      if (!failed) throw Error(what + "; what was written is kept as " + utf8(kept));
    }
    throw;
  }
}

/// Makes a rename in this folder outlast a power cut, where the system can.
inline void flush_folder_to_disk([[maybe_unused]] const std::filesystem::path& folder) {
#if !defined(_WIN32) && __has_include(<unistd.h>)
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
#endif
}

}  // namespace detail

/// Calls write(append), whose append(bytes) adds to a temporary file beside `path`, which then takes its place. Whoever
/// opens `path` sees the old file or the whole new one; mappings of the old one stay valid (on Windows they prevent
/// it). A link becomes a file: what it leads to may be part of other models, as in a hub cache.
/// @param check  check(path) is called of the temporary file, when all is in it; if that throws, the file stays beside
///               `path`, as "….refused"
/// @throws Error if that fails, or if what is at `path` is no file, or whatever write() throws, or what check() does;
///         what was at `path` is then as it was.
template <class F>
void write_file_atomically(const std::filesystem::path& path, const F& write,
                           const std::function<void(const std::filesystem::path&)>& check = {}) {
  detail::require_file(path);
  detail::TemporaryFile temporary = detail::create_beside(path);
  const auto complain = [&](const std::error_code& error) {
    fail(utf8(path), ": cannot be written: ", error.message());
  };
  try {
    write([&](std::span<const std::byte> bytes) {
      if (bytes.empty()) return;  // its null pointer is not for fwrite
      if (std::fwrite(bytes.data(), 1, bytes.size(), temporary.stream.get()) != bytes.size()) {
        complain(detail::last_error());
      }
    });
    if (!detail::flush_to_disk(temporary.stream.get()) || std::fclose(temporary.stream.release()) != 0) {
      complain(detail::last_error());
    }
    detail::check_or_keep(temporary.path, path, check);
    std::error_code error;
    std::filesystem::rename(temporary.path, path, error);
    if (error) complain(error);
  } catch (...) {
    temporary.stream.reset();  // an open file is not removed everywhere
    std::error_code ignored;
    std::filesystem::remove(temporary.path, ignored);
    throw;
  }
  detail::flush_folder_to_disk(path.parent_path());
}

/// The same of pieces that are there, one after the other.
inline void write_atomically(const std::filesystem::path& path, const std::vector<std::span<const std::byte>>& pieces) {
  write_file_atomically(path, [&](const auto& append) {
    for (const std::span<const std::byte> piece : pieces) append(piece);
  });
}

}  // namespace moe::inline MOE_TARGET::io
