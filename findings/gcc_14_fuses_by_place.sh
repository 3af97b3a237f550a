#!/usr/bin/env bash
# g++ 14 fuses a multiply-add or not by where it stands, so two ways to write one sum differ in their last bit.
#
# -ffp-contract=fast is g++'s default, and one expects `sum += w * x` to become one instruction wherever the processor
# has it. For -march=x86-64-v3 -O2, whose tuning is generic, g++ 14.2 does that in straight code, but not where sums are
# chained through a loop, for it takes fused chains to be slow there: about a quarter of sums of two products differ
# between a loop and the same written out. With -mtune=haswell both are fused, with -ffp-contract=off neither, and none
# differs. g++ 12.2 fuses both for either tuning; g++ 16.2 does as 14.2. So -ffp-contract=fast makes bits depend on
# -mtune and on unrolling, and a library that promises bits must say its fused multiply-adds.
#
# Needs root and debootstrap (Debian's package): g++ is Debian 13's, 14.2.0-19. Exits with 0 while it is so, and with 1
# once it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

debootstrap --variant=minbase --include=g++-14 trixie "$work/system" >"$work/log" 2>&1 || { tail -n 3 "$work/log"; exit 2; }
version=$(chroot "$work/system" dpkg-query -W -f '${Version}' g++-14)

cat >"$work/system/root/places.cpp" <<'CPP'
#include <cstdio>

[[gnu::noinline]] float in_a_loop(const float* w, const float* x, long n) {
  float sum = 0;
  for (long i = 0; i < n; ++i) sum += w[i] * x[i];
  return sum;
}

[[gnu::noinline]] float written_out(const float* w, const float* x, float sum) {
  sum += w[0] * x[0];
  return sum;
}

int main() {
  unsigned state = 1;
  const auto number = [&] { return float((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f; };
  int differ = 0;
  for (int k = 0; k < 1000; ++k) {
    const float w[2] = {number(), number()}, x[2] = {number() - 0.5f, number() - 0.5f};
    differ += in_a_loop(w, x, 2) != written_out(w + 1, x + 1, in_a_loop(w, x, 1));
  }
  std::puts(differ > 0 ? "differ" : "equal");
}
CPP

changed=0
expect() {  # flags, what is expected
  # shellcheck disable=SC2086  # words
  chroot "$work/system" g++-14 -O2 -march=x86-64-v3 $1 /root/places.cpp -o /root/places
  said=$(chroot "$work/system" /root/places)
  echo "g++-14 $version, -O2 -march=x86-64-v3${1:+ $1}: in a loop and written out $said"
  [ "$said" = "$2" ] || changed=1
}
grep -q avx2 /proc/cpuinfo || { echo "This processor lacks AVX2, which the program needs"; exit 2; }
expect "" differ
expect "-mtune=haswell" equal
expect "-ffp-contract=off" equal
if [ "$changed" = 1 ] || [ "$version" != 14.2.0-19 ]; then
  echo "CHANGED: g++ 14.2.0-19 was expected to differ without further flags, and not with them"
  exit 1
fi
