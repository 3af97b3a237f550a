#!/bin/sh
# README's programs and some of examples/, compiled without a warning for other systems, libraries and tools, and run where
# this machine can; they must print what they say they print.
#   scripts/targets.sh windows   # or another of these modes:
#   scripts/targets.sh --list
#   scripts/targets.sh headers   # all headers alone, for three systems, in two minutes
# Installs what is missing, saying what and why; what comes from PyPI is kept in $MOE_TARGETS_FOLDER (/var/tmp/moe-targets).
# Ends with ctest's line, or with 77, and one line that says why, where the machine does not allow it.
set -eu
. "$(dirname -- "$0")/setup.sh"
cd "$moe_root"
kept=${MOE_TARGETS_FOLDER:-/var/tmp/moe-targets}
modes='windows macos macos-arm musl musl-aarch64 musl-riscv64 libcxx eigen5 json-oldest json-newest cmake-oldest cmake-newest cxx23'

skip() { say "targets.sh: not run: $*"; exit 77; }
need() {  # command or header, package, what it is for
  case $1 in */*) ! has_header "$1" || return 0 ;; *) ! command -v "$1" >/dev/null || return 0 ;; esac
  say "Installing $2: $3"
  { may_install && install_packages "$2" >/dev/null 2>&1; } || skip "$2 could not be installed"
}

# --- where libraries and tools come from

# from_pypi PACKAGE VERSION [OPTION…]: unpacked in $kept/PACKAGE-VERSION. A release is pinned by its number.
from_pypi() {
  package=$1 version=$2 folder=$kept/$1-$2
  shift 2
  [ ! -d "$folder" ] || return 0
  need python3 python3 "which unpacks $package $version from PyPI"
  if ! python3 -m pip --version >/dev/null 2>&1; then
    say "Installing python3-pip: which unpacks $package $version from PyPI"
    { may_install && install_packages python3-pip >/dev/null 2>&1; } || skip "python3-pip could not be installed"
  fi
  say "Unpacking $package $version from PyPI in $kept"
  rm -rf "$folder.part"
  if ! python3 -m pip install --quiet --no-deps --only-binary :all: --disable-pip-version-check "$@" \
    --target "$folder.part" "$package==$version" >"$work/pip.log" 2>&1; then
    tail -n 2 "$work/pip.log" >&2
    skip "$package $version could not be had from PyPI"
  fi
  mv "$folder.part" "$folder"
}

# A package of Ubuntu 20.04, the last system that came with so old a release.
json_3_7() {
  folder=$kept/nlohmann-json-3.7.3
  [ ! -d "$folder" ] || return 0
  need curl curl "which downloads nlohmann-json 3.7.3"
  command -v dpkg-deb >/dev/null || skip "no dpkg-deb, which unpacks nlohmann-json 3.7.3"
  file=nlohmann-json3-dev_3.7.3-1_all.deb
  curl -fsSL -m 120 -o "$work/$file" "http://archive.ubuntu.com/ubuntu/pool/universe/n/nlohmann-json3/$file" ||
    skip "$file could not be downloaded"
  echo "6239d42dbf15f881711ace5d0530f56dadc761fb11270f1223f3b6945d975ca2  $work/$file" | sha256sum -c - >/dev/null
  dpkg-deb -x "$work/$file" "$folder"
}

# A folder that holds nothing but a link, so that no other header of /usr/include is found beside it.
alone() {  # header's folder, name
  mkdir -p "$work/headers/$2"
  ln -sfn "$1" "$work/headers/$2/$2"
}
system_headers() {  # eigen, json: those of the machine, unless a mode has its own
  [ -n "$eigen" ] || { need eigen3/Eigen/Core libeigen3-dev "Eigen"; eigen=$(folder_of eigen3/Eigen/Core)/eigen3; }
  [ -n "$json" ] || { need nlohmann/json.hpp nlohmann-json3-dev "nlohmann-json, for moe/io"; json=$(folder_of nlohmann/json.hpp); }
  alone "$json/nlohmann" nlohmann
  json=$work/headers/nlohmann
}
folder_of() {
  for prefix in $(printf %s "${CMAKE_PREFIX_PATH:-}" | tr ':' ' ') /usr/local /usr /opt/homebrew; do
    if [ -e "$prefix/include/$1" ]; then printf %s "$prefix/include"; return; fi
  done
}

# --- what is checked

passed=0 failed=0
outcome() {  # status, name
  if [ "$1" = 0 ]; then passed=$((passed + 1)) word=ok; else failed=$((failed + 1)) word=FAILED; fi
  printf '%-6s %s\n' $word "$2"
  [ "$1" = 0 ] || head -n 40 "$work/log"
}

# README's programs, each with what it prints, and examples that learn, write files and read them.
programs() {
  awk -v to="$work/readme_" '
    /^```cpp$/ { code = ""; in_code = 1; next }
    /^```text$/ && program { in_text = 1; next }
    /^```$/ {
      if (in_code) program = 0
      if (in_code && code ~ /int main\(/) { program = ++n; printf "%s", code > (to n ".cpp") }
      in_code = in_text = 0
      next
    }
    in_code { code = code $0 "\n" }
    in_text { print > (to program ".txt") }' README.md
  for example in train_from_scratch record_and_replay; do
    cp "examples/$example.cpp" "$work"
    awk '/^\/\* Output:$/ { output = 1; next } /^\*\/$/ { output = 0 } output' "examples/$example.cpp" >"$work/$example.txt"
  done
}

# Every header that needs no MPI, in one file.
headers() {  # of whom
  (cd include && find moe -name '*.hpp' ! -path '*distributed*' ! -path '*/arm/*' ! -path '*/x86/*') | LC_ALL=C sort |
    sed 's/.*/#include "&"/' >"$work/headers.cpp"
  status=0
  compile -c -o "$work/headers.o" "$work/headers.cpp" >"$work/log" 2>&1 || status=1
  outcome $status "every header, together${1:+, for $1}"
}

