/// @file  A file's bytes in memory, without reading them.
#pragma once

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <system_error>

#include "moe/io/error.hpp"

#if defined(_WIN64)
#include <fcntl.h>
#include <io.h>

#include "moe/io/windows.hpp"
#elif __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// The bytes stay where they are for as long as `owner`, or a copy of it, lives.
struct MappedFile {
  std::span<const std::byte> bytes = {};
  std::shared_ptr<const void> owner = {};
};

namespace detail {

/// Asks before opening, because to open a pipe is to wait for its writer.
inline void check_regular_file(const std::filesystem::path& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) fail(utf8(path), ": no such file");
  if (error) fail(utf8(path), ": ", error.message());
  if (std::filesystem::is_directory(status)) fail(utf8(path), ": is a directory, expected a file");
  if (!std::filesystem::is_regular_file(status)) fail(utf8(path), ": is not a regular file");
}

}  // namespace detail

/// The bytes of a file in memory of their own: map_file() where there is no mapping.
/// @throws Error if it is no regular file or cannot be read.
inline MappedFile read_file(const std::filesystem::path& path) {
  detail::check_regular_file(path);
  std::error_code error;
  const std::size_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) fail(utf8(path), ": cannot be opened for reading");
  const std::shared_ptr<std::byte[]> bytes(new std::byte[size]);  // new, unlike make_shared, aligns for every scalar
  file.read(reinterpret_cast<char*>(bytes.get()), static_cast<std::streamsize>(size));
  const auto got = static_cast<std::size_t>(file.gcount());
  if (got != size) fail(utf8(path), ": only ", got, " bytes of ", size, " could be read");
  return {.bytes = {bytes.get(), size}, .owner = bytes};
}

#if defined(_WIN64)

/// The bytes of a file, loaded by the operating system as they are touched. Windows lets nobody replace, shorten or
/// remove the file for as long as it is mapped.
/// @throws Error if it is no regular file or cannot be read.
inline MappedFile map_file(const std::filesystem::path& path) {
  detail::check_regular_file(path);
  const int file = ::_wopen(path.c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT);
  if (file < 0) fail(utf8(path), ": ", std::generic_category().message(errno));
  const long long size = ::_filelengthi64(file);
  void* const handle = reinterpret_cast<void*>(::_get_osfhandle(file));
  void* const mapping = size > 0 ? ::CreateFileMappingW(handle, nullptr, /*PAGE_READONLY*/ 2, 0, 0, nullptr) : nullptr;
  const void* const bytes = mapping ? ::MapViewOfFile(mapping, /*FILE_MAP_READ*/ 4, 0, 0, 0) : nullptr;
  const auto error = static_cast<int>(::GetLastError());
  if (mapping) ::CloseHandle(mapping);  // the view stays
  ::_close(file);
  if (size == 0) return {};
  if (!bytes) fail(utf8(path), ": ", std::system_category().message(error));
  return {.bytes = {static_cast<const std::byte*>(bytes), static_cast<std::size_t>(size)},
          .owner = std::shared_ptr<const void>(bytes, [](const void* mapped) { ::UnmapViewOfFile(mapped); })};
}

#elif __has_include(<sys/mman.h>)

/// The bytes of a file, loaded by the operating system as they are touched. As with every mapping, a file that another
/// program shortens meanwhile ends this one (SIGBUS); a file that is replaced by a rename does not.
/// @throws Error if it is no regular file or cannot be read.
inline MappedFile map_file(const std::filesystem::path& path) {
  detail::check_regular_file(path);
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail(utf8(path), ": ", std::generic_category().message(errno));
  struct stat info = {};
  const bool has_info = ::fstat(file, &info) == 0;
  const auto size = static_cast<std::size_t>(info.st_size);
  void* const bytes = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
  const int error = errno;
  ::close(file);  // the mapping stays
  if (!has_info || bytes == MAP_FAILED) fail(utf8(path), ": ", std::generic_category().message(error));
  if (size == 0) return {};
  return {.bytes = {static_cast<const std::byte*>(bytes), size},
          .owner = std::shared_ptr<void>(bytes, [size](void* mapped) { ::munmap(mapped, size); })};
}

#else

/// The bytes of a file.
/// @throws Error if it is no regular file or cannot be read.
inline MappedFile map_file(const std::filesystem::path& path) { return read_file(path); }

#endif

/// How to a file's bytes.
enum class Access {
  mapped,  ///< in place, loaded as they are touched: nobody may write to the file meanwhile
  copied,  ///< read at once into memory of their own: whoever writes to the file then changes nothing
};

/// @throws Error as map_file() and read_file().
inline MappedFile open_file(const std::filesystem::path& path, Access access) {
  return access == Access::mapped ? map_file(path) : read_file(path);
}

}  // namespace moe::inline MOE_TARGET::io
