/// @file  Experts of all layers in one piece of memory, of which some are there.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/store/arena.hpp"
#include "moe/io/store/expert_layout.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/store/mapped_files.hpp"
#include "moe/io/store/measure_disk.hpp"
#include "moe/io/store/policies.hpp"
#include "moe/io/store/promised_addresses.hpp"
#include "moe/io/store/readers.hpp"
#include "moe/io/store/stats.hpp"
#include "moe/io/store/stored_file.hpp"

#if !defined(_WIN64) && __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// StoreOptions, but for the model.
struct ExpertCacheOptions {
  std::size_t memory;
  AnyPolicy policy;
  Index threads;           // that read, of each disk
  std::size_t read_bytes;  // of one request, at most
  OpenFile open;
};

/// An expert is somewhere else each time that it comes. It stays while a call has leased it, and while it is read.
/// Nobody waits here while holding what others wait for: a call waits for room when it has leased nothing, and else for
/// reads alone, which wait for nobody.
class ExpertCache final : public ExpertLender {
 public:
  /// @param tensors  of mapped files
  /// @param blocks   layers, in order
  /// @param top_k    how many experts of a group a token uses
  ExpertCache(std::shared_ptr<const Tensors> tensors, std::vector<std::string> blocks, Index top_k,
              ExpertCacheOptions options)
      : tensors_(std::move(tensors)),
        blocks_(std::move(blocks)),
        top_k_(top_k),
        read_bytes_(std::max(options.read_bytes / StoredFile::block * StoredFile::block, StoredFile::block)),
        files_(*tensors_, options.open),
        arena_(options.memory),
        policy_(std::move(options.policy)),
        readers_(std::max<Index>(options.threads, 1),
                 [this](const Request& request, Room& room) { perform(request, room); }) {
    for (const SourceFile& file : files_.all()) readers_.add_disk(file.file->disk());
  }

  /// What happened so far.
  StoreStats stats() const {
    const std::lock_guard lock(mutex_);
    StoreStats stats = stats_;
    if (num_reading_ > 0) stats.seconds_reading += seconds_since(reading_since_);
    stats.memory = arena_.size();
    stats.experts_here = std::ssize(here_);
    stats.experts = std::ssize(experts_);
    stats.files = std::ssize(files_.all());
    stats.files_direct = std::ranges::count_if(files_.all(), [](const auto& file) { return file.file->is_direct(); });
    return stats;
  }

  /// Measures the disk of the largest file, by pieces as large as an expert.
  /// @return bytes a second
  /// @throws Error naming the file, as measure_disk().
  double measure_disk(DiskProbe probe) {
    const auto& files = files_.all();
    const auto largest = std::ranges::max_element(files, {}, [](const SourceFile& file) { return file.size; });
    if (largest == files.end()) fail("measure_disk: the store has no files");
    {
      const std::lock_guard lock(mutex_);
      for (const Expert& expert : experts_) probe.piece = std::max(probe.piece, expert.layout.room());
    }
    double disk = 0;
    try {
      disk = io::measure_disk(*largest->file, largest->size, probe);
    } catch (const std::exception& error) {
      fail(largest->path, ": ", error.what());
    }
    const std::lock_guard lock(mutex_);
    return stats_.disk = disk;
  }

  // ---- while layers are loaded

