/// @file  What this machine could do at best: the figures that every benchmark is measured against.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "machine.hpp"
#include "memory.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/bfloat16_pairs.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/tiles.hpp"

namespace moe::bench {

/// Of all threads in use together.
struct Limits {
  double fma_gflops = 0;    // float multiply-adds, two operations each, that touch nothing but registers
  double read_gbs = 0;      // 1e9 bytes a second, from memory that no cache holds
  double pairs_gflops = 0;  // the same as fma_gflops with pairs of bfloat16, where the processor multiplies these
  double bytes_gflops = 0;  // the same with four bytes, added up in an integer
};

namespace detail {

/// Runs task(thread) on threads that start together. Seconds until the last of them is done.
template <class F>
double seconds_together(Index threads, const F& task) {
  using Clock = std::chrono::steady_clock;
  std::barrier start(static_cast<std::ptrdiff_t>(threads));
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(threads)), end(begin);
  const auto run = [&](std::size_t t) {
    start.arrive_and_wait();
    begin[t] = Clock::now();
    task(static_cast<Index>(t));
    end[t] = Clock::now();
  };
  std::vector<std::jthread> others;
  for (std::size_t t = 1; t < begin.size(); ++t) others.emplace_back(run, t);
  run(0);
  others.clear();  // joins
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

/// So that no lane can be left out.
template <class Register>
auto sum_of(const Register& lanes) {
  auto total = lanes[0];
  for (std::size_t i = 1; i < sizeof lanes / sizeof total; ++i) total += lanes[i];
  return total;
}

// Independent sums that hide the latency of an addition: 4 cycles × 2 units ask for 8 at least.
inline constexpr int num_sums = kernels::num_registers == 32 ? 24 : 12;

/// Each sum begins with another number: a compiler makes one of those that it sees to be equal.
template <class Register>
void begin_apart(Register (&sum)[num_sums]) {
  using Number = std::remove_cvref_t<decltype(sum[0][0])>;
  kernels::unroll<num_sums>([&](auto i) { sum[i] = Register{} + static_cast<Number>(i); });
}

/// `steps` · num_sums multiply-adds of a register each. They converge to 1, so no number is ever slow.
[[gnu::noinline]] inline float multiply_add(Index steps, float factor) {
  using Register = kernels::Lanes<float>;
  const Register a = Register{} + factor, b = Register{} + (1 - factor);
  Register sum[num_sums];
  begin_apart(sum);
  for (Index s = 0; s < steps; ++s) kernels::unroll<num_sums>([&](auto i) { sum[i] = sum[i] * a + b; });
  kernels::unroll<num_sums - 1>([&](auto i) { sum[0] += sum[i + 1]; });
  return sum_of(sum[0]);
}

/// The same with pairs of bfloat16. They grow, slowly.
[[gnu::noinline]] inline float multiply_add_pairs(Index steps, float factor) {
  using Register = kernels::Lanes<float>;
  const kernels::Pairs a = kernels::pairs_of(Register{} + factor, Register{} + factor);
  Register sum[num_sums];
  begin_apart(sum);
  for (Index s = 0; s < steps; ++s)
    kernels::unroll<num_sums>([&](auto i) { kernels::add_pair_products(sum[i], a, a); });
  kernels::unroll<num_sums - 1>([&](auto i) { sum[0] += sum[i + 1]; });
  return sum_of(sum[0]);
}

#if defined(MOE_HAS_AMX)
/// The same with tiles of pairs: each product of two tiles counts as 32 of registers of floats.
[[gnu::noinline]] inline float multiply_add_tiles(Index steps, float) {
  const kernels::TilesInUse tiles;
  _tile_zero(4);
  _tile_zero(5);
  for (Index s = 0; s < steps * num_sums / 64; ++s) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return 0;
}
#endif

/// The same with four bytes in each lane, in integers, which may overflow.
[[gnu::noinline]] inline float multiply_add_bytes(Index steps, float factor) {
  using kernels::register_bytes;
  using Integers = kernels::IntegersOf<register_bytes>;
  using Bytes = kernels::BytesOf<register_bytes>;
  const Bytes a = Bytes{} + std::int8_t(factor);
  Integers sum[num_sums];
  begin_apart(sum);
  for (Index s = 0; s < steps; ++s) {  // of the sums themselves: where a product is no part of a sum, it is made anew
    kernels::unroll<num_sums>([&](auto i) { sum[i] = kernels::added_byte_products<true>(sum[i], a, (Bytes)sum[i]); });
  }
  kernels::unroll<num_sums - 1>([&](auto i) { sum[0] += sum[i + 1]; });
  return float(sum_of(sum[0]));
}

/// The best rate of a function that makes steps · num_sums registers of so many products and sums.
template <class F>
double measure_gflops(Index threads, Index products, const F& multiply_add) {
  constexpr Index steps = 2'000'000;  // 7 ms at 230 GFLOP/s: short enough to find a quiet moment
  const volatile float factor = 0.5F;
  double best = 0;
  for (int repeat = 0; repeat < 16; ++repeat) {
    const double seconds = seconds_together(
        threads, [&](Index) { [[maybe_unused]] const volatile float keep = multiply_add(steps, factor); });
    best = std::max(best, 2e-9 * double(steps * num_sums * products * threads) / seconds);
  }
  return best;
}

inline constexpr Index cache_line = 64;
inline constexpr Index row_bytes = 8192;

/// Reads rows [first, last), `streams` of them at a time, asking for each cache line `ahead` bytes early.
template <int streams>
[[gnu::noinline]] std::uint64_t read_rows(const std::byte* bytes, Index first, Index last, Index ahead) {
  typedef std::uint64_t Register __attribute__((vector_size(kernels::register_bytes)));
  constexpr int loads = cache_line / static_cast<int>(kernels::register_bytes);
  Register sum[streams * loads] = {};
  for (Index row = first; row + streams <= last; row += streams) {
    for (Index at = 0; at < row_bytes; at += cache_line) {
      kernels::unroll<streams>([&](auto s) {
        const std::byte* line = bytes + (row + s) * row_bytes + at;
        __builtin_prefetch(line + ahead);
        kernels::unroll<loads>([&](auto i) {
          sum[s * loads + i] += kernels::load_as<Register>(line + i * Index(kernels::register_bytes));
        });
      });
    }
  }
  for (int i = 1; i < streams * loads; ++i) sum[0] += sum[i];
  return sum_of(sum[0]);
}

/// Memory that no cache holds: a gigabyte, or four times the last cache, as far as there is so much.
inline Index bytes_beyond_cache() {
  double wanted = 4.0 * last_cache_bytes();
  wanted = std::min(std::max(wanted, 1e9), std::max(64e6, available_memory() / 4));
  return static_cast<Index>(wanted) / (64 * row_bytes) * (64 * row_bytes);
}

/// Of huge pages where there are any.
inline std::shared_ptr<std::byte> allocate_pages(Index bytes) {
  constexpr std::size_t huge_page = std::size_t(2) << 20;
  const std::size_t size = (static_cast<std::size_t>(bytes) + huge_page - 1) / huge_page * huge_page;
  void* memory = std::aligned_alloc(huge_page, size);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(memory, size, MADV_HUGEPAGE);
#endif
  return {static_cast<std::byte*>(memory), std::free};
}

/// The best of several ways to read, none of which is the fastest on every machine.
inline double measure_read_gbs(Index threads) {
  const Index rows = bytes_beyond_cache() / row_bytes, quarter = rows / 4;
  const auto memory = allocate_pages(rows * row_bytes);
  const auto in_bands = [&](Index first, Index count, const auto& task) {
    return seconds_together(
        threads, [&](Index t) { task(memory.get(), first + count * t / threads, first + count * (t + 1) / threads); });
  };
  in_bands(0, rows, [](std::byte* bytes, Index first, Index last) {
    std::memset(bytes + first * row_bytes, 1, static_cast<std::size_t>((last - first) * row_bytes));
  });
  double best = 0;
  Index turn = 0;
  const auto try_reading = [&](const auto& read) {
    const double seconds = in_bands(turn++ % 4 * quarter, quarter, [&](std::byte* bytes, Index first, Index last) {
      [[maybe_unused]] const volatile std::uint64_t keep = read(bytes, first, last);
    });
    best = std::max(best, 1e-9 * double(quarter * row_bytes) / seconds);
  };
  for (int repeat = 0; repeat < 4; ++repeat) {
    for (const Index ahead : {0, 1024, 2048, 4096, 8192}) {
      try_reading([&](auto... range) { return read_rows<1>(range..., ahead); });
    }
    try_reading([](auto... range) { return read_rows<4>(range..., 0); });
    try_reading([](auto... range) { return read_rows<8>(range..., 0); });
  }
  return best;
}

}  // namespace detail

/// Takes about two seconds.
inline Limits measure_limits(Index threads) {
  constexpr Index lanes = kernels::lanes<float>;
  Limits limits{.fma_gflops = detail::measure_gflops(threads, lanes, detail::multiply_add),
                .read_gbs = detail::measure_read_gbs(threads)};
  limits.pairs_gflops = limits.fma_gflops;
  if (kernels::has_fast_pairs) {
    limits.pairs_gflops = detail::measure_gflops(threads, 2 * lanes, detail::multiply_add_pairs);
  }
#if defined(MOE_HAS_AMX)
  if (kernels::pairs_pay()) {
    limits.pairs_gflops = detail::measure_gflops(threads, 32 * lanes, detail::multiply_add_tiles);
  }
#endif
  limits.bytes_gflops = detail::measure_gflops(threads, 4 * lanes, detail::multiply_add_bytes);
  return limits;
}

}  // namespace moe::bench
