/// @file  Threads that read, a queue for each disk.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"

#if !defined(_WIN64) && __has_include(<pthread.h>)
#include <pthread.h>
#include <signal.h>
#endif

namespace moe::inline MOE_TARGET::io {

/// Requests of one disk begin in the order in which they came. What has begun is finished before this ends; what has
/// not is forgotten.
template <class Request>
class Readers {
 public:
  /// Memory of a reader's own, which grows.
  using Room = std::vector<std::byte>;

  /// @param run  must not throw
  Readers(Index threads_of_disk, std::function<void(const Request&, Room&)> run)
      : threads_of_disk_(threads_of_disk), run_(std::move(run)) {}
  Readers(const Readers&) = delete;
  Readers& operator=(const Readers&) = delete;
  ~Readers() {
    for (auto& [number, disk] : disks_) {
      const std::lock_guard lock(disk->mutex);
      disk->has_ended = true;
      disk->changed.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  /// Before requests of it.
  void add_disk(std::uint64_t number) {
    auto& disk = disks_[number];
    if (disk) return;
    disk = std::make_unique<Disk>();
    const SignalsOff signals_go_to_other_threads;
    for (Index i = 0; i < threads_of_disk_; ++i) threads_.emplace_back([this, d = disk.get()] { work(*d); });
  }

  /// A thread of the disk of this number will run() it.
  void add(std::uint64_t number, const Request& request) {
    Disk& disk = *disks_.at(number);
    const std::lock_guard lock(disk.mutex);
    disk.waiting.push_back(request);
    disk.changed.notify_one();
  }

 private:
  struct Disk {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Request> waiting;
    bool has_ended = false;
  };

  /// Threads that are made meanwhile get none.
  class SignalsOff {
   public:
#if !defined(_WIN64) && __has_include(<pthread.h>)
    SignalsOff() {
      sigset_t all;
      sigfillset(&all);  // a macro on macOS
      ::pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsOff() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

   private:
    sigset_t before_;
#else
    SignalsOff() {}
#endif
  };

  void work(Disk& disk) {
    Room room;
    std::unique_lock lock(disk.mutex);
    for (;;) {
      disk.changed.wait(lock, [&] { return disk.has_ended || !disk.waiting.empty(); });
      if (disk.has_ended) return;
      const Request request = disk.waiting.front();
      disk.waiting.pop_front();
      lock.unlock();
      run_(request, room);
      lock.lock();
    }
  }

  Index threads_of_disk_;
  std::function<void(const Request&, Room&)> run_;
  std::map<std::uint64_t, std::unique_ptr<Disk>> disks_;
  std::vector<std::thread> threads_;
};

}  // namespace moe::inline MOE_TARGET::io
