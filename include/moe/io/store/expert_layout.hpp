/// @file  What is read of an expert, and where in its room it comes to lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "moe/io/error.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/store/mapped_files.hpp"
#include "moe/io/store/stored_file.hpp"

namespace moe::inline MOE_TARGET::io {

/// Bytes in whole blocks of the disk.
constexpr std::size_t whole_blocks(std::size_t bytes) {
  return (bytes + StoredFile::block - 1) / StoredFile::block * StoredFile::block;
}

/// Weights that are made of a part of what is read.
struct MadeWeights {
  const PromisedWeights* promised;
  const std::byte* address;  // that stands for them
  std::size_t at = 0;        // in the expert's room
};

/// Neighbours in a file, read together: into the expert's room where they are used as they are, or else into a
/// reader's own, and what is made of them into the expert's.
struct ExpertPiece {
  const SourceFile* file;
  Bytes wanted;                     // where the file is mapped
  std::vector<MadeWeights> made{};  // empty: it is used as it is …
  std::size_t at = 0;               // … here, in the expert's room

  std::uint64_t first() const { return std::uint64_t(wanted.data() - file->mapped); }  ///< Offset of what is wanted.
  std::uint64_t offset() const { return first() / StoredFile::block * StoredFile::block; }  ///< Of its first block.
  std::size_t skip() const { return std::size_t(first() - offset()); }  ///< From there to what is wanted.
  std::size_t needed() const { return skip() + wanted.size(); }         ///< From there to its end.

  /// Is it more of the same, but for a few bytes, so that both are no more than so many? Then it is of this piece.
  bool extend(const SourceFile& its_file, Bytes bytes, std::size_t most) {
    constexpr std::size_t gap = std::size_t(16) << 10;
    const std::byte* const end = wanted.data() + wanted.size();
    if (file != &its_file || std::less<>()(end + gap, bytes.data())) return false;
    const std::byte* const new_end = std::max(end, bytes.data() + bytes.size(), std::less<>());
    const Bytes both(wanted.data(), new_end);
    if (new_end != end && both.size() > most) return false;
    wanted = both;
    return true;
  }
};

/// Pieces side by side in a room: those that are used as they are in front.
class ExpertLayout {
 public:
  /// What is made of bytes is made by whoever has read them: of at most such a part of a request, or of one tensor, so
  /// that the matrices of an expert are made side by side.
  static constexpr std::size_t parts_of_request = 4;

  /// @param weights        of the expert, as in BorrowedExpert
  /// @param find_promised  find_promised(address): the weights that an address was promised to, or null
  /// @param read_bytes     of a request, at most
  /// @param whose          it is, for messages
  /// @throws Error if some lie in no file, or there are none.
  template <class FindPromised>
  ExpertLayout(std::vector<Bytes> weights, const MappedFiles& files, const FindPromised& find_promised,
               std::size_t read_bytes, const std::string& whose) {
    std::vector<MadeWeights> made;
    std::ranges::sort(weights, std::less<>(), &Bytes::data);
    for (const Bytes bytes : weights) {
      if (const PromisedWeights* const promised = find_promised(bytes.data())) {
        if (made.empty() || made.back().address != bytes.data()) made.push_back({promised, bytes.data()});
        continue;
      }
      const SourceFile* const file = files.file_at(bytes.data());
      if (file == nullptr || std::less<>()(file->end(), bytes.data() + bytes.size())) {
        fail("ExpertStore: ", bytes.size(), " bytes of ", whose,
             " lie in no file that is mapped: expected a model that was read from files");
      }
      if (pieces_.empty() || !pieces_.back().extend(*file, bytes, std::size_t(-1))) pieces_.push_back({file, bytes});
    }
    for (ExpertPiece& piece : pieces_) {
      piece.at = room_;
      // Wherever in a block it begins, as room_of() has it: experts that are alike leave no gaps.
      room_ += whole_blocks(piece.wanted.size() + StoredFile::block - 1);
    }
    add_made(std::move(made), files, read_bytes / parts_of_request);
    if (pieces_.empty()) fail("ExpertStore: ", whose, " has no weights, expected some");
  }

  const std::vector<ExpertPiece>& pieces() const { return pieces_; }  ///< Those that are read into the room first.
  std::size_t room() const { return room_; }                          ///< Bytes, in whole blocks.

  /// Where everything lies, in a room that begins there.
  std::vector<Moved::Part> parts(const std::byte* room) const {
    std::vector<Moved::Part> all;
    for (const ExpertPiece& piece : pieces_) {
      if (piece.made.empty()) all.push_back({piece.wanted, room + piece.at + piece.skip()});
      for (const MadeWeights& one : piece.made) all.push_back({{one.address, one.promised->size}, room + one.at});
    }
    return all;
  }

  /// The same bytes, and nothing made of any?
  bool is_same(const ExpertLayout& other) const {
    return std::ranges::equal(pieces_, other.pieces_, [](const ExpertPiece& p, const ExpertPiece& q) {
      return p.made.empty() && q.made.empty() && p.wanted.data() == q.wanted.data() &&
             p.wanted.size() == q.wanted.size();
    });
  }

 private:
  void add_made(std::vector<MadeWeights> made, const MappedFiles& files, std::size_t most) {
    constexpr std::size_t alignment = 64;
    std::ranges::stable_sort(made, std::less<>(), [](const MadeWeights& one) { return one.promised->source.data(); });
    std::vector<ExpertPiece> read;
    for (MadeWeights& one : made) {
      one.at = room_;
      room_ += (one.promised->size + alignment - 1) / alignment * alignment;
      const Bytes source = one.promised->source;
      const SourceFile& file = *files.file_at(source.data());
      if (read.empty() || !read.back().extend(file, source, most)) read.push_back({&file, source});
      read.back().made.push_back(one);
    }
    room_ = whole_blocks(room_);
    std::ranges::move(read, std::back_inserter(pieces_));
  }

  std::vector<ExpertPiece> pieces_;
  std::size_t room_ = 0;
};

}  // namespace moe::inline MOE_TARGET::io
