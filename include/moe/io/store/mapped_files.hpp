/// @file  The files that a model's tensors are mapped from, by address.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/stored_file.hpp"
#include "moe/io/tensor.hpp"

#if !defined(_WIN64) && __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// A file that is mapped, and open to be read at offsets.
struct SourceFile {
  const std::byte* mapped;
  std::size_t size;  // up to the end of its last tensor
  std::string path;  // for messages
  std::unique_ptr<StoredFile> file;

  /// Behind the last byte of the mapping.
  const std::byte* end() const { return mapped + size; }
};

/// How a file is opened to be read.
using OpenFile = std::function<std::unique_ptr<StoredFile>(const std::filesystem::path&)>;

/// Reads all of a range, whatever pieces the system gives it in.
/// @param needed   bytes of `to` that there must be, for the last block of a file is not whole
/// @param name_at  name_at(offset): of the tensor there, as MappedFiles::name_at() has it
/// @throws Error naming file, tensor and offset, if it cannot.
template <class NameAt>
void read_range(const SourceFile& from, std::uint64_t offset, std::size_t needed, std::span<std::byte> to,
                const NameAt& name_at) {
  const auto where = [&](std::size_t got) {
    return from.path + ": " + name_at(offset + got) + "at byte " + std::to_string(offset + got) + " of the file";
  };
  constexpr int most_reads_in_vain = 16;
  const std::size_t step = from.file->is_direct() ? StoredFile::block : 1;
  std::size_t got = 0;
  for (int in_vain = 0; got < needed;) {
    std::size_t count = 0;
    try {
      count = from.file->read(offset + got, to.subspan(got));
    } catch (const std::exception& error) {
      fail(where(got), ": ", error.what());
    }
    if (count == 0) {
      fail(where(got), ": the file ends there, expected ", needed - got, " more bytes: was it cut while it was open?");
    }
    const std::size_t next = got + count >= needed ? needed : (got + count) / step * step;
    in_vain = next > got ? 0 : in_vain + 1;
    if (in_vain == most_reads_in_vain) {
      fail(where(got), ": ", in_vain, " reads gave ", count, " bytes or fewer, expected ", step, " at least");
    }
    got = next;
  }
}

/// Finds tensors and files by the address of a byte.
class MappedFiles {
 public:
  /// @param tensors  outlive this
  /// @throws Error naming the file, if one cannot be opened, or is another one by now.
  MappedFiles(const Tensors& tensors, const OpenFile& open) {
    std::map<const std::byte*, SourceFile, std::less<>> files;
    tensors.for_each_below("", [&](const Tensor& tensor) {
      const auto* const mapped = static_cast<const std::byte*>(tensor.owner.get());
      if (mapped == nullptr || tensor.file.empty() || tensor.bytes.empty()) return;
      tensors_.push_back(&tensor);
      SourceFile& file = files.try_emplace(mapped, SourceFile{mapped, 0, tensor.file, nullptr}).first->second;
      file.size = std::max(file.size, std::size_t(tensor.bytes.data() + tensor.bytes.size() - mapped));
    });
    std::ranges::sort(tensors_, std::less<>(), [](const Tensor* tensor) { return tensor->bytes.data(); });
    for (auto& [mapped, file] : files) {
      file.file = open(std::filesystem::path(std::u8string(file.path.begin(), file.path.end())));
      require_same(file);
      files_.push_back(std::move(file));
    }
  }

  const std::vector<SourceFile>& all() const { return files_; }

  /// Null if there is none.
  const SourceFile* file_at(const std::byte* address) const {
    const auto after = std::ranges::upper_bound(files_, address, std::less<>(), &SourceFile::mapped);
    if (after == files_.begin()) return nullptr;
    const SourceFile& file = *(after - 1);
    return std::less<>()(address, file.end()) ? &file : nullptr;
  }
  /// The tensor that this byte is of; null if it is of none.
  const Tensor* tensor_at(const std::byte* address) const {
    const auto begin = [](const Tensor* tensor) { return tensor->bytes.data(); };
    const auto after = std::ranges::upper_bound(tensors_, address, std::less<>(), begin);
    if (after == tensors_.begin()) return nullptr;
    const Tensor* const tensor = *(after - 1);
    return std::less<>()(address, tensor->bytes.data() + tensor->bytes.size()) ? tensor : nullptr;
  }

  /// How messages name it: tensor "experts.3.w1.weight", or nothing.
  std::string name_at(const std::byte* address) const {
    const Tensor* const tensor = tensor_at(address);
    return tensor == nullptr ? "" : "tensor \"" + tensor->name + "\" ";
  }

  /// Pages that loading has touched need not stay.
  void drop_pages() const {
    for (const SourceFile& file : files_) {
#if !defined(_WIN64) && __has_include(<sys/mman.h>)
      ::madvise(const_cast<std::byte*>(file.mapped), file.size, MADV_DONTNEED);
#endif
      file.file->drop_cache();
    }
  }

 private:
  /// What is read must be what is mapped: a file may be replaced between the two.
  static void require_same(const SourceFile& file) {
    const std::size_t size = std::min<std::size_t>(file.size, std::size_t(64) << 10);
    const std::size_t room = (size + StoredFile::block - 1) / StoredFile::block * StoredFile::block;
    std::vector<std::byte> memory(room + StoredFile::block);
    void* aligned = memory.data();
    std::size_t space = memory.size();
    auto* const to = static_cast<std::byte*>(std::align(StoredFile::block, room, aligned, space));
    read_range(file, 0, size, {to, room}, [](std::uint64_t) { return std::string(); });
    if (!std::equal(to, to + size, file.mapped)) {
      fail(file.path, ": the file was replaced while it was opened: open it again");
    }
  }

  std::vector<SourceFile> files_;  // by address
  std::vector<const Tensor*> tensors_;
};

}  // namespace moe::inline MOE_TARGET::io
