/// @file  A file that is read at offsets, past the system's cache where it can be.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "moe/io/error.hpp"

#if !defined(_WIN64) && __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// Any number of threads may read at once.
class StoredFile {
 public:
  /// Offsets, lengths and addresses that direct reads take are multiples of this, whatever the disk's block is.
  static constexpr std::size_t block = 4096;

  virtual ~StoredFile() = default;

  /// Reads bytes from an offset on into memory; all three are multiples of `block` where the file is direct.
  /// @return how many were read: maybe fewer; 0 at the end alone
  /// @throws std::exception if the system says so, or the file is no longer what was opened.
  virtual std::size_t read(std::uint64_t offset, std::span<std::byte> to) const = 0;

  /// Are reads past the system's cache?
  virtual bool is_direct() const = 0;

  /// Whatever the system has cached of it may go.
  virtual void drop_cache() const {}

  /// Files of one disk are read by the same threads.
  virtual std::uint64_t disk() const = 0;
};

#if !defined(_WIN64) && __has_include(<sys/mman.h>)

namespace detail {

class PosixFile final : public StoredFile {
 public:
  explicit PosixFile(const std::filesystem::path& path) {
    open_as(path, direct_flag);
    if (file_ < 0 && (errno == EINVAL || errno == ENOTSUP)) open_as(path, 0);
    if (file_ < 0 || ::fstat(file_, &opened_) != 0) {
      const int error = errno;
      close();
      fail(utf8(path), ": ", std::generic_category().message(error));
    }
    if (is_direct_ && !reads_directly()) {  // some file systems say it only now
      close();
      open_as(path, 0);
      if (file_ < 0) fail(utf8(path), ": ", std::generic_category().message(errno));
    }
#if defined(POSIX_FADV_RANDOM)
    if (!is_direct_) ::posix_fadvise(file_, 0, 0, POSIX_FADV_RANDOM);  // or what follows would be read, too
#endif
  }
  PosixFile(const PosixFile&) = delete;
  PosixFile& operator=(const PosixFile&) = delete;
  ~PosixFile() override { close(); }

  std::size_t read(std::uint64_t offset, std::span<std::byte> to) const override {
    ssize_t got = 0;
    do {
      got = ::pread(file_, to.data(), to.size(), static_cast<off_t>(offset));
    } while (got < 0 && errno == EINTR);
    if (got < 0) throw std::system_error(errno, std::generic_category());
#if defined(POSIX_FADV_DONTNEED)
    if (!is_direct_) ::posix_fadvise(file_, static_cast<off_t>(offset), static_cast<off_t>(got), POSIX_FADV_DONTNEED);
#endif
    struct stat now = {};
    if (::fstat(file_, &now) != 0) throw std::system_error(errno, std::generic_category());
    if (now.st_size != opened_.st_size || changed_at(now) != changed_at(opened_)) {
      throw std::runtime_error("the file was written to while it was open: it has " + std::to_string(now.st_size) +
                               " bytes, expected " + std::to_string(opened_.st_size) + " of the same time");
    }
    return static_cast<std::size_t>(got);
  }

  bool is_direct() const override { return is_direct_; }
  void drop_cache() const override {
#if defined(POSIX_FADV_DONTNEED)
    ::posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
#endif
  }
  std::uint64_t disk() const override { return static_cast<std::uint64_t>(opened_.st_dev); }

 private:
#if defined(O_DIRECT)
  static constexpr int direct_flag = O_DIRECT;
#else
  static constexpr int direct_flag = 0;
#endif

  static std::pair<std::int64_t, std::int64_t> changed_at(const struct stat& info) {
#if defined(__linux__)
    return {info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
#else
    return {info.st_mtime, 0};
#endif
  }

  void open_as(const std::filesystem::path& path, int flag) {
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flag);
    is_direct_ = flag != 0;
  }
  void close() {
    if (file_ >= 0) ::close(file_);
    file_ = -1;
  }
  bool reads_directly() const {
    alignas(block) std::byte first[block];
    return ::pread(file_, first, block, 0) >= 0 || errno != EINVAL;
  }

  int file_ = -1;
  bool is_direct_ = false;
  struct stat opened_ = {};
};

}  // namespace detail

/// @throws Error naming the file, if it cannot be opened.
inline std::unique_ptr<StoredFile> open_stored_file(const std::filesystem::path& path) {
  return std::make_unique<detail::PosixFile>(path);
}

#else

/// A file to read.
/// @throws Error: there is no way to read it here.
inline std::unique_ptr<StoredFile> open_stored_file(const std::filesystem::path& path) {
  fail(utf8(path), ": a store reads files on POSIX systems alone: load the model without one, or pass its `open`");
}

#endif

}  // namespace moe::inline MOE_TARGET::io
