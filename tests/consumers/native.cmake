# README's CMake snippet as it stands, of moe as it is there by now; with native.cpp for its main.cpp. For who says how
# many workers are expected of it.
if(NOT DEFINED EXPECTED_WORKERS)
  return()
endif()
file(READ ${MOE_SOURCE_DIR}/README.md readme)
string(REGEX MATCH "```cmake\n(find_package[^`]*target_link_libraries[^`]*)" snippet "${readme}")
set(snippet "${CMAKE_MATCH_1}")
if(NOT moe_FOUND)  # by another way
  string(REGEX REPLACE "find_package[^\n]*" "" snippet "${snippet}")
endif()
string(REPLACE " main.cpp" " ../native.cpp" snippet "${snippet}")
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/snippet.cmake "${snippet}")
include(${CMAKE_CURRENT_BINARY_DIR}/snippet.cmake)
target_compile_definitions(app PRIVATE EXPECTED_WORKERS=${EXPECTED_WORKERS})
