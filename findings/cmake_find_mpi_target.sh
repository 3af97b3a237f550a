#!/usr/bin/env bash
# CMake's FindMPI defines the imported target MPI::MPI_CXX although it says that MPI was not found.
#
# A good engineer guards optional MPI code with `if(TARGET MPI::MPI_CXX)`, as with nearly every other package. FindMPI
# makes the target before it knows whether it can fill it: the guard is always true, and the build ends at the first
# `#include <mpi.h>`. MPI_CXX_FOUND is the one to ask. Seen with CMake 3.22.6, 3.31.6, 4.0.3 and 4.4.5 (PyPI's wheels),
# where no MPI is in reach: found 0, target 1; likewise on a Debian 13 that has none.
#
# Needs a C++ compiler, make and python3 with venv. Exits with 0 while CMake behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/project"
cat >"$work/project/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.22)
project(asks_for_mpi LANGUAGES CXX)
set(MPI_CXX_SKIP_MPICXX TRUE)
find_package(MPI QUIET COMPONENTS CXX)
set(found 0)
set(target 0)
if(MPI_CXX_FOUND)
  set(found 1)
endif()
if(TARGET MPI::MPI_CXX)
  set(target 1)
endif()
message(STATUS "found ${found}, target ${target}")
CMAKE

python3 -m venv "$work/python"
changed=0
for release in cmake==3.22.6 cmake==3.31.6 cmake==4.0.3 cmake==4.4.5; do
  "$work/python/bin/pip" --quiet --disable-pip-version-check install "$release"
  # Where MPI is installed: neither its compiler nor pkg-config may tell of it.
  said=$(PKG_CONFIG_LIBDIR="$work/nothing" "$work/python/bin/cmake" -S "$work/project" -B "$work/build-$release" \
    -G "Unix Makefiles" -DMPI_SKIP_COMPILER_WRAPPER=TRUE -DMPI_SKIP_GUESSING=TRUE 2>&1 | grep -o 'found [01], target [01]' ||
    true)
  echo "$release: $said"
  [ "$said" = "found 0, target 1" ] || changed=1
done
if [ "$changed" = 1 ]; then
  echo "CHANGED: expected \"found 0, target 1\" of each"
  exit 1
fi
