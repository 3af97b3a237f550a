/// @file  Memory for intermediate results: grows while warming up, then never allocates again.
#pragma once

#include <algorithm>
#include <any>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/huge_pages.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Hands out memory that lives until the next reset(). One Scratch per worker; not thread-safe.
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;  // bytes: a cache line, and the widest register

  /// An uninitialised (rows × cols) matrix.
  template <class Scalar>
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> matrix(Index rows, Index cols) {
    return {array<Scalar>(rows * cols), rows, cols};
  }

  /// `size` uninitialised numbers or pointers, on a cache line of their own.
  template <class T>
  T* array(Index size) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= alignment);
    return reinterpret_cast<T*>(take(sizeof(T) * std::size_t(size)));
  }

  /// An object that stays what it was at the last reset(), with the memory that it has: T{} at first. So what holds
  /// vectors allocates nothing in a warm call.
  template <class T>
  T& kept() {
    static_assert(sizeof(T) > 64, "it would lie in the std::any itself, which moves");
    if (next_kept_ == kept_.size()) kept_.emplace_back();
    std::any& any = kept_[next_kept_++];
    T* const known = std::any_cast<T>(&any);
    return known ? *known : any.emplace<T>();
  }

  /// Everything handed out so far may be reused. Merges the blocks: a warm Scratch holds just one, of `at_least` bytes.
  void reset(std::size_t at_least = 0) {
    used_ = next_kept_ = 0;
    if (blocks_.size() != 1 || room_ * alignment < at_least) merge(std::max(capacity(), at_least));
  }

  /// How much has been handed out.
  struct Mark {
    std::size_t blocks, used;
  };
  /// What is handed out now, for rewind().
  Mark mark() const { return {blocks_.size(), used_}; }

  /// What was handed out since then may be reused; there was no reset() since.
  void rewind(const Mark& mark) { used_ = blocks_.size() == mark.blocks ? mark.used : 0; }

  /// Bytes held.
  std::size_t capacity() const {
    std::size_t lines = 0;
    for (const Block& block : blocks_) lines += block.size();
    return lines * alignment;
  }

  /// Makes room, so that the next arrays up to so many bytes (each rounded up to `alignment`) need no new block.
  void reserve(std::size_t bytes) {
    const std::size_t lines = (bytes + alignment - 1) / alignment;
    if (used_ + lines > room_) add_block(lines);
  }

 private:
  struct alignas(alignment) Line {
    std::byte bytes[alignment];
  };

  /// Lines where they lie until its end. (As a std::vector they would cost every program three times the functions.)
  class Block {
   public:
    explicit Block(std::size_t size) : lines_(HugePageAllocator<Line>().allocate(size)), size_(size) {
      std::memset(lines_, 0, size * sizeof(Line));
    }
    Block(Block&& other) noexcept : lines_(std::exchange(other.lines_, nullptr)), size_(other.size_) {}
    Block& operator=(Block&&) = delete;
    ~Block() {
      if (lines_) HugePageAllocator<Line>().deallocate(lines_, size_);
    }

    std::size_t size() const { return size_; }
    Line& operator[](std::size_t i) const { return lines_[i]; }

   private:
    Line* lines_;
    std::size_t size_;
  };

  std::byte* take(std::size_t bytes) {
    const std::size_t lines = (std::max<std::size_t>(1, bytes) + alignment - 1) / alignment;
    if (used_ + lines > room_) grow(lines);
    std::byte* const at = blocks_.back()[used_].bytes;
    used_ += lines;
    return at;
  }

  [[gnu::cold, gnu::noinline]] void grow(std::size_t lines) { add_block(std::max(lines, 2 * room_)); }

  [[gnu::cold, gnu::noinline]] void add_block(std::size_t lines) {
    blocks_.emplace_back(lines);
    used_ = 0;
    room_ = lines;
  }

  [[gnu::cold, gnu::noinline]] void merge(std::size_t bytes) {
    blocks_.clear();
    room_ = 0;
    if (bytes > 0) add_block((bytes + alignment - 1) / alignment);
  }

  std::vector<Block> blocks_;  // a block that moves leaves its lines where they are, for they may be in use
  std::size_t used_ = 0;       // lines taken from the last block …
  std::size_t room_ = 0;       // … of so many
  std::vector<std::any> kept_;
  std::size_t next_kept_ = 0;
};

/// The Scratch of a call: one that all workers share, then one of each. A call holds it as long as it lasts.
class CallScratch {
 public:
  CallScratch() = default;
  CallScratch(const CallScratch&) {}  ///< A copy is held by nobody, and empty.
  CallScratch(CallScratch&& other) noexcept : each_(std::move(other.each_)) {}  ///< Nor is what it moves to.
  /// Who holds it holds it still, and each keeps its memory.
  CallScratch& operator=(const CallScratch&) { return *this; }
  CallScratch& operator=(CallScratch&& other) noexcept { return each_ = std::move(other.each_), *this; }  ///< Likewise.

  /// Bytes held.
  std::size_t bytes() const {
    std::size_t all = 0;
    for (const Scratch& one : each_) all += one.capacity();
    return all;
  }

  /// One call's right to it, given back at the call's end, however it ends.
  class Hold {
   public:
    /// @throws std::logic_error if another call has it.
    explicit Hold(CallScratch& scratch) : scratch_(scratch) {
      if (scratch_.is_held_.exchange(true, std::memory_order_acquire)) {
        throw std::logic_error(
            "Workspace: two calls use it at once, expected one at a time: give each thread a workspace (or tape) of "
            "its own");
      }
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold() { scratch_.is_held_.store(false, std::memory_order_release); }

    std::vector<Scratch>& each() { return scratch_.each_; }  ///< That of all workers, then that of each.

   private:
    CallScratch& scratch_;
  };

 private:
  std::vector<Scratch> each_;
  std::atomic<bool> is_held_ = false;
};

}  // namespace moe::inline MOE_TARGET
