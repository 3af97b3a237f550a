/// @file  Activations as codes of 8 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "moe/core/types.hpp"
#include "moe/kernels/byte_products.hpp"
#include "moe/kernels/bytes.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/multiply_add.hpp"
#include "moe/kernels/transpose.hpp"

namespace moe::inline MOE_TARGET::kernels {

/// 64 neighbours of a token: x = scale · code, where 32 share a scale, the largest |x| ÷ 127. Where one of these is NaN
/// or infinite, their scale is NaN.
struct alignas(64) ActivationCodes {
  static constexpr Index size = 64;

  std::int8_t codes[64];
  float scales[16];                 // of each four codes
  std::int32_t starts[16];          // of each four codes, -128 · their sum
  float sums[6];                    // Σ x as coded, of 16 neighbours each, then of 32 each
  std::int32_t starts_of_group[6];  // likewise, -128 · the sum of the codes
};

namespace detail {

/// Lane by lane the larger of two numbers, as integers.
MOE_INLINE Pairs larger(const Pairs& a, const Pairs& b) {
  using Signed = IntLanes<std::int32_t>;
  return (Pairs)((Signed)a > (Signed)b ? (Signed)a : (Signed)b);
}

/// The largest lane of them.
template <int size = lanes<float> / 2>
MOE_INLINE std::uint32_t largest_lane(const Pairs& v) {
  if constexpr (size == 0) {
    return v[0];
  } else {
    return largest_lane<size / 2>(larger(v, (Pairs)swapped_blocks<float, size>((Lanes<float>)v)));
  }
}

/// The codes of 32 neighbours, and their scale.
MOE_INLINE float code_32(const float* x, std::int8_t* codes) {
  constexpr int L = lanes<float>, registers = 32 / L;
  Lanes<float> numbers[registers];
  Pairs sizes{};  // as integers NaN and infinity are larger than any number
  unroll<registers>([&](auto i) __attribute__((always_inline)) {
    numbers[i] = load_as<Lanes<float>>(x + i * L);
    sizes = larger(sizes, (Pairs)numbers[i] & 0x7fffffffU);
  });
  const std::uint32_t largest = largest_lane(sizes);
  if (largest == 0 || largest >= 0x7f800000U) {
    std::memset(codes, 0, 32);
    return largest == 0 ? 0.F : std::numeric_limits<float>::quiet_NaN();
  }
  // 127 ÷ a small number would be infinite.
  const float lift = largest < 0x10000000U ? 0x1p96F : 1.F, size = std::bit_cast<float>(largest);
  const Lanes<float> inverse = 127 / (size * lift) - Lanes<float>{};
  const Lanes<float> nearest = 0x1.8p23F - Lanes<float>{};  // behind this sum an integer lies in the lowest bits
  unroll<registers>([&](auto i) __attribute__((always_inline)) {
    const auto sums = (IntLanes<std::int32_t>)multiply_add(numbers[i] * lift, inverse, nearest);
    store_low_bytes(sums, codes + i * L);
  });
  return size / 127;
}

}  // namespace detail

/// The codes of x[0, 64).
MOE_INLINE void code_activations(const float* x, ActivationCodes& to) {
  float scales[2];
  for (int half = 0; half < 2; ++half) {
    scales[half] = detail::code_32(x + 32 * half, to.codes + 32 * half);
    std::fill_n(to.scales + 8 * half, 8, scales[half]);
  }
  const ByteWeights<true, register_bytes> ones(BytesOf<register_bytes>{} + std::int8_t(1));
  std::int32_t fours[16];
  repeat<int(64 / register_bytes)>([&](int i) __attribute__((always_inline)) {
    const auto codes = load_as<BytesOf<register_bytes>>(to.codes + i * int(register_bytes));
    const auto sums = byte_products(ones, codes, IntegersOf<register_bytes>{});
    store(fours + i * lanes<float>, sums);
    store(to.starts + i * lanes<float>, sums * -128);
  });
  asm("" : "+m"(fours));  // lanes that are taken out of registers cost more than loads
  std::int32_t sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = (fours[4 * i] + fours[4 * i + 1]) + (fours[4 * i + 2] + fours[4 * i + 3]);
  const auto put_sum = [&](int i, float scale, std::int32_t sum) {
    to.sums[i] = scale * float(sum);
    to.starts_of_group[i] = sum * -128;
  };
  for (int i = 0; i < 4; ++i) put_sum(i, scales[i / 2], sums[i]);
  for (int i = 0; i < 2; ++i) put_sum(4 + i, scales[i], sums[2 * i] + sums[2 * i + 1]);
}

/// The same of as many tokens as a register has lanes, side by side; or of half as many, of which each has two lanes,
/// so that a register holds twice as many codes of each.
/// @tparam parts  lanes of a token, 1 or 2
template <int parts>
struct alignas(64) ManyActivationCodes {
  static constexpr int L = lanes<float>;