  Index add(const std::string& block, std::vector<BorrowedExpert> experts) override {
    const Index layer = std::ranges::find(blocks_, block) - blocks_.begin();
    std::deque<Expert> laid_out;
    for (BorrowedExpert& expert : experts) laid_out.push_back(lay_out(layer, std::move(expert)));
    files_.drop_pages();
    const std::lock_guard lock(mutex_);
    if (const auto same = find_group(laid_out)) {
      for (std::size_t e = 0; e < laid_out.size(); ++e) {
        Expert& expert = experts_[std::size_t(*same) + e];
        expert.settle.push_back(std::move(laid_out[e].settle.front()));
        if (expert.state != State::absent) settle(expert);
      }
      return *same;
    }
    std::size_t largest = 0;
    for (const Expert& expert : laid_out) largest = std::max(largest, expert.layout.room());
    const std::size_t walk = stats_.bytes_of_walk + std::size_t(std::min(top_k_, std::ssize(laid_out))) * largest;
    if (walk > arena_.size()) {
      fail("ExpertStore: memory is ", arena_.size(), " bytes, expected at least ", walk,
           ", which is what one token uses of ", std::ssize(groups_) + 1, " groups of experts, up to \"", block, "\"");
    }
    stats_.bytes_of_walk = walk;
    const Index first = std::ssize(experts_);
    groups_.emplace_back(first, std::ssize(laid_out));
    for (Expert& expert : laid_out) {
      expert.number = std::ssize(experts_);
      experts_.push_back(std::move(expert));
    }
    here_.reserve(experts_.size());
    candidates_.reserve(experts_.size());
    used_.reserve(experts_.size());
    return first;
  }

  const std::byte* promise(PromisedWeights weights) override {
    const SourceFile* const file = files_.file_at(weights.source.data());
    if (file == nullptr) fail("ExpertStore: weights of ", weights.size, " bytes are to be made of what is in no file");
    const std::lock_guard lock(mutex_);
    return promised_.add(std::move(weights));
  }

  std::size_t promised_at(const std::byte* address) const override {
    const PromisedWeights* const promised = find_promised(address);
    return promised == nullptr ? 0 : promised->size;
  }

  const std::byte* keep(Bytes mapped) override {
    std::shared_ptr<std::byte[]> memory(new std::byte[mapped.size()]);
    const PromisedWeights* const promised = find_promised(mapped.data());
    Bytes bytes = promised == nullptr ? mapped : promised->source;
    Room room;
    if (const SourceFile* const file = files_.file_at(bytes.data());
        file != nullptr && bytes.size() > max_mapped_bytes) {
      bytes = read_aligned(*file, std::uint64_t(bytes.data() - file->mapped), bytes.size(), room);
    }
    if (promised != nullptr) {
      promised->make(bytes.data(), memory.get());
    } else {
      std::ranges::copy(bytes, memory.get());
    }
    const std::lock_guard lock(mutex_);
    stats_.resident += mapped.size();
    kept_.push_back(memory);
    return memory.get();
  }

  const Tensor* tensor_at(const std::byte* mapped) const override { return files_.tensor_at(mapped); }

  // ---- in a call

  Index begin(std::span<Index> experts, const Order& order) override {
    require_own_process();
    const std::lock_guard lock(mutex_);
    used_.clear();
    for (const Index e : experts) used_.push_back(at(e).id);
    policy_.used(used_, used_.front().layer);
    const auto is_here = [&](Index e) { return at(e).state == State::ready; };
    const Index missing = std::ssize(experts) - std::ranges::count_if(experts, is_here);
    if (!order.by_number && missing > 0) {
      std::ranges::sort(experts, {}, [&](Index e) {
        const ExpertPiece& first = at(e).layout.pieces().front();
        return std::tuple(!is_here(e), first.file, first.wanted.data(), e);
      });
    }
    return missing;
  }

  Index lease(std::span<const Index> experts, Index held, const Order& order) override {
    std::unique_lock lock(mutex_);
    for (;;) {
      Index leased = 0;
      try {
        for (const Index e : experts) {
          if (!lease_one(at(e), held + leased, order)) break;
          ++leased;
        }
      } catch (...) {  // of a policy
        give_back(experts.first(std::size_t(leased)));
        throw;
      }
      if (held + leased > 0) return leased;
      wait(lock);
    }
  }

  Index arrived(std::span<Index> leased, const Order& order) override {
    std::unique_lock lock(mutex_);
    const auto is_here = [&](Index e) { return at(e).state == State::ready; };
    for (;;) {
      const auto end = order.by_number ? std::find_if_not(leased.begin(), leased.end(), is_here)
                                       : std::partition(leased.begin(), leased.end(), is_here);
      if (end != leased.begin()) return end - leased.begin();
      for (const Index e : order.by_number ? leased.first(1) : leased) {
        if (at(e).state == State::failed) throw Error(at(e).error);
      }
      wait(lock);
    }
  }