runner=''  # in front of a program; "-" where it cannot be run
check_programs() {  # standards
  programs
  for source in "$work"/readme_*.cpp "$work/train_from_scratch.cpp" "$work/record_and_replay.cpp"; do
    name=$(basename "$source" .cpp) status=0
    compile "$optimise" -c -o "$work/$name.o" "$source" >"$work/log" 2>&1 &&
      link "$work/$name.o" -o "$work/$name.exe" >>"$work/log" 2>&1 || status=1
    if [ $status = 1 ] || [ "$runner" = - ]; then outcome $status "$name compiles and links"; continue; fi
    # shellcheck disable=SC2086  # a command and its arguments
    $runner "$work/$name.exe" 2>"$work/log" | tr -d '\r' >"$work/said"
    cmp -s "$work/said" "$work/$name.txt" || { status=1; cat "$work/said" >>"$work/log"; }
    outcome $status "$name compiles and runs"
  done
}

warnings='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror'
standard=-std=c++20 optimise=-O1
eigen='' json='' flags=''
compile() {
  # shellcheck disable=SC2086  # lists of words
  $compiler $standard $warnings $flags -I include -isystem "$eigen" -isystem "$json" "$@"
}
link() {
  # shellcheck disable=SC2086
  $compiler $flags "$@"
}

with_openmp() {  # else the executor says by a warning that it is one thread
  if printf '#include <omp.h>\nint main() {}\n' | $compiler $flags -fopenmp -x c++ - -o "$work/openmp" 2>/dev/null; then
    flags="$flags -fopenmp"
  else
    warnings="$warnings -Wno-error=deprecated-declarations"
  fi
}
installed_compiler() {
  need c++ g++ "a compiler for C++20"
  has_compiler || skip "no compiler for C++20"
  compiler=$CXX
  with_openmp
}

# zig TARGET: clang 22 with the headers and libraries of that system; libc++ everywhere.
zig() {
  from_pypi ziglang 0.17.1
  export ZIG_GLOBAL_CACHE_DIR="$kept/zig-cache" ZIG_LOCAL_CACHE_DIR="$kept/zig-cache"
  compiler="$kept/ziglang-0.17.1/ziglang/zig c++ -target $1"
  warnings="$warnings -Wno-error=deprecated-declarations"  # no OpenMP there
}

emulated() {  # processor
  [ "$(uname -s)" = Linux ] || { runner=-; return; }
  [ "$(uname -m)" != "$1" ] || return 0
  need "qemu-$1" qemu-user "which runs programs of another processor"
  runner="qemu-$1"
}

