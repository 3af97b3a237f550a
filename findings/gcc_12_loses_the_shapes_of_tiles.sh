#!/usr/bin/env bash
# g++ 12's _tile_loadconfig tells its optimiser that it reads 8 bytes, so the other 56 of a configuration may go unwritten.
#
# One expects to fill in a struct of 64 bytes and to pass it to _tile_loadconfig (AMX, amxtileintrin.h). The intrinsic of
# g++ 12.2 is an assembly statement whose operand is one pointer's worth of memory: from -O1 on the stores to the rows and
# widths of the tiles are dead to the compiler, and are left out unless something else has them written. What tiles then
# have is what lay on the stack: other shapes, or a fault. At -O0 all are written. g++ 14.2 says what is read, and writes
# them. A library that shall build with Debian 12's compiler writes the instruction itself, with the whole struct as its
# operand.
#
# Needs root and debootstrap (Debian's package): g++ are Debian 12's, 12.2.0-14, and Debian 13's, 14.2.0-19. What is
# compiled is read, not run. Exits with 0 while it is so, and with 1 once it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

changed=0
expect() {  # suite, package, its version, flags, whether the rows of a tile are written
  local system=$work/$1 version said=lost
  if [ ! -d "$system" ]; then
    debootstrap --variant=minbase --include="$2" "$1" "$system" >"$work/log" 2>&1 || { tail -n 3 "$work/log"; exit 2; }
    cat >"$system/root/tiles.cpp" <<'CPP'
#include <immintrin.h>

void set_up() {
  struct alignas(64) {
    unsigned char palette = 1, start = 0, reserved[14] = {};
    unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shapes;
  _tile_loadconfig(&shapes);
}
CPP
  fi
  version=$(chroot "$system" dpkg-query -W -f '${Version}' "$2")
  # 16 in each of eight bytes: an immediate or a constant in memory, as one number or two.
  chroot "$system" "$2" "$4" -mamx-tile -S -o - /root/tiles.cpp >"$work/assembly"
  grep -Eq '1157442765409226768|269488144' "$work/assembly" && said=written
  echo "$2 $version $4: the rows of tiles are $said"
  [ "$said" = "$5" ] && [ "$version" = "$3" ] || changed=1
}
expect bookworm g++-12 12.2.0-14+deb12u1 -O0 written
expect bookworm g++-12 12.2.0-14+deb12u1 -O2 lost
expect trixie g++-14 14.2.0-19 -O2 written
if [ "$changed" = 1 ]; then
  echo "CHANGED: g++ 12.2.0-14 was expected to lose the rows at -O2 alone, and g++ 14.2.0-19 to write them"
  exit 1
fi