  /// As ExpertLender.
  void release(std::span<const Index> leased) noexcept override {
    const std::lock_guard lock(mutex_);
    give_back(leased);
  }

 private:
  using Clock = std::chrono::steady_clock;

  /// Loading reads smaller things through the mapping.
  static constexpr std::size_t max_mapped_bytes = std::size_t(64) << 10;

  /// Others go for a batch that streams as long as it has less than this share of memory, or so many experts.
  static constexpr std::size_t stream_share = 8;
  static constexpr Index stream_experts = 8;

  enum class State { absent, reading, ready, failed };

  struct Expert {
    ExpertId id;
    Index number = 0;        // among all
    bool is_shared = false;  // by groups of the same weights
    ExpertLayout layout;
    std::vector<std::function<bool(const Moved&)>> settle{};
    std::function<void(const Moved&)> check{};

    State state = State::absent;
    std::size_t at = 0;  // in the arena, unless it is absent
    Index leases = 0, pending = 0, place_in_list = 0;
    bool is_streamed = false;
    std::string error{};
  };

  struct Request {
    Expert* expert;
    const ExpertPiece* piece;
    std::size_t first, size;  // of the piece's bytes
  };
  using Room = typename Readers<Request>::Room;

  Expert& at(Index e) { return experts_[std::size_t(e)]; }

  void require_own_process() const {
#if !defined(_WIN64) && __has_include(<unistd.h>)
    if (::getpid() == process_) return;
    fail("ExpertStore: this is process ", ::getpid(), ", and process ", process_,
         " opened the store, whose readers and memory a child does not inherit: open one after fork()");
#endif
  }

  // ---- what an expert is made of

  Expert lay_out(Index layer, BorrowedExpert borrowed) {
    const std::string block = layer < std::ssize(blocks_) ? blocks_[std::size_t(layer)] : "";
    Expert expert{.id = {layer, borrowed.number},
                  .is_shared = borrowed.settle != nullptr,
                  .layout = {std::move(borrowed.weights), files_,
                             [this](const std::byte* address) { return find_promised(address); }, read_bytes_,
                             "expert " + std::to_string(borrowed.number) + " of \"" + block + "\""}};
    if (borrowed.settle) expert.settle.push_back(std::move(borrowed.settle));
    expert.check = std::move(borrowed.check);
    return expert;
  }

  const PromisedWeights* find_promised(const std::byte* address) const {
    const std::lock_guard lock(mutex_);
    return promised_.find(address);
  }

  /// The group that was loaded before, if it is the same.
  std::optional<Index> find_group(const std::deque<Expert>& group) const {
    const auto is_same = [](const Expert& a, const Expert& b) {
      return a.is_shared && b.is_shared && a.id == b.id && a.layout.is_same(b.layout);
    };
    for (const auto& [first, count] : groups_) {
      if (count != std::ssize(group)) continue;
      const auto begin = experts_.begin() + first;
      if (std::equal(group.begin(), group.end(), begin, is_same)) return first;
    }
    return std::nullopt;
  }

  std::vector<Moved::Part> parts_of(const Expert& expert) const {
    return expert.layout.parts(arena_.data() + expert.at);
  }

  void settle(Expert& expert) {
    const auto parts = parts_of(expert);
    const Moved moved(parts);
    std::erase_if(expert.settle, [&](const auto& settle) { return !settle(moved); });
  }

  // ---- who is there; all with the mutex

