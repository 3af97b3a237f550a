/// @file  What a group of experts borrows its weights from, call by call.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// Bytes, wherever they are.
using Bytes = std::span<const std::byte>;

/// Where bytes lie now that files have at the addresses at which they are mapped.
class Moved {
 public:
  /// Neighbours that moved together.
  struct Part {
    Bytes mapped;
    const std::byte* now;
  };

  /// @param parts  in the order of their addresses
  explicit Moved(std::span<const Part> parts) : parts_(parts) {}

  /// Of what lies in none of the parts: where it was.
  template <class T>
  const T* operator()(const T* mapped) const {
    const auto* const address = reinterpret_cast<const std::byte*>(mapped);
    for (const auto& [bytes, now] : parts_) {
      if (std::less_equal<>()(bytes.data(), address) && std::less<>()(address, bytes.data() + bytes.size())) {
        return reinterpret_cast<const T*>(now + (address - bytes.data()));
      }
    }
    return mapped;
  }

 private:
  std::span<const Part> parts_;
};

/// Weights that are not used as a file has them, but turned, widened or repacked when they have been read.
struct PromisedWeights {
  Bytes source;                                                   // in a mapped file
  std::size_t size;                                               // of what is made of it
  std::function<void(const std::byte* source, std::byte*)> make;  // the source may lie anywhere
};

/// An expert of a group, before anything of it has been read.
struct BorrowedExpert {
  Index number = 0;              // in its block
  std::vector<Bytes> weights{};  // at the addresses where their files are mapped, or promised ones
  /// Called when it lies elsewhere, and nobody uses it. false: its group is gone. Groups of the same weights, all of
  /// whose experts have it, share them.
  std::function<bool(const Moved&)> settle{};
  /// Called when it has been read: throws an Error if that cannot be right.
  std::function<void(const Moved&)> check{};
};

/// Any number of threads may call at once. Files stay mapped, for their addresses say which bytes are meant; nothing is
/// read through them.
class ExpertLender {
 public:
  virtual ~ExpertLender() = default;

  // ---- while layers are loaded

  /// Takes in the experts of a group.
  /// @return the first of them; they are numbered through.
  virtual Index add(const std::string& block, std::vector<BorrowedExpert> experts) = 0;

  /// The address of weights to come, for BorrowedExpert::weights and Moved. Nothing lies there.
  virtual const std::byte* promise(PromisedWeights weights) = 0;

  /// How many bytes it has promised that begin there; 0 if none.
  virtual std::size_t promised_at(const std::byte* address) const = 0;

  /// The same bytes of a file, or promised ones, in memory that stays.
  virtual const std::byte* keep(Bytes mapped) = 0;

  /// The tensor of a file to which the byte at an address belongs; null if there is none.
  virtual const Tensor* tensor_at(const std::byte* mapped) const = 0;

  // ---- in a call, which uses experts of one group: see LeasedBank

  /// How a call takes them.
  struct Order {
    bool by_number = false;  // or else whoever is here first, others as their files have them
    bool streams = false;    // each is used once: what others come back to is not evicted for it
  };

  /// Orders them so.
  /// @return how many are not here yet
  virtual Index begin(std::span<Index> experts, const Order& order) = 0;

  /// Leases as many of them as there is room for, from the first on, and sends for those that are not here.
  /// @param held  how many the call has leased already; if none, it waits for room for one
  virtual Index lease(std::span<const Index> experts, Index held, const Order& order) = 0;

  /// Waits until the first is here; or any, and then those that are come first.
  /// @return how many are
  /// @throws Error naming file, tensor and offset, if one that was waited for could not be read.
  virtual Index arrived(std::span<Index> leased, const Order& order) = 0;

  /// They may make room again.
  virtual void release(std::span<const Index> leased) noexcept = 0;
};

}  // namespace moe::inline MOE_TARGET::io
