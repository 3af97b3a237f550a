# How the project builds its own tests, examples and benchmarks. Nothing of this reaches who uses the library.
find_package(Threads REQUIRED)
find_package(OpenMP QUIET COMPONENTS CXX)

# What every program of ours is built with, but for the processor.
add_library(moe_portable INTERFACE)
target_link_libraries(moe_portable INTERFACE moe::moe Threads::Threads $<TARGET_NAME_IF_EXISTS:moe::io>
                                             $<TARGET_NAME_IF_EXISTS:OpenMP::OpenMP_CXX>)
target_compile_options(moe_portable INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
if(NOT OpenMP_CXX_FOUND)
  target_compile_options(moe_portable INTERFACE -Wno-deprecated-declarations)  # of OpenMp(), which we have just said
endif()
if(MOE_WERROR)
  target_compile_options(moe_portable INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ guesses these from its optimiser's view of inlined code; with AVX-512 it finds them in its own headers.
  target_compile_options(moe_portable INTERFACE -Wno-maybe-uninitialized -Wno-uninitialized)
  foreach(guess aggressive-loop-optimizations array-bounds stringop-overflow stringop-overread restrict free-nonheap-object)
    target_compile_options(moe_portable INTERFACE -Wno-error=${guess})
  endforeach()
endif()

add_library(moe_own INTERFACE)
target_link_libraries(moe_own INTERFACE moe_portable $<$<BOOL:${MOE_NATIVE}>:moe::native>)

# On a machine with AVX-512, native code has other kernels than most machines will run.
include(CheckCXXSourceRuns)
check_cxx_source_runs("int main() { return __builtin_cpu_supports(\"avx512f\") ? 0 : 1; }" MOE_MACHINE_HAS_AVX512)
if(MOE_MACHINE_HAS_AVX512)
  add_library(moe_avx2 INTERFACE)
  target_link_libraries(moe_avx2 INTERFACE moe_portable)
  target_compile_options(moe_avx2 INTERFACE -mavx2 -mfma -mf16c)
endif()
# And where there are tiles, pairs of bfloat16 in registers are other machines' kernels.
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_FLAGS -march=native)
check_cxx_source_compiles("#if !defined(__AMX_BF16__) && !defined(__AMXBF16__)\n#error\n#endif\nint main() {}" MOE_MACHINE_HAS_AMX)
unset(CMAKE_REQUIRED_FLAGS)
if(MOE_MACHINE_HAS_AMX)
  moe_flags_of(flags avx512_bf16)
  add_library(moe_avx512_bf16 INTERFACE)
  target_link_libraries(moe_avx512_bf16 INTERFACE moe_portable)
  target_compile_options(moe_avx512_bf16 INTERFACE ${flags})
endif()
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64" AND CMAKE_CROSSCOMPILING)  # under qemu, which has what few machines have
  moe_flags_of(flags neon_i8mm)
  add_library(moe_i8mm INTERFACE)
  target_link_libraries(moe_i8mm INTERFACE moe_portable)
  target_compile_options(moe_i8mm INTERFACE ${flags})
endif()

# mpirun for tests: as root where need be, more ranks than cores.
if(TARGET moe::distributed)
  set(MOE_MPIRUN ${MPIEXEC_EXECUTABLE})
  execute_process(COMMAND ${MPIEXEC_EXECUTABLE} --version OUTPUT_VARIABLE version ERROR_VARIABLE version)
  if(version MATCHES "Open MPI|OpenRTE")
    set(MOE_IS_OPEN_MPI TRUE)
    list(APPEND MOE_MPIRUN --allow-run-as-root --oversubscribe)
  endif()
endif()

# A test that runs a program in the project's folder and compares its output with the closing comment of its source:
#   /* Output:
#   one token went to expert 3
#   */
# Further arguments launch it: mpirun -n 4.
function(moe_add_output_test test target source)
  string(REPLACE ";" " " launch "${ARGN}")
  add_test(NAME ${test} COMMAND ${CMAKE_COMMAND} -D LAUNCH=${launch} -D PROGRAM=$<TARGET_FILE:${target}> -D SOURCE=${source}
                                -P ${PROJECT_SOURCE_DIR}/cmake/compare_output.cmake
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
endfunction()

# Has a program that shows what users write, which its source alone says, compiled with the tests in less time: it reads
# <moe/moe.hpp> as the others do, and loads layers as with MOE_COMPILED.
function(moe_compile_with_tests target)
  target_link_libraries(${target} PRIVATE shared_by_programs)
  get_target_property(options shared_by_programs COMPILE_OPTIONS)
  if(options)
    target_compile_options(${target} PRIVATE ${options})
  endif()
  target_precompile_headers(${target} REUSE_FROM shared_by_programs)
endfunction()
