# Fails unless COMPILE refuses SOURCE and says why. In the source's first lines:
#   // expect: REGEX   of the first error; of further `expect` lines, of any error
#   // flags: …        to compile it with
#   // lines: N        that the compiler says at most
# cmake -D COMPILE=… -D SOURCE=… -P expect_error.cmake
file(STRINGS ${SOURCE} head REGEX "^// (expect|flags|lines): ")
set(flags "")
set(expected "")
foreach(line IN LISTS head)
  if(line MATCHES "^// flags: (.*)")
    separate_arguments(flags UNIX_COMMAND "${CMAKE_MATCH_1}")
  elseif(line MATCHES "^// lines: (.*)")
    set(most_lines ${CMAKE_MATCH_1})
  elseif(line MATCHES "^// expect: (.*)")
    string(REPLACE ";" "," text "${CMAKE_MATCH_1}")  # as in the output below
    list(APPEND expected "${text}")
  endif()
endforeach()
if(NOT expected)
  message(FATAL_ERROR "${SOURCE} says nowhere `// expect: `")
endif()

set(ENV{LC_ALL} C)
execute_process(COMMAND ${COMPILE} ${flags} ${SOURCE} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(status EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiles")
endif()
string(REPLACE ";" "," output "${output}")
string(REGEX REPLACE "[][]" "|" output "${output}")  # which CMake would read as quotes of a list
string(REPLACE "\n" ";" lines "${output}")
set(errors ${lines})
list(FILTER errors INCLUDE REGEX "error: ")
set(where "${errors}")
list(GET errors 0 where)
foreach(text IN LISTS expected)
  if(NOT where MATCHES "${text}")
    message(FATAL_ERROR "expected:\n  ${text}\nin:\n  ${where}\nof:\n${output}")
  endif()
  set(where "${errors}")
endforeach()
list(LENGTH lines count)
if(DEFINED most_lines AND count GREATER most_lines)
  message(FATAL_ERROR "${count} lines, expected at most ${most_lines}:\n${output}")
endif()
