/// @file  Scales that leave the least Σ importance · error².
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "moe/core/types.hpp"
#include "moe/formats/encode_number.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/rounding.hpp"
#include "moe/kernels/shuffle.hpp"

namespace moe::inline MOE_TARGET::encoding {

/// n numbers in registers, which are read from memory, and written to it.
template <int n>
struct Several {
  static constexpr int width = kernels::lanes<float>, count = n / width;
  static_assert(n % width == 0);
  kernels::Lanes<float> part[count];

  /// Those from there on.
  MOE_INLINE static Several load(const float* from) {
    Several all;
    kernels::repeat<count>([&](int i) __attribute__((always_inline)) {
      all.part[i] = kernels::load_as<kernels::Lanes<float>>(from + i * width);
    });
    return all;
  }
  /// To there, one after the other.
  MOE_INLINE void store(float* to) const {
    kernels::repeat<count>([&](int i) __attribute__((always_inline)) { kernels::store(to + i * width, part[i]); });
  }

  /// f of each register's number.
  template <class F>
  MOE_INLINE static Several of(const F& f) {
    Several all;
    kernels::repeat<count>([&](int i) __attribute__((always_inline)) { all.part[i] = f(i); });
    return all;
  }

  /// Their sum, in an order that n decides, whatever a register holds: halves are added until one is left.
  MOE_INLINE float sum() const {
    kernels::Lanes<float> halves[count];
    for (int i = 0; i < count; ++i) halves[i] = part[i];
    for (int left = count / 2; left > 0; left /= 2) {
      for (int i = 0; i < left; ++i) halves[i] += halves[i + left];
    }
    kernels::Lanes<float> its = halves[0];
    if constexpr (width > 8) its += upper<8>(its);
    if constexpr (width > 4) its += upper<4>(its);
    its += upper<2>(its);
    return its[0] + its[1];
  }

 private:
  /// Lanes from number `first` on, in front.
  template <int first>
  MOE_INLINE static kernels::Lanes<float> upper(const kernels::Lanes<float>& its) {
    return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      return kernels::shuffle<float, (i + first) % width...>(its, its);
    }(std::make_integer_sequence<int, width>{});
  }
};

/// Lane by lane the less; b where a is a NaN.
MOE_INLINE kernels::Lanes<float> less_of(const kernels::Lanes<float>& a, const kernels::Lanes<float>& b) {
  return a < b ? a : b;
}
/// Lane by lane the greater; b where a is a NaN.
MOE_INLINE kernels::Lanes<float> greater_of(const kernels::Lanes<float>& a, const kernels::Lanes<float>& b) {
  return a > b ? a : b;
}

/// Codes of n numbers, as floats: the whole numbers in first … last that are nearest to (x + shift) · inverse.
template <int n>
MOE_INLINE Several<n> nearest_codes(const Several<n>& x, float shift, float inverse, int first, int last) {
  using kernels::Lanes;
  const float up = 0.5F - float(first), most = float(last - first);
  return Several<n>::of([&](int i) __attribute__((always_inline)) {
    const Lanes<float> from_first = kernels::product((x.part[i] + shift) * inverse) + up;
    const Lanes<float> within = greater_of(less_of(from_first, Lanes<float>{} + most), Lanes<float>{});
    const auto floor = __builtin_convertvector(within, kernels::IntLanes<std::int32_t>);
    return __builtin_convertvector(floor, Lanes<float>) + float(first);
  });
}

/// The same, from memory to memory.
template <int n>
MOE_KERNEL void find_codes(const float* x, float shift, float inverse, int first, int last, float* code) {
  nearest_codes(Several<n>::load(x), shift, inverse, first, last).store(code);
}

/// Σ w · (x − (scale · code − minimum))².
template <int n>
MOE_INLINE float squared_error(const Several<n>& x, const Several<n>& w, const Several<n>& code, float scale,
                               float minimum) {
  return Several<n>::of([&](int i) __attribute__((always_inline)) {
           const auto off = x.part[i] - (kernels::product(scale * code.part[i]) - minimum);
           return kernels::product(off * off * w.part[i]);
         })
      .sum();
}
/// The same of numbers in memory.
template <int n>
MOE_KERNEL float squared_error(const float* x, const float* w, const float* code, float scale, float minimum) {
  using All = Several<n>;
  return squared_error(All::load(x), All::load(w), All::load(code), scale, minimum);
}

