# cmake -D CMAKE_CXX_COMPILER=… -D CMAKE_SYSTEM_PROCESSOR=x86_64 -P processors.cmake: who links moe::native finds moe::io
# compiled for the processor of that, whichever it is.
include(${CMAKE_CURRENT_LIST_DIR}/../../cmake/processors.cmake)

function(expect got expected what)
  if(NOT got STREQUAL expected)
    message(FATAL_ERROR "${what}: got \"${got}\", expected \"${expected}\"")
  endif()
endfunction()

foreach(pair IN ITEMS cascadelake,avx512_vnni icelake-client,avx512_vnni tigerlake,avx512_vnni alderlake,avx2_vnni
                      haswell,avx2 skylake-avx512,avx512 cooperlake,avx512_bf16 x86-64,sse2)
  string(REPLACE "," ";" pair ${pair})
  list(GET pair 0 machine)
  list(GET pair 1 processor)
  moe_processor_of(found -march=${machine})
  expect("${found}" ${processor} ${machine})
  moe_usual_processors(usual ${processor})
  if(NOT processor IN_LIST usual)
    message(FATAL_ERROR "${machine}: ${processor} is not in ${usual}")
  endif()
  moe_flags_of(flags ${processor})
  moe_processor_of(compiled ${flags})
  expect("${compiled}" ${processor} "flags of ${processor}")
endforeach()
moe_usual_processors(usual avx512_vnni)
expect("${usual}" "sse2;avx2;avx512;avx512_vnni;avx512_bf16;avx512_amx" "in order")
moe_usual_processors(usual avx_fma)  # which nothing here compiles for
expect("${usual}" "sse2;avx2;avx512;avx512_bf16;avx512_amx" "an unknown one")
