# Each dependency is the system's package, else a pinned release with a checked hash, else one line saying what to install.
# What each is for: docs/dependencies.md. An unpacked release at hand: -DFETCHCONTENT_SOURCE_DIR_<EIGEN3|…>=<folder>.
include(FetchContent)

set(moe_target_of_eigen Eigen3::Eigen)
set(moe_target_of_json nlohmann_json::nlohmann_json)
set(moe_target_of_cli11 CLI11::CLI11)
set(moe_target_of_googletest GTest::gtest_main)
set(moe_target_of_google_benchmark benchmark::benchmark)

# moe_decide(MOE_BUILD_TESTS json googletest): an option that is ON gets these libraries, downloaded if need be. One that is
# AUTO becomes ON where all of them are installed, else OFF.
function(moe_decide option)
  set(wanted ${${option}})
  if(NOT wanted)
    return()
  endif()
  set(missing "")
  foreach(library IN LISTS ARGN)
    cmake_language(CALL moe_find_${library} ${wanted})
    if(NOT TARGET ${moe_target_of_${library}})
      list(APPEND missing ${library})
    endif()
  endforeach()
  if(wanted STREQUAL "AUTO" AND missing)
    list(JOIN missing ", " missing)
    message(STATUS "${option} is AUTO: left out, as not installed: ${missing}")
    set(${option} OFF PARENT_SCOPE)
  else()
    set(${option} ON PARENT_SCOPE)
  endif()
endfunction()

# Ends the configuration with one line, which scripts/setup.sh repeats at its end. (The blank keeps CMake from wrapping it.)
function(moe_missing needed package reason)
  set(line "${needed}. Install ${package} (as Debian and Ubuntu call it). ${reason}")
  file(WRITE ${PROJECT_BINARY_DIR}/missing.txt "${line}")
  message(FATAL_ERROR " missing: ${line}")
endfunction()

# Unpacks a release, sets <name>_SOURCE_DIR, and adds the release's own targets unless it is wanted for its HEADERS alone.
function(moe_fetch name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "HEADERS" "NEEDED;PACKAGE;URL;SHA256" "")
  string(TOUPPER FETCHCONTENT_SOURCE_DIR_${name} given)
  set(archive ${FETCHCONTENT_BASE_DIR}/${name}.tar.gz)
  if(NOT ${given} AND NOT EXISTS ${archive})
    message(STATUS "${arg_NEEDED} is not installed: downloading ${arg_URL}")
    file(DOWNLOAD ${arg_URL} ${archive}.part STATUS status INACTIVITY_TIMEOUT 30)
    list(POP_FRONT status code reason)
    if(NOT code EQUAL 0)
      file(REMOVE ${archive}.part)
      moe_missing("${arg_NEEDED}" ${arg_PACKAGE} "Downloading ${arg_URL} failed: ${reason}.")
    endif()
    file(SHA256 ${archive}.part hash)
    if(NOT hash STREQUAL arg_SHA256)
      file(REMOVE ${archive}.part)
      moe_missing("${arg_NEEDED}" ${arg_PACKAGE} "The SHA256 of ${arg_URL} is ${hash}, expected ${arg_SHA256}.")
    endif()
    file(RENAME ${archive}.part ${archive})
  endif()
  if(arg_HEADERS)
    set(no_targets SOURCE_SUBDIR headers-alone)  # a folder that is not there: FetchContent then adds nothing
  endif()
  FetchContent_Declare(${name} URL ${archive} URL_HASH SHA256=${arg_SHA256} ${no_targets})
  FetchContent_MakeAvailable(${name})
  set(${name}_SOURCE_DIR ${${name}_SOURCE_DIR} PARENT_SCOPE)
endfunction()

# A target of headers alone, whose warnings are not ours.
function(moe_header_only target folder)
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} INTERFACE ${folder})
endfunction()

# Defines a target that is not there: whoever links it is told by CMake in these words.
function(moe_not_defined target why)
  if(NOT TARGET ${target})
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES INTERFACE_LINK_LIBRARIES "${why}")
  endif()
