#!/usr/bin/env bash
# Eigen 3.4 computes array.sqrt() and array.exp() otherwise in registers than for the numbers left over at the end.
#
# One array, one value nine times: with the SSE and AVX of Eigen 3.4.0 the first eight square roots of infinity are NaN
# and the last is infinity; those of 1e-39 are 0 and 3.16228e-20; exp(-infinity) is 2.93827e-39 and 0. In [1, 4) nearly
# half of the square roots are not std::sqrt's. So what a number becomes depends on its place, and an optimiser that
# divides by a square root turns one overflow into NaN. The reciprocal root with one Newton step is behind it, which Eigen
# 3.4 takes without -ffast-math being asked for; -DEIGEN_FAST_MATH=0 ends most of it. Eigen 5.0.1 has none of it, and gives
# std::sqrt's bits (both as PyPI's eigency carries them; g++ 12.2, x86-64, -O2 and -O2 -mavx2 -mfma).
#
# Needs g++ on x86-64 and python3.11 with venv. Exits with 0 while it is so, and with 1 once it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat >"$work/places.cpp" <<'CPP'
#include <cmath>
#include <cstdio>
#include <limits>

#include <Eigen/Core>

int main() {
  const float infinity = std::numeric_limits<float>::infinity();
  Eigen::ArrayXf x = Eigen::ArrayXf::Constant(9, infinity), y(9);  // eight in registers, one left over
  y = x.sqrt();
  std::printf("sqrt(inf): %s and %s", std::isnan(y(0)) ? "nan" : "inf", std::isnan(y(8)) ? "nan" : "inf");
  x.setConstant(1e-39f);
  y = x.sqrt();
  std::printf(", sqrt(1e-39): %g and %g", double(y(0)), double(y(8)));
  x.setConstant(-infinity);
  y = x.exp();
  std::printf(", exp(-inf): %g and %g", double(y(0)), double(y(8)));

  const int n = 1 << 16;
  Eigen::ArrayXf a(n), root(n);
  for (int i = 0; i < n; ++i) a(i) = 1 + 3 * float(i) / float(n);
  root = a.sqrt();
  int differ = 0;
  for (int i = 0; i < n; ++i) differ += root(i) != std::sqrt(a(i));
  std::printf(", %s roots are std::sqrt's\n", differ == 0 ? "all" : differ > n / 4 ? "far from all" : "nearly all");
}
CPP

python3 -m venv "$work/python"
changed=0
for release in eigency==3.4.0.7 eigency==5.0.1.1; do
  "$work/python/bin/pip" --quiet --disable-pip-version-check download --no-deps --only-binary :all: \
    --dest "$work/$release" "$release" 2>/dev/null
  python3 -m zipfile -e "$work/$release"/*.whl "$work/$release"
  for flags in "-O2" "-O2 -mavx2 -mfma"; do
    case $flags in *avx2*) grep -q avx2 /proc/cpuinfo || continue ;; esac
    # shellcheck disable=SC2086  # words
    g++ -std=c++17 $flags -isystem "$work/$release/eigency/eigen" "$work/places.cpp" -o "$work/places"
    said=$("$work/places")
    echo "$release, $flags: $said"
    case $release in
      *==3.4*) expected="sqrt(inf): nan and inf, sqrt(1e-39): 0 and 3.16228e-20, exp(-inf): 2.93827e-39 and 0, far from all roots are std::sqrt's" ;;
      *) expected="sqrt(inf): inf and inf, sqrt(1e-39): 3.16228e-20 and 3.16228e-20, exp(-inf): 0 and 0, all roots are std::sqrt's" ;;
    esac
    [ "$said" = "$expected" ] || changed=1
  done
done
if [ "$changed" = 1 ]; then
  echo "CHANGED: Eigen 3.4 was expected to differ from place to place, and Eigen 5.0.1 not to"
  exit 1
fi