check() { system_headers; headers; check_programs; }

# --- CMake itself

cmake_of() {  # version
  need c++ g++ "a compiler for C++20"
  need make make "to run the build"
  from_pypi cmake "$1"
  cmake=$kept/cmake-$1/cmake/data/bin/cmake
  system_headers
  step() { status=0; name=$1; shift; "$@" >"$work/log" 2>&1 || status=1; outcome $status "$name"; }
  step "cmake $1 reads the presets" "$cmake" --list-presets
  step "configures" "$cmake" -S . -B "$work/moe" -DMOE_BUILD_TESTS=OFF -DMOE_BUILD_BENCHMARKS=OFF -DMOE_BUILD_EXAMPLES=OFF -DMOE_BUILD_TOOLS=OFF -DMOE_IO=ON
  step "builds" "$cmake" --build "$work/moe"
  step "installs" "$cmake" --install "$work/moe" --prefix "$work/prefix"
  for way in add_subdirectory fetch_content find_package find_package_io; do
    step "$way: configures" "$cmake" -S "tests/consumers/$way" -B "$work/$way" \
      -DCMAKE_PREFIX_PATH="$work/prefix" -DMOE_SOURCE_DIR="$moe_root"
    step "$way: builds" "$cmake" --build "$work/$way"
    step "$way: runs" "$work/$way/consumer"
  done
}

mode=${1:-}
# shellcheck disable=SC2086  # a list of words
[ "$mode" != --list ] || { printf '%s\n' $modes; exit; }
case " $modes headers " in *" $mode "*) ;; *) say "targets.sh: the mode is \"$mode\", expected one of: $modes headers"; exit 2 ;; esac

mkdir -p "$kept"
work=$(mktemp -d)
# Wine's server outlives the programs by seconds, in its folder.
trap '[ ! -d "$work/wine" ] || wineserver -k || true; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

case $mode in
  windows)
    zig x86_64-windows-gnu
    PATH="$PATH:/usr/lib/wine"
    if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then need wine64 wine64 "which runs programs of Windows"; runner=wine64; else runner=-; fi
    export WINEPREFIX="$work/wine" WINEDEBUG=-all
    check
    ;;
  macos) zig x86_64-macos; runner=-; check ;;
  macos-arm) zig aarch64-macos; runner=-; check ;;
  musl) zig x86_64-linux-musl; emulated x86_64; check ;;
  musl-aarch64) zig aarch64-linux-musl; emulated aarch64; check ;;
  musl-riscv64) zig riscv64-linux-musl; emulated riscv64; check ;;
  libcxx) [ "$(uname -s)" = Linux ] || skip "this is no Linux"; zig "$(uname -m)-linux-gnu"; check ;;
  eigen5)
    from_pypi eigency 5.0.1.1 --python-version 3.11 --platform manylinux2014_x86_64  # of which the headers alone are used
    installed_compiler
    eigen=$kept/eigency-5.0.1.1/eigency/eigen
    optimise=-O2  # at -O1 g++ 12 takes `presult1` of its InnerProduct.h, part of any product, for uninitialized
    check
    ;;
  json-oldest) json_3_7; installed_compiler; json=$kept/nlohmann-json-3.7.3/usr/include; check ;;
  json-newest) from_pypi nlohmann-json 3.12.0; installed_compiler; json=$kept/nlohmann-json-3.12.0/nlohmann_json/include; check ;;
  headers)
    system_headers
    for target in x86_64-windows-gnu aarch64-macos riscv64-linux-musl; do zig $target; headers $target; done
    ;;
  cmake-oldest) cmake_of 3.22.6 ;;
  cmake-newest) cmake_of 4.4.5 ;;
  cxx23)
    installed_compiler
    for standard in -std=c++23 -std=c++2b; do
      if printf 'int main() {}\n' | $compiler $standard -fsyntax-only -x c++ - 2>/dev/null; then break; fi
    done
    check
    ;;
esac

total=$((passed + failed))
[ $failed = 0 ] || { echo "$failed tests failed out of $total"; exit 1; }
echo "100% tests passed, 0 tests failed out of $total"