/// What least squares needs of n numbers and their codes.
struct Moments {
  double w, x, code, code_code, code_x;  // Σ w, Σ w·x, Σ w·code, Σ w·code², Σ w·code·x
};

/// Of n numbers, weighted by w, what their codes change: all but Σ w and Σ w·x.
template <int n>
MOE_INLINE void add_moments_of_codes(const Several<n>& x, const Several<n>& w, const Several<n>& code, Moments& m) {
  const auto of = [](const Several<n>& a, const Several<n>& b) __attribute__((always_inline)) {
    return Several<n>::of([&](int i)
                              __attribute__((always_inline)) { return kernels::product(a.part[i] * b.part[i]); });
  };
  const Several<n> with_code = of(w, code);
  m.code = with_code.sum();
  m.code_code = of(with_code, code).sum();
  m.code_x = of(with_code, x).sum();
}

/// Of n numbers, weighted by w.
template <int n>
MOE_KERNEL Moments moments(const float* from, const float* weights, const float* code) {
  const auto x = Several<n>::load(from), w = Several<n>::load(weights);
  Moments m{w.sum(), Several<n>::of([&](int i) __attribute__((always_inline)) {
                       return kernels::product(w.part[i] * x.part[i]);
                     }).sum(),
            0, 0, 0};
  add_moments_of_codes(x, w, Several<n>::load(code), m);
  return m;
}

/// a · b − c · d.
inline double difference_of_products(double a, double b, double c, double d) { return product(a, b) - product(c, d); }

/// The largest that float16 has below; a scale that is none becomes the smallest.
inline float rounded_to_half(float x) {
  if (x == 0) return 0;
  const float magnitude = std::clamp(std::fabs(x), 0x1p-24F, 65504.0F);
  return from_half(to_half(x < 0 ? -magnitude : magnitude));
}

/// Of a part of a block.
struct ScaleAndMinimum {
  float scale = 0, minimum = 0;  // x = scale · code − minimum
};

inline constexpr auto all_alike = [] {
  std::array<float, 256> ones{};
  ones.fill(1);
  return ones;
}();

/// What each number of a block counts: as told, but that the largest is 1024 or a little more, whatever it was, so that
/// no sum is infinite nor 0; and where nothing counts, all alike.
template <int numbers>
struct Importance {
  std::array<float, numbers> some{};
  const float* w;

  /// Of n numbers a part; null: all count alike.
  Importance(const float* told, int n) : w(all_alike.data()) {
    if (told == nullptr) return;
    const float most = *std::max_element(told, told + numbers);
    const int up = most > 0 ? 10 - std::ilogb(most) : 0;
    std::transform(told, told + numbers, some.begin(), [&](float one) { return std::ldexp(one, up); });
    for (int first = 0; first < numbers; first += n) {
      const auto part = some.begin() + first;
      if (std::all_of(part, part + n, [](float one) { return one == 0; })) std::fill(part, part + n, 1.0F);
    }
    if (std::any_of(some.begin(), some.end(), [&](float one) { return one != some[0]; })) w = some.data();
  }
};

/// What float16 has next to a scale, and itself, with its sign; none of them is 0 unless that is.
inline std::array<float, 3> halves_around(float scale) {
  const std::uint16_t bits = to_half(std::fabs(rounded_to_half(scale)));
  const auto at = [&](int step) {
    const float half = from_half(std::uint16_t(std::clamp(int(bits) + step, bits == 0 ? 0 : 1, 0x7bff)));
    return scale < 0 ? -half : half;
  };
  return {at(-1), at(0), at(1)};
}

/// Can float16 hold it?
inline bool is_half(float x) { return (to_half(x) & 0x7c00U) != 0x7c00U; }

