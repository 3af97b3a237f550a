#!/bin/sh
# Builds and runs the tests of what is promised to the last bit, with the flags of one mode after the other, by the
# compiler that CXX names.
#   scripts/bits.sh                                      the first mode
#   scripts/bits.sh 3 17                                 those of these numbers, counted on from the last to the first
#   scripts/bits.sh '-O3 -march=x86-64-v3 -ffp-contract=fast'   flags of one's own
#   scripts/bits.sh --list                               the modes;  --all runs them
set -eu
. "$(dirname -- "$0")/setup.sh"

# Those that leave most to a compiler first. Its choice of what to fuse differs most for AVX2 (x86-64-v3).
modes() {
  for level in 2 3; do
    case $(uname -m) in
      x86_64)
        for target in x86-64-v3 native x86-64; do echo "-O$level -march=$target -ffp-contract=fast"; done ;;
      *) echo "-O$level -ffp-contract=fast" ;;
    esac
  done
  for contraction in off on; do
    for level in 0 1 2 3; do echo "-O$level -ffp-contract=$contraction"; done
  done
  for level in 0 1; do echo "-O$level -ffp-contract=fast"; done
}
number_of_modes=$(modes | wc -l)

case ${1-0} in
  --list) modes | awk '{ print NR - 1, $0 }'; exit ;;
  --all) shift; i=0; while [ $i -lt "$number_of_modes" ]; do set -- "$@" $i; i=$((i + 1)); done ;;
esac
[ $# -gt 0 ] || set -- 0

set_up bits compiler cmake make eigen3 nlohmann_json googletest
for mode in "$@"; do
  case $mode in
    -*) ;;
    *) mode=$(modes | sed -n "$((mode % number_of_modes + 1))p") ;;
  esac
  case $mode in *-m[acf]*) MOE_BITS_NATIVE=OFF ;; *) MOE_BITS_NATIVE=ON ;; esac
  export MOE_BITS_FLAGS="$mode" MOE_BITS_NATIVE
  printf '== %s %s\n' "$CXX" "$mode"
  rm -f "$moe_root/build/bits/CMakeCache.txt"  # which keeps to its first compiler
  (build bits)
  (cd "$moe_root" && ctest --preset bits)
done