endfunction()

# Below: moe_find_<library>(ON) gives the target, or ends the configuration; (AUTO) gives it where it is installed.

function(moe_find_eigen wanted)
  foreach(version 3.4 5)  # a version file accepts its own major version alone
    if(NOT TARGET Eigen3::Eigen)
      find_package(Eigen3 ${version} QUIET NO_MODULE)
    endif()
  endforeach()
  if(NOT TARGET Eigen3::Eigen AND NOT wanted STREQUAL "AUTO")
    moe_fetch(eigen3 NEEDED "Eigen 3.4 or newer" PACKAGE libeigen3-dev HEADERS
              URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
              SHA256 8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72)
    moe_header_only(Eigen3::Eigen ${eigen3_SOURCE_DIR})
  endif()
  set(Eigen3_VERSION ${Eigen3_VERSION} PARENT_SCOPE)
endfunction()

function(moe_find_json wanted)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    find_package(nlohmann_json 3.7 QUIET)
  endif()
  if(NOT TARGET nlohmann_json::nlohmann_json AND NOT wanted STREQUAL "AUTO")
    moe_fetch(nlohmann_json NEEDED "nlohmann-json 3.7 or newer" PACKAGE nlohmann-json3-dev HEADERS
              URL https://github.com/nlohmann/json/archive/refs/tags/v3.11.3.tar.gz
              SHA256 0d8ef5af7f9794e3263480193c491549b2ba6cc74bb018906202ada498a79406)
    moe_header_only(nlohmann_json::nlohmann_json ${nlohmann_json_SOURCE_DIR}/include)
  endif()
endfunction()

# MPI is the machine's, never downloaded. FindMPI defines its targets even where it finds no MPI: only MPI_CXX_FOUND tells,
# which is handed on.
function(moe_find_mpi wanted)
  set(MPI_CXX_SKIP_MPICXX TRUE)  # C++ bindings, which MPI has given up
  find_package(MPI QUIET COMPONENTS CXX)
  if(NOT MPI_CXX_FOUND)
    if(NOT wanted STREQUAL "AUTO")
      moe_missing("MPI" libopenmpi-dev "MOE_DISTRIBUTED is ON.")
    endif()
    message(STATUS "MPI is not installed: experts on many ranks are left out (libopenmpi-dev)")
  endif()
  set(MPI_CXX_FOUND ${MPI_CXX_FOUND} PARENT_SCOPE)
endfunction()

function(moe_find_cli11 wanted)
  find_package(CLI11 QUIET)
  if(NOT TARGET CLI11::CLI11 AND NOT wanted STREQUAL "AUTO")
    moe_fetch(cli11 NEEDED "CLI11" PACKAGE libcli11-dev HEADERS
              URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.5.0.tar.gz
              SHA256 17e02b4cddc2fa348e5dbdbb582c59a3486fa2b2433e70a0c3bacb871334fd55)
    moe_header_only(CLI11::CLI11 ${cli11_SOURCE_DIR}/include)
  endif()
endfunction()

function(moe_find_googletest wanted)
  find_package(GTest QUIET)
  if(NOT TARGET GTest::gtest_main AND NOT wanted STREQUAL "AUTO")
    set(BUILD_GMOCK OFF)
    set(INSTALL_GTEST OFF)
    moe_fetch(googletest NEEDED "GoogleTest" PACKAGE libgtest-dev
              URL https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
              SHA256 8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7)
  endif()
endfunction()

function(moe_find_google_benchmark wanted)
  find_package(benchmark QUIET)
  if(NOT TARGET benchmark::benchmark AND NOT wanted STREQUAL "AUTO")
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    moe_fetch(benchmark NEEDED "Google Benchmark" PACKAGE libbenchmark-dev
              URL https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
              SHA256 6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
    get_target_property(folder benchmark INTERFACE_INCLUDE_DIRECTORIES)
    set_target_properties(benchmark PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${folder}")
  endif()
endfunction()
