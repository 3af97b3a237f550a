// Which of the processors that a program is compiled for this one is. MOE_CHOICES lists them, the best first
// (cmake/processors.cmake).
#pragma once

#include <cstdlib>
#include <string_view>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe_processors {

/// Whether there are tiles of bfloat16, and the system permits them, as moe/kernels/x86/tiles.hpp
/// asks.
inline bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned tiles = 1u << 22 | 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & tiles) == tiles &&
         syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

/// Whether AVX2 multiplies bytes, too.
inline bool has_avx_vnni() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
#else
  return false;
#endif
}

inline bool runs(std::string_view name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (name == "avx2") return avx2;
  if (name == "avx2_vnni") return avx2 && has_avx_vnni();
  if (name == "avx512") return avx512;
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (name == "avx512_vnni") return vnni;
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  if (name == "avx512_bf16") return bf16;
  if (name == "avx512_amx") return bf16 && has_amx();
#elif defined(__aarch64__) && defined(__linux__)
  const bool dot = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
  if (name == "neon_dot") return dot;
  const bool bf16 = dot && (getauxval(AT_HWCAP2) & (1ul << 14)) != 0;  // HWCAP2_BF16
  if (name == "neon_bf16") return bf16;
  if (name == "neon_i8mm") return bf16 && (getauxval(AT_HWCAP2) & (1ul << 13)) != 0;  // HWCAP2_I8MM
#endif
  return name == "sse2" || name == "neon" || name == "portable";
}

/// Whether it is this one. The environment variable MOE_PROCESSOR may ask for a lesser one, by name.
inline bool is_chosen(std::string_view name) {
  const char* const asked = std::getenv("MOE_PROCESSOR");
  return runs(name) && (asked == nullptr || name == asked);
}

/// Constructs the static objects of what was chosen: [first, last) of its section.
inline void construct(void (*const* first)(int, char**, char**), void (*const* last)(int, char**, char**)) {
  for (; first != last; ++first) (*first)(0, nullptr, nullptr);
}

}  // namespace moe_processors