  bool lease_one(Expert& expert, Index held, const Order& order) {
    if (expert.state == State::absent) {
      const auto place = make_room(expert, held, order);
      if (!place) return false;
      expert.at = *place;
      try {
        settle(expert);
      } catch (...) {  // no memory
        arena_.give_back(*place);
        throw;
      }
      expert.is_streamed = order.streams;
      stats_.most_used = std::max(stats_.most_used, arena_.used());
      ++stats_.misses;
      send_for(expert);
    } else {
      ++(expert.state == State::ready ? stats_.hits : stats_.shared);
      if (!order.streams) expert.is_streamed = false;
    }
    ++expert.leases;
    return true;
  }

  void give_back(std::span<const Index> leased) noexcept {
    for (const Index e : leased) {
      Expert& expert = at(e);
      if (--expert.leases == 0 && expert.state == State::failed) leave(expert);
    }
    if (num_waiting_ > 0) changed_.notify_all();
  }

  std::optional<std::size_t> make_room(const Expert& expert, Index held, const Order& order) {
    const auto window = std::min(stream_experts, Index(arena_.size() / stream_share / expert.layout.room()));
    const bool spares_others = order.streams && held > 0 && held >= window;
    for (;;) {
      const auto place = arena_.take(expert.layout.room());
      if (place || !evict_one(expert.id.layer, spares_others)) return place;
    }
  }

  bool evict_one(Index layer, bool spares_others) {
    const auto collect = [&](bool streamed) {
      candidates_.clear();
      for (const Index e : here_) {
        if (at(e).leases == 0 && (!streamed || at(e).is_streamed)) candidates_.push_back(at(e).id);
      }
      return !candidates_.empty();
    };
    if (!collect(true) && (spares_others || !collect(false))) return false;
    const ExpertId victim = policy_.victim(candidates_, layer);
    const auto is_it = [&](Index e) { return at(e).leases == 0 && at(e).id == victim; };
    const auto found = std::ranges::find_if(here_, is_it);
    if (found == here_.end()) {
      fail("ExpertStore: the policy evicts expert ", victim.expert, " of layer ", victim.layer,
           ", expected one of the ", candidates_.size(), " candidates");
    }
    ++stats_.evictions;
    leave(at(*found));
    return true;
  }

  void leave(Expert& expert) {
    if (expert.state == State::ready) {
      const Index last = here_.back();
      at(last).place_in_list = expert.place_in_list;
      here_[std::size_t(expert.place_in_list)] = last;
      here_.pop_back();
    }
    arena_.give_back(expert.at);
    expert.state = State::absent;
    expert.is_streamed = false;
    expert.error.clear();
  }

  void send_for(Expert& expert) {
    expert.state = State::reading;
    if (num_reading_++ == 0) reading_since_ = Clock::now();
    // Of like sizes: a small one behind large ones would be the only one at the end of a layer, when nothing follows.
    const auto size_of_request = [&](const ExpertPiece& piece) {
      const std::size_t requests = piece.made.empty() ? (piece.needed() + read_bytes_ - 1) / read_bytes_ : 1;
      return whole_blocks((piece.needed() + requests - 1) / requests);
    };
    for (const ExpertPiece& piece : expert.layout.pieces()) {
      expert.pending += Index((piece.needed() + size_of_request(piece) - 1) / size_of_request(piece));
    }
    for (const ExpertPiece& piece : expert.layout.pieces()) {
      const std::size_t size = size_of_request(piece), needed = piece.needed();
      for (std::size_t first = 0; first < needed; first += size) {
        readers_.add(piece.file->file->disk(), {&expert, &piece, first, std::min(size, needed - first)});
      }
    }
  }

  void wait(std::unique_lock<std::mutex>& lock) {
    const auto since = Clock::now();
    ++num_waiting_;
    changed_.wait(lock);
    --num_waiting_;
    stats_.seconds_waiting += seconds_since(since);
  }

  // ---- readers

  /// Names the tensor at an offset, or the first that is wanted, where a block begins before it.
  auto namer(const SourceFile& file, std::uint64_t first) const {
    return
        [this, mapped = file.mapped, first](std::uint64_t at) { return files_.name_at(mapped + std::max(at, first)); };
  }

