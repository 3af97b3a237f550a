# Read by the project itself and, installed, by find_package(moe).

# Defines moe::native: moe::moe, for this machine's processor, with the threads of OpenMP where the compiler has them, and
# optimised where the project that uses it says nothing of that. GLOBAL makes it seen in folders above.
function(moe_define_native)
  get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
  if(TARGET moe::native OR NOT "CXX" IN_LIST languages)
    return()
  endif()
  add_library(moe::native INTERFACE IMPORTED ${ARGV})
  target_link_libraries(moe::native INTERFACE moe::moe)

  set(flags "")
  if(NOT CMAKE_CROSSCOMPILING)
    include(CheckCXXCompilerFlag)
    set(CMAKE_REQUIRED_QUIET TRUE)
    check_cxx_compiler_flag(-march=native MOE_HAS_MARCH_NATIVE)
    if(MOE_HAS_MARCH_NATIVE)
      list(APPEND flags -march=native)
    else()
      check_cxx_compiler_flag(-mcpu=native MOE_HAS_MCPU_NATIVE)
      if(MOE_HAS_MCPU_NATIVE)
        list(APPEND flags -mcpu=native)
      endif()
    endif()
  endif()
  if(NOT CMAKE_CXX_FLAGS MATCHES "(^| )[-/]O")
    list(APPEND flags $<$<NOT:$<BOOL:$<CONFIG>>>:-O3>)  # no CMAKE_BUILD_TYPE
  endif()
  target_compile_options(moe::native INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")

  find_package(OpenMP QUIET COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(moe::native INTERFACE OpenMP::OpenMP_CXX)
  else()
    message(STATUS "moe::native: ${CMAKE_CXX_COMPILER_ID} finds no OpenMP (clang++ needs libomp-dev), so moe::OpenMp is one thread")
  endif()
endfunction()