/// Sorts numbers of which the upper 32 bits are a positive float: into some parts of each octave first, so that what is
/// left to do is near.
template <std::size_t most>
void sort_by_size(std::array<std::uint64_t, most>& numbers, std::size_t count) {
  constexpr std::size_t num_parts = 1024;  // 64 an octave; all beyond the sixteenth is the last one
  if (count == 0) return;
  const auto bits = [](std::uint64_t number) { return std::uint32_t(number >> 32); };
  std::uint32_t least = bits(numbers[0]);
  for (std::size_t i = 1; i < count; ++i) least = std::min(least, bits(numbers[i]));
  const auto part = [&](std::uint64_t number) {
    return std::min(std::size_t(bits(number) - least) >> 17, num_parts - 1);
  };
  std::array<std::uint16_t, num_parts + 1> end{};  // of a part, one further on
  for (std::size_t i = 0; i < count; ++i) ++end[part(numbers[i]) + 1];
  for (std::size_t p = 1; p < num_parts; ++p) end[p] = std::uint16_t(end[p] + end[p - 1]);
  const std::size_t last = end[num_parts - 1];
  std::array<std::uint64_t, most> sorted;
  for (std::size_t i = 0; i < count; ++i) sorted[end[part(numbers[i])]++] = numbers[i];
  std::sort(sorted.begin() + std::ptrdiff_t(last), sorted.begin() + std::ptrdiff_t(count));
  for (std::size_t i = 1; i < last; ++i) {
    const std::uint64_t its = sorted[i];
    std::size_t at = i;
    for (; at > 0 && sorted[at - 1] > its; --at) sorted[at] = sorted[at - 1];
    sorted[at] = its;
  }
  std::copy_n(sorted.begin(), count, numbers.begin());
}

/// The scale of n numbers x = scale · number, each of which is the nearest of those that Numbers has, that leaves the
/// least Σ w · error². As 1/scale grows from 0, a number changes where x/scale passes the middle of two neighbours:
/// from one such place to the next all are the same, and least squares gives their scale. All places are visited, for
/// both signs.
template <int n, class Numbers>
float least_error_scale(const float* x, const float* w) {
  constexpr auto& values = Numbers::values;
  constexpr std::size_t last = values.size() - 1;
  const auto nearest_zero =
      std::size_t(std::min_element(values.begin(), values.end(),
                                   [](float a, float b) { return (a < 0 ? -a : a) < (b < 0 ? -b : b); }) -
                  values.begin());
  std::array<std::uint64_t, std::size_t(n) * last> places;  // bits of a positive float, then whose it is
  float scale = 0;
  double most = 0;  // how much is explained
  for (const bool is_negative : {false, true}) {
    std::size_t count = 0;
    double nx = 0, nn = 0;  // Σ w · number · x and Σ w · number²
    std::array<double, n> weighted;
    for (int i = 0; i < n; ++i) {
      const float its = is_negative ? -x[i] : x[i];
      weighted[std::size_t(i)] = product(double(w[i]), its);
      nx += product(weighted[std::size_t(i)], values[nearest_zero]);
      nn += product(double(w[i]), values[nearest_zero] * values[nearest_zero]);
      if (its == 0 || w[i] == 0) continue;
      for (std::size_t k = its > 0 ? nearest_zero : 0; k < (its > 0 ? last : nearest_zero); ++k) {
        const float at = (values[k] + values[k + 1]) * 0.5F / its;
        if (at < std::numeric_limits<float>::infinity()) {
          places[count++] = std::uint64_t(std::bit_cast<std::uint32_t>(at)) << 32 | std::uint64_t(i);
        }
      }
    }
    sort_by_size(places, count);
    std::array<std::size_t, n> code;
    code.fill(nearest_zero);
    for (std::size_t p = 0; p < count; ++p) {
      const auto i = std::size_t(places[p] & 255U);
      const float before = values[code[i]];
      code[i] = weighted[i] > 0 ? code[i] + 1 : code[i] - 1;
      const float after = values[code[i]];
      nx += product(weighted[i], after - before);
      nn += product(double(w[i]), after * after - before * before);
      const double explained = nn > 0 && nx > 0 ? product(nx, nx) / nn : 0;
      if (!(explained > most)) continue;
      most = explained;
      scale = float(nx / nn);
      if (is_negative) scale = -scale;
    }
  }
  return scale;
}

