/// @file  A model whose experts need not fit in memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/load_layer.hpp"
#include "moe/io/model.hpp"
#include "moe/io/store/expert_cache.hpp"
#include "moe/io/store/leased_experts.hpp"
#include "moe/io/store/policies.hpp"
#include "moe/io/store/stats.hpp"
#include "moe/io/store/stored_file.hpp"

#if !defined(_WIN64) && __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace moe::inline MOE_TARGET {

inline namespace literals {

/// Bytes: 8_GiB, 512_MiB.
constexpr std::size_t operator""_MiB(unsigned long long number) { return std::size_t(number) << 20; }
/// The same, with another unit.
constexpr std::size_t operator""_GiB(unsigned long long number) { return std::size_t(number) << 30; }
/// And of parts of it: 1.5_GiB.
constexpr std::size_t operator""_GiB(long double number) { return static_cast<std::size_t>(number * (1U << 30)); }

}  // namespace literals

namespace io {

/// How much memory a store has, and how it uses it.
struct StoreOptions {
  std::size_t memory;  // bytes for the experts of all layers
  AnyPolicy policy = DecayedCounts();
  Index threads = 4;                              // that read, of each disk
  std::size_t read_bytes = std::size_t(4) << 20;  // of a request, at most
  OpenFile open = open_stored_file;
  bool hub_code = false;  // as in ReadOptions
};

namespace detail {

/// Bytes of a block's experts, as names tell.
inline std::size_t expert_bytes_of(const Model& model, const std::string& block) {
  const std::string prefix = block.empty() ? "" : block + '.';
  std::size_t bytes = 0;
  model.tensors().for_each_below(prefix, [&](const Tensor& tensor) {
    const std::string_view name = std::string_view(tensor.name).substr(prefix.size());
    for (const std::string_view experts : alternatives(model.architecture(block).experts)) {
      if (!name.starts_with(experts)) continue;
      if (experts.empty() && !names_an_expert(name, tensor.name, model.tensors())) continue;
      bytes += tensor.bytes.size();
      return;
    }
  });
  return bytes;
}

}  // namespace detail

/// A Model whose layers borrow their experts: what a call uses of a layer is in memory while it lasts, within one
/// budget for all layers, and everything else (routers, shared experts, biases) is there from the beginning. Layers
/// compute what those of a Model compute, to the last bit, and any number of threads may run them. Copies share the
/// experts, as do the layers, which may outlive it.
///
///   ExpertStore store("Qwen3-30B-A3B", {.memory = 8_GiB});
///   const auto layer = load_layer(store, "model.layers.3.mlp").layer;
class ExpertStore : public Model {
 public:
  /// @param model  a folder, or a *.gguf file
  /// @throws Error naming both numbers, if the budget is less than the experts that one token uses in all layers, or
  ///         more than the system has; or as Model.
  ExpertStore(const std::filesystem::path& model, StoreOptions options)
      : Model(model, ReadOptions{.hub_code = options.hub_code}), threads_(options.threads) {
    require_a_walk(options.memory);
    auto* const cache = new ExpertCache(
        shared_tensors(), moe_blocks(), std::max<Index>(shape().top_k, 1),
        {options.memory, std::move(options.policy), options.threads, options.read_bytes, std::move(options.open)});
#if !defined(_WIN64) && __has_include(<unistd.h>)
    // A child process has none of the threads, and would wait for them.
    cache_.reset(cache, [process = ::getpid()](ExpertCache* its) {
      if (::getpid() == process) delete its;
    });
#else
    cache_.reset(cache);
#endif
    borrow_from(cache_);
  }

  /// What happened so far, of all layers.
  StoreStats stats() const { return cache_->stats(); }

  /// Reads the largest file at random, for as long as this, while nobody else does: what stats() then says of the disk.
  /// @return bytes a second
  /// @throws Error naming the file, if it is too small (64 MB) or is not read past the system's cache.
  double measure_disk(double seconds = 1) const {
    return cache_->measure_disk({.piece = 0, .threads = threads_, .seconds = seconds});
  }

  /// The experts of a block as a group of your own type, each a view of its tensors where they lie for now:
  ///
  ///   store.group<MyExpert>(block, [](const ExpertTensors& its) { return
  ///   MyExpert{its.matrix<bfloat16>("w_in.weight")};
  ///   })
  ///
  /// @param make  make(its) is called by a thread that reads, each time that an expert has been read; what it throws is
  ///              an Error of who waits for the expert
  template <Expert E, class Make>
  LeasedExperts<E> group(const std::string& block, Make make) const {
    detail::check_block(*this, block);
    return {*this, block, std::move(make)};
  }

 private:
  void require_a_walk(std::size_t memory) const {
    const auto top_k = std::size_t(std::clamp<Index>(shape().top_k, 1, std::max<Index>(shape().num_experts, 1)));
    std::size_t walk = 0;
    for (const std::string& block : moe_blocks()) {
      walk += detail::expert_bytes_of(*this, block) / std::size_t(std::max<Index>(shape().num_experts, 1)) * top_k;
    }
    if (memory >= walk) return;
    fail(utf8(folder()), ": ExpertStore: memory is ", memory, " bytes, expected at least ", walk,
         ", which is what one token uses: ", top_k, " of ", shape().num_experts, " experts in each of ",
         moe_blocks().size(), " layers");
  }

  std::shared_ptr<ExpertCache> cache_;
  Index threads_;
};

}  // namespace io

}  // namespace moe::inline MOE_TARGET
