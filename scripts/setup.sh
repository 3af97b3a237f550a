# shellcheck shell=sh
# Installs what is missing, saying what and why, then configures and builds. Sourced by the scripts beside it.
# Libraries that no package gives are downloaded by CMake (cmake/dependencies.cmake). What is then still missing is named
# in one line.

moe_root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

# thing         its header           apt-get             dnf                     pacman         what it is for
moe_table='
compiler        -                    g++                 gcc-c++                 gcc            a compiler for C++20
cmake           -                    cmake               cmake                   cmake          CMake 3.22 or newer, to configure the build
make            -                    make                make                    make           Make or Ninja, to run the build
eigen3          eigen3/Eigen/Core    libeigen3-dev       eigen3-devel            eigen          Eigen 3.4, the one library that moe/moe.hpp needs
nlohmann_json   nlohmann/json.hpp    nlohmann-json3-dev  json-devel              nlohmann-json  nlohmann-json, for moe/io
googletest      gtest/gtest.h        libgtest-dev        gtest-devel             gtest          GoogleTest, for the tests
benchmark       benchmark/benchmark.h libbenchmark-dev   google-benchmark-devel  benchmark      Google Benchmark, for bench_layer
mpi             -                    libopenmpi-dev      openmpi-devel           openmpi        MPI, for moe/distributed
cli11           CLI/CLI.hpp          libcli11-dev        cli11-devel             cli11          CLI11, for the options of moe_compare
doxygen         -                    doxygen             doxygen                 doxygen        Doxygen, for the API reference
'

manager=''
for candidate in apt-get dnf pacman; do
  if command -v $candidate >/dev/null; then manager=$candidate; break; fi
done

say() { printf '%s\n' "$*" >&2; }
give_up() { say "$(basename "$0"): missing: $*"; exit 1; }

has_compiler() {
  for compiler in ${CXX:-c++ g++ clang++}; do
    if printf '#include <concepts>\ntemplate <class T> concept Any = std::same_as<T, T>;\n' |
      "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null; then
      export CXX="$compiler"
      return
    fi
  done
  return 1
}

has_cmake() {
  cmake --version 2>/dev/null |
    awk 'NR == 1 { split($3, v, "."); enough = v[1] > 3 || (v[1] == 3 && v[2] >= 22) } END { exit !enough }'
}

has_header() {
  for prefix in $(printf %s "${CMAKE_PREFIX_PATH:-}" | tr ':' ' ') /usr/local /usr /opt/homebrew; do
    [ -e "$prefix/include/$1" ] && return
  done
  return 1
}

has() {  # thing, header; a library that CMake has already downloaded for this preset counts
  case $1 in
    compiler) has_compiler ;;
    cmake) has_cmake ;;
    doxygen) command -v doxygen >/dev/null ;;
    mpi) command -v mpicxx >/dev/null && command -v mpirun >/dev/null ;;
    make) command -v ninja >/dev/null || command -v make >/dev/null ;;
    *) has_header "$2" || [ -d "$moe_root/build/$preset/_deps/$1-src" ] ;;
  esac
}

# Sets what of the things given is missing: `packages`, `reasons` (a line each), and `tools` that CMake cannot download.
look_for() {
  packages='' reasons='' tools=''
  while read -r thing header apt_get dnf pacman what; do
    case " $* " in *" $thing "*) ;; *) continue ;; esac
    if has "$thing" "$header"; then continue; fi
    case $manager in apt-get) package=$apt_get ;; dnf) package=$dnf ;; pacman) package=$pacman ;; *) package='' ;; esac
    packages="$packages $package"
    reasons="$reasons  $package: $what
"
    if [ "$header" = - ]; then tools="$tools${tools:+; }$what"; fi
  done <<END
$moe_table
END
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
may_install() {
  [ -n "$manager" ] || return 1
  [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; }
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"; }
install() {
  case $manager in
    apt-get) apt install --no-install-recommends -y "$@" ;;
    dnf) as_root dnf install -y "$@" ;;
    pacman) as_root pacman -S --noconfirm --needed "$@" ;;
  esac
}
install_packages() {  # all of them; with fresh lists; or at least those that there are
  install "$@" && return
  if [ "$manager" = apt-get ]; then apt update && install "$@" && return; fi
  for package in "$@"; do install "$package"; done
}

# set_up PRESET THING…: afterwards the things are there, or CMake will have to download them.
set_up() {
  preset=$1
  shift
  look_for "$@"
  [ -z "$reasons" ] && return
  if may_install; then
    say "Installing with $manager:"
    say "$reasons"
    log=$(mktemp)
    # shellcheck disable=SC2086  # a list of words
    install_packages $packages >"$log" 2>&1 </dev/null || tail -n 20 "$log" >&2
    look_for "$@"
    if [ -n "$reasons" ] && [ "$manager" = apt-get ] && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
      say "Installing ca-certificates: CMake needs them to download what follows"
      install ca-certificates >"$log" 2>&1 </dev/null || tail -n 20 "$log" >&2
    fi
    rm -f "$log"
  fi
  [ -z "$tools" ] || give_up "$tools${manager:+. Install with: $manager install$packages (as root, or with sudo)}"
  [ -z "$reasons" ] || say "Not installed, so CMake downloads it:
$reasons"
}

# Configures and builds PRESET [TARGET…]. Ninja if it is there; as many compilers at once as there are cores and 2 GB of memory.
build() {
  preset=$1
  shift
  cd "$moe_root" || exit
  cores=$(getconf _NPROCESSORS_ONLN)
  memory=$(($(getconf _PHYS_PAGES) / 1024 * $(getconf PAGE_SIZE) / 1024 / 2048 + 1))
  export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$((cores < memory ? cores : memory))}"
  export CTEST_PARALLEL_LEVEL="${CTEST_PARALLEL_LEVEL:-$cores}"
  if command -v ninja >/dev/null; then export CMAKE_GENERATOR="${CMAKE_GENERATOR:-Ninja}"; fi
  if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER:-ccache}"; fi
  rm -f build/*/missing.txt
  if ! cmake --preset "$preset"; then
    missing=$(cat build/*/missing.txt 2>/dev/null) || exit 1
    give_up "$missing${packages:+ All that is missing: $manager install$packages}"
  fi
  cmake --build --preset "$preset" ${1:+--target "$@"}
}
