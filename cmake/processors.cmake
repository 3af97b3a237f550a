# One binary for many processors: code that is compiled for each, of which a program chooses at start.
#
# Everything behind such a choice is compiled again for each processor, templates of the standard library and of Eigen
# included. A linker would keep one copy of those for all, maybe one that an older machine cannot run; so what belongs to a
# processor is first put into one object file that exports nothing but its entry, and whose static objects are
# constructed only if it is chosen (tests/consumers/compiled).

# Sets `out` to what target.hpp calls the processor that these flags of the compiler mean; to nothing if it cannot be told.
function(moe_processor_of out)
  separate_arguments(flags NATIVE_COMMAND "${CMAKE_CXX_FLAGS}")
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} ${flags} -std=c++20 ${ARGN} -E -dM -x c++
                          ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../include/moe/core/target.hpp
                  OUTPUT_VARIABLE macros ERROR_QUIET)
  string(REGEX MATCH "#define MOE_PROCESSOR ([a-z0-9_]+)" found "${macros}")
  set(${out} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()

# Sets `out` to what is compiled for where nobody says it, the least first: the usual ones and, if moe_flags_of() knows it,
# `native`, so that who links moe::native finds moe::io compiled for it.
function(moe_usual_processors out native)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(all sse2 avx2 avx2_vnni avx512 avx512_vnni avx512_bf16 avx512_amx)
    set(usual sse2 avx2 avx512 avx512_bf16 avx512_amx)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    set(all neon neon_dot neon_bf16 neon_i8mm)
    set(usual neon neon_i8mm)
  else()
    set(all portable)
    set(usual portable)
  endif()
  set(chosen "")
  foreach(processor IN LISTS all)
    if(processor STREQUAL native OR processor IN_LIST usual)
      list(APPEND chosen ${processor})
    endif()
  endforeach()
  set(${out} ${chosen} PARENT_SCOPE)
endfunction()

if(MOE_HAS_MARCH_NATIVE)
  moe_processor_of(native -march=native)
elseif(MOE_HAS_MCPU_NATIVE)
  moe_processor_of(native -mcpu=native)
else()
  moe_processor_of(native)
endif()
set(MOE_NATIVE_PROCESSOR "${native}" CACHE INTERNAL "What moe::native is, as target.hpp calls it")
moe_usual_processors(usual "${native}")
set(MOE_PROCESSORS ${usual} CACHE STRING "What moe::io (with MOE_COMPILED) and programs for many processors are compiled for, the least first")
unset(usual)
unset(native)

# Sets `out` to what a compiler is told for a processor, whatever flags come before.
function(moe_flags_of out processor)
  set(sse2 -march=x86-64)
  set(avx2 ${sse2} -mavx2 -mfma -mf16c -mbmi -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl)
  set(avx2_vnni ${avx2} -mavxvnni)
  set(avx512_vnni ${avx512} -mavx512vnni)
  set(avx512_bf16 ${avx512_vnni} -mavx512bf16)
  set(avx512_amx ${avx512_bf16} -mamx-tile -mamx-bf16)
  set(neon -march=armv8-a)
  set(neon_dot -march=armv8.2-a+dotprod)
  set(neon_bf16 -march=armv8.2-a+dotprod+bf16)
  set(neon_i8mm ${neon_bf16}+i8mm)
  set(portable "")
  if(NOT DEFINED ${processor})
    message(FATAL_ERROR "MOE_PROCESSORS: no processor is called ${processor}, see cmake/processors.cmake")
  endif()
  set(${out} ${${processor}} PARENT_SCOPE)
endfunction()

# Whether one program can hold code for several: with GNU's linker and objcopy.
set(MOE_MANY_PROCESSORS FALSE CACHE INTERNAL "")
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_OBJCOPY AND CMAKE_LINKER AND NOT CMAKE_INTERPROCEDURAL_OPTIMIZATION)
  execute_process(COMMAND ${CMAKE_LINKER} --help OUTPUT_VARIABLE help ERROR_QUIET)
  if(help MATCHES "--force-group-allocation")
    set(MOE_MANY_PROCESSORS TRUE CACHE INTERNAL "")
  endif()
endif()

# Compiles SOURCES for `processor` into one object file that exports `entry` alone, called `exported` from outside; sets
# `out` to it. What the sources need is linked from the targets that follow.
function(moe_seal out name processor entry exported sources)
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(${name} PRIVATE ${ARGN})
  moe_flags_of(flags ${processor})
  target_compile_options(${name} PRIVATE ${flags} $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique> -fno-lto)
  set(sealed ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
  add_custom_command(
    OUTPUT ${sealed} DEPENDS ${name} $<TARGET_OBJECTS:${name}>
    COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${sealed} $<TARGET_OBJECTS:${name}>
    COMMAND ${CMAKE_OBJCOPY} --keep-global-symbol=${entry} --rename-section .init_array=init_of_${exported},alloc,load,data,contents ${sealed}
    COMMAND ${CMAKE_OBJCOPY} --redefine-sym ${entry}=${exported} ${sealed}
    COMMAND_EXPAND_LISTS VERBATIM COMMENT "Sealing ${name}.o")
  set_source_files_properties(${sealed} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set_property(GLOBAL APPEND PROPERTY MOE_SEALED ${sealed})
  set(${out} ${sealed} PARENT_SCOPE)
endfunction()

# The processors as src/processors.hpp reads them, the best first: MOE_CHOICES=CHOICE(avx2) CHOICE(sse2)
function(moe_choices out)
  set(processors ${MOE_PROCESSORS})
  list(REVERSE processors)
  list(TRANSFORM processors REPLACE "(.+)" "CHOICE(\\1)")
  list(JOIN processors " " choices)
  set(${out} "MOE_CHOICES=${choices}" PARENT_SCOPE)
endfunction()

# Like add_executable, but the program is compiled for each of MOE_PROCESSORS and chooses at start. What follows the
# sources is linked: targets, which must ask for no processor themselves.
function(moe_add_program_for_many_processors name sources)
  if(NOT MOE_MANY_PROCESSORS)
    message(STATUS "${name} is compiled for one processor: GNU's linker and objcopy are not there")
    add_executable(${name} ${sources})
    target_link_libraries(${name} PRIVATE ${ARGN})
    return()
  endif()
  set(objects "")
  foreach(processor IN LISTS MOE_PROCESSORS)
    moe_seal(object ${name}_${processor} ${processor} main moe_main_${processor} "${sources}" ${ARGN})
    list(APPEND objects ${object})
  endforeach()
  add_executable(${name} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../src/main.cpp ${objects})
  moe_choices(choices)
  target_compile_definitions(${name} PRIVATE ${choices})
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_link_libraries(${name} PRIVATE ${ARGN})
endfunction()
