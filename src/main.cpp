// The main() of a program that is compiled for several processors: runs that of the best that this machine has.
#include <cstdio>

#include "processors.hpp"

using Init = void (*)(int, char**, char**);

#define CHOICE(name)                                                             \
  extern "C" int moe_main_##name(int, char**);                                   \
  extern "C" const Init __start_init_of_moe_main_##name[] __attribute__((weak)); \
  extern "C" const Init __stop_init_of_moe_main_##name[] __attribute__((weak));
MOE_CHOICES
#undef CHOICE

int main(int argc, char** argv) {
#define CHOICE(name)                                                                            \
  if (moe_processors::is_chosen(#name)) {                                                       \
    moe_processors::construct(__start_init_of_moe_main_##name, __stop_init_of_moe_main_##name); \
    return moe_main_##name(argc, argv);                                                         \
  }
  MOE_CHOICES
#undef CHOICE
  std::fprintf(stderr, "%s: MOE_PROCESSOR names no processor that this is and this program is compiled for\n", argv[0]);
  return 1;
}
