/// @file  Writes a file whole or not at all.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <filesystem>
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

/// Makes a rename in this folder outlast a power cut, where the system can.
inline void flush_folder_to_disk([[maybe_unused]] const std::filesystem::path& folder) {
#if !defined(_WIN32) && __has_include(<unistd.h>)
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
#endif
}

/// Writes the pieces one after the other, down to the disk.
inline std::error_code write_pieces(Stream stream, const std::vector<std::span<const std::byte>>& pieces) {
  for (const std::span<const std::byte> piece : pieces) {
    if (piece.empty()) continue;  // its null pointer is not for fwrite
    if (std::fwrite(piece.data(), 1, piece.size(), stream.get()) != piece.size()) return last_error();
  }
  if (!flush_to_disk(stream.get()) || std::fclose(stream.release()) != 0) return last_error();
  return {};
}

}  // namespace detail

/// Writes the pieces, one after the other, to a temporary file beside `path`, which then takes its place. Whoever opens
/// `path` sees the old file or the new one; mappings of the old one stay valid (on Windows they prevent it).
/// @throws Error if that fails; a file that was at `path` is then as it was.
inline void write_atomically(const std::filesystem::path& path, const std::vector<std::span<const std::byte>>& pieces) {
  detail::TemporaryFile temporary = detail::create_beside(path);
  std::error_code error = detail::write_pieces(std::move(temporary.stream), pieces);
  if (!error) std::filesystem::rename(temporary.path, path, error);
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(temporary.path, ignored);
    fail(utf8(path), ": cannot be written: ", error.message());
  }
  detail::flush_folder_to_disk(path.parent_path());
}

}  // namespace moe::inline MOE_TARGET::io
