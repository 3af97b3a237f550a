// A program that links moe::native is fast: optimised, for this machine's processor, with threads where there are some.
#include <cstring>
#include <iostream>

#include <moe/core/target.hpp>
#include <moe/runtime/executors/openmp.hpp>

int main() {
#ifdef __OPTIMIZE__
  const bool optimised = true;
#else
  const bool optimised = false;
#endif
#ifdef _OPENMP
  const moe::Index workers = moe::OpenMp(2).workers();
#else
  const moe::Index workers = 1;
#endif
  std::cout << (optimised ? "optimised, " : "not optimised, ") << moe::target_name << ", " << workers << " workers\n";
#if defined(__x86_64__)
  const bool native = !__builtin_cpu_supports("avx2") || std::strcmp(moe::target_name, "sse2") != 0;
#else
  const bool native = true;
#endif
  return optimised && native && workers == EXPECTED_WORKERS ? 0 : 1;
}