/// The same as float16 has it, and the numbers beside that.
/// @tparam Numbers  values, of which one is near 0, and find(): the nearest to n numbers times a factor
/// @param plain     a scale of float16, than which the answer is no worse
/// @param number    (n) becomes the numbers
template <int n, class Numbers>
float search_scale(const float* x, const float* w, float plain, float* number) {
  float best = plain, error = std::numeric_limits<float>::infinity();
  const auto choose = [&](float half) {
    Numbers::template find<n>(x, reciprocal(half), number);
    const float its = squared_error<n>(x, w, number, half, 0);
    if (!(its < error)) return;
    error = its;
    best = half;
  };
  choose(plain);
  for (const float half : halves_around(least_error_scale<n, Numbers>(x, w))) choose(half);
  Numbers::template find<n>(x, reciprocal(best), number);
  return best;
}

/// The whole numbers from −half to half − 1.
template <int half>
struct Centred {
  static constexpr std::array<float, 2 * half> values = [] {
    std::array<float, 2 * half> all{};
    for (int i = 0; i < 2 * half; ++i) all[std::size_t(i)] = float(i - half);
    return all;
  }();
  /// The numbers that the codes nearest to factor · x stand for.
  template <int n>
  static void find(const float* x, float factor, float* number) {
    find_codes<n>(x, 0, factor, -half, half - 1, number);
  }
};

/// Scale and minimum of n numbers x = scale · code − minimum of codes from 0 to last, both as float16 has them, the
/// minimum of any sign: of a grid of where the codes begin and of how far they reach.
/// @param plain  of float16, than which the answer is no worse
/// @param code   (n) becomes the codes
template <int n, int last>
ScaleAndMinimum search_scale_and_minimum(const float* x, const float* w, ScaleAndMinimum plain, float* code) {
  const auto [lowest, highest] = std::minmax_element(x, x + n);
  const float range = *highest - *lowest, per_range = reciprocal(range);
  ScaleAndMinimum now = plain;
  float least = std::numeric_limits<float>::infinity();
  const auto fit = [&](ScaleAndMinimum otherwise) {
    const Moments m = moments<n>(x, w, code);
    const double determinant = difference_of_products(m.w, m.code_code, m.code, m.code);
    const double scale = difference_of_products(m.w, m.code_x, m.x, m.code) / determinant;
    if (!(determinant > 0) || !(scale > 0)) return otherwise;
    return ScaleAndMinimum{float(scale),
                           float(difference_of_products(m.code, m.code_x, m.code_code, m.x) / determinant)};
  };
  const auto attempt = [&](float shift, float inverse) {
    find_codes<n>(x, shift, inverse, 0, last, code);
    const ScaleAndMinimum its = fit({0, 0});
    const float error = squared_error<n>(x, w, code, its.scale, its.minimum);
    if (its.scale == 0 || !(error < least)) return;
    least = error;
    now = its;
  };
  for (const float skipped : {0.0F, 0.03F, 0.07F, 0.12F, 0.2F, 0.3F}) {  // of the range, below the least code
    const float begin = *lowest + product(range, skipped);
    for (const float reach : {0.94F, 0.97F, 1.0F, 1.03F, 1.06F, 1.1F, 1.14F, 1.2F, 1.27F, 1.36F, 1.5F, 1.7F, 2.0F}) {
      attempt(-begin, product(float(last) * reach, per_range));
    }
  }
  for (int again = 0; again < 3; ++again) attempt(now.minimum, reciprocal(now.scale));

  ScaleAndMinimum best = plain;
  least = std::numeric_limits<float>::infinity();
  const auto choose = [&](ScaleAndMinimum half) {
    find_codes<n>(x, half.minimum, reciprocal(half.scale), 0, last, code);
    const float error = squared_error<n>(x, w, code, half.scale, half.minimum);
    if (!(error < least)) return;
    least = error;
    best = half;
  };
  choose(plain);
  for (int again = 0; again < 2; ++again) {
    for (const float scale : halves_around(now.scale)) {
      for (const float minimum : halves_around(now.minimum)) choose({scale, minimum});
    }
    find_codes<n>(x, best.minimum, reciprocal(best.scale), 0, last, code);
    now = fit(best);
  }
  return best;
}

}  // namespace moe::inline MOE_TARGET::encoding