  void perform(const Request& request, Room& room) {
    Expert& expert = *request.expert;
    const ExpertPiece& piece = *request.piece;
    std::string error;
    try {
      std::byte* const to = arena_.data() + expert.at;
      if (piece.made.empty()) {
        read_range(*piece.file, piece.offset() + request.first, request.size,
                   {to + piece.at + request.first, whole_blocks(request.size)}, namer(*piece.file, piece.first()));
      } else {
        grow(room, whole_blocks(piece.needed()) + StoredFile::block);
        const Bytes read = read_aligned(*piece.file, piece.first(), piece.wanted.size(), room);
        for (const MadeWeights& one : piece.made) {
          one.promised->make(read.data() + (one.promised->source.data() - piece.wanted.data()), to + one.at);
        }
      }
    } catch (const std::exception& caught) {
      error = caught.what();
    }
    finish(expert, whole_blocks(request.size), std::move(error));
  }

  void grow(Room& room, std::size_t bytes) {
    if (room.size() >= bytes) return;
    const std::size_t more = bytes - room.size();
    room.resize(bytes);
    const std::lock_guard lock(mutex_);
    stats_.resident += more;
  }

  /// The bytes from there on, which lie in the room.
  Bytes read_aligned(const SourceFile& file, std::uint64_t from, std::size_t size, Room& room) const {
    const std::uint64_t offset = from / StoredFile::block * StoredFile::block;
    const auto skip = std::size_t(from - offset);
    const std::size_t all = whole_blocks(skip + size);
    if (room.size() < all + StoredFile::block) room.resize(all + StoredFile::block);
    void* place = room.data();
    std::size_t space = room.size();
    auto* const to = static_cast<std::byte*>(std::align(StoredFile::block, all, place, space));
    read_range(file, offset, skip + size, {to, all}, namer(file, from));
    return {to + skip, size};
  }

  void finish(Expert& expert, std::size_t bytes, std::string error) {
    std::unique_lock lock(mutex_);
    if (error.empty()) stats_.bytes_read += bytes;
    if (expert.error.empty()) expert.error = std::move(error);
    if (--expert.pending > 0) return;
    if (expert.error.empty() && expert.check) {
      lock.unlock();
      std::string wrong;
      try {
        const auto parts = parts_of(expert);
        expert.check(Moved(parts));
      } catch (const std::exception& caught) {
        wrong = caught.what();
      }
      lock.lock();
      expert.error = std::move(wrong);
    }
    if (--num_reading_ == 0) stats_.seconds_reading += seconds_since(reading_since_);
    if (expert.error.empty()) {
      expert.state = State::ready;
      expert.place_in_list = std::ssize(here_);
      here_.push_back(expert.number);
    } else {
      ++stats_.failures;
      expert.state = State::failed;
      if (expert.leases == 0) leave(expert);
    }
    if (num_waiting_ > 0) changed_.notify_all();
  }

  static double seconds_since(Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  }

  std::shared_ptr<const Tensors> tensors_;
  std::vector<std::string> blocks_;
  Index top_k_;
  std::size_t read_bytes_;
  MappedFiles files_;
  Arena arena_;
#if !defined(_WIN64) && __has_include(<unistd.h>)
  pid_t process_ = ::getpid();
#endif

  mutable std::mutex mutex_;  // of all that follows
  std::condition_variable changed_;
  Index num_waiting_ = 0;
  AnyPolicy policy_;
  std::deque<Expert> experts_;                   // stay where they are
  std::vector<std::pair<Index, Index>> groups_;  // the first, and how many
  std::vector<Index> here_;                      // in no order
  std::vector<ExpertId> candidates_, used_;      // of the last call, kept for their memory
  PromisedAddresses promised_;
  std::vector<std::shared_ptr<std::byte[]>> kept_;
  StoreStats stats_;
  Index num_reading_ = 0;
  Clock::time_point reading_since_{};

  Readers<Request> readers_;  // last: its threads use all of it
};

}  // namespace moe::inline MOE_TARGET::io