  std::int8_t codes[16 / parts][L / parts][4 * parts];
  float scales[2][L];  // of 32 neighbours each
  float sums[6][L];    // Σ x as coded, of 16 neighbours each, then of 32 each; behind the first lane of a token 0
  std::int32_t starts[6][L];  // -128 · the sums of so many codes in a lane; written where has_starts
};

namespace detail {

/// Lane i is the largest lane of v[i].
template <int size = lanes<float> / 2>
MOE_INLINE Pairs largest_lanes(Lanes<float> (&v)[lanes<float>]) {
  unroll<size>([&](auto i) __attribute__((always_inline)) {
    swap_blocks<float, size>(v[i], v[i + size]);
    v[i] = (Lanes<float>)larger((Pairs)v[i], (Pairs)v[i + size]);
  });
  if constexpr (size == 1) {
    return (Pairs)v[0];
  } else {
    return largest_lanes<size / 2>(v);
  }
}

/// What code_32() finds for 32 neighbours of each token, in its lanes.
struct Coding {
  std::uint32_t largest[lanes<float>];
  float lift[lanes<float>], inverse[lanes<float>];
};

/// The largest numbers of 32 neighbours of each token, as integers.
template <int parts>
MOE_INLINE Pairs largest_of_tokens(const float* const* x, Index count, Index first) {
  constexpr int L = lanes<float>;
  Lanes<float> sizes[L / parts] = {}, in_lanes[L];
  for (Index i = 0; i < count; ++i) {
    Pairs size{};
    unroll<32 / L>([&](auto r) __attribute__((always_inline)) {
      const float* const some = x[i] + first + r * L;
      size = larger(size, load_as<Pairs>(some) & 0x7fffffffU);
      __builtin_prefetch(some + ActivationCodes::size);  // so many tokens are more streams than a processor follows
    });
    sizes[i] = (Lanes<float>)size;
  }
  unroll<L>([&](auto l) __attribute__((always_inline)) { in_lanes[l] = sizes[l / parts]; });
  return largest_lanes(in_lanes);
}

/// The sum of a token's lanes in the first of them, 0 in the other.
template <int parts>
MOE_INLINE IntegersOf<register_bytes> in_first_lanes(const IntegersOf<register_bytes>& sums) {
  if constexpr (parts == 1) {
    return sums;
  } else {
    using Both = typename VectorOf<std::uint64_t, register_bytes>::type;
    return (IntegersOf<register_bytes>)((Both)(sums + (IntegersOf<register_bytes>)((Both)sums >> 32)) & 0xffffffffU);
  }
}

/// Turns 64 codes of each token around, into the registers of `to`.
template <int parts>
MOE_INLINE void put_side_by_side(const std::int8_t (*codes)[64], ManyActivationCodes<parts>& to) {
  using Unit = std::conditional_t<parts == 1, float, double>;  // what bytes are moved as
  constexpr int L = lanes<Unit>;
  static_assert(L == lanes<float> / parts);
  repeat<int(64 / register_bytes)>([&](int q) __attribute__((always_inline)) {
    Lanes<Unit> square[L];
    unroll<L>([&](auto i) { square[i] = load_as<Lanes<Unit>>(codes[i] + q * int(register_bytes)); });
    transpose<Unit>(square);
    unroll<L>([&](auto u) { store(to.codes[q * L + u], square[u]); });
  });
}

}  // namespace detail

/// The codes of x[i][0, 64) for each of `count` tokens, which are those of code_activations(); lanes behind have zeros.
template <int parts>
MOE_KERNEL inline void code_tokens(const float* const* x, Index count, ManyActivationCodes<parts>& to) {
  constexpr int L = lanes<float>;
  constexpr std::uint32_t infinity = 0x7f800000U;
  alignas(64) std::int8_t codes[L / parts][64] = {};
  for (int half = 0; half < 2; ++half) {
    const Pairs largest = detail::largest_of_tokens<parts>(x, count, 32 * half);
    const auto sizes = (Lanes<float>)largest;
    const Lanes<float> all_lifts = largest < 0x10000000U ? 0x1p96F - Lanes<float>{} : 1 - Lanes<float>{};
    detail::Coding its;
    store(its.largest, largest);
    store(its.lift, all_lifts);
    store(its.inverse, 127 / (sizes * all_lifts));
    const Lanes<float> none = std::numeric_limits<float>::quiet_NaN() - Lanes<float>{};
    store(to.scales[half], largest < infinity ? sizes / 127 : none);
    const Lanes<float> nearest = 0x1.8p23F - Lanes<float>{};
    for (Index i = 0; i < count; ++i) {
      if (its.largest[i * parts] - 1 >= infinity - 1) continue;  // 0 or no number
      const Lanes<float> lift = its.lift[i * parts] - Lanes<float>{}, inverse = its.inverse[i * parts] - Lanes<float>{};
      unroll<32 / L>([&](auto r) __attribute__((always_inline)) {
        const auto numbers = load_as<Lanes<float>>(x[i] + 32 * half + r * L);
        store_low_bytes((IntLanes<std::int32_t>)multiply_add(numbers * lift, inverse, nearest),
                        codes[i] + 32 * half + r * L);
      });
    }
  }
  detail::put_side_by_side<parts>(codes, to);
  using Integers = IntegersOf<register_bytes>;
  const auto ones = BytesOf<register_bytes>{} + std::int8_t(1);
  Integers sums[6] = {};
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    unroll<4 / parts>([&](auto u) __attribute__((always_inline)) {
      const auto its = load_as<BytesOf<register_bytes>>(to.codes[i * (4 / parts) + u]);
      sums[i] = added_byte_products<true>(sums[i], ones, its);
    });
  });
  unroll<2>([&](auto i) { sums[4 + i] = sums[2 * i] + sums[2 * i + 1]; });
  unroll<6>([&](auto i) __attribute__((always_inline)) {
    const auto scale = load_as<Lanes<float>>(to.scales[i < 4 ? i / 2 : i - 4]);
    store(to.sums[i], scale * __builtin_convertvector(detail::in_first_lanes<parts>(sums[i]), Lanes<float>));
    if constexpr (has_starts) store(to.starts[i], sums[i] * -128);
  });
}

}  // namespace moe::inline MOE_TARGET::kernels
