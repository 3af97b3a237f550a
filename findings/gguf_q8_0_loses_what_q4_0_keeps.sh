#!/usr/bin/env bash
# GGUF's Q8_0 loses small weights that Q4_0 keeps.
#
# A good engineer takes 8 bits for the safer choice, and blocks with a scale of their own for one that does not care how
# large weights are. The scale is a half-precision number, max / 127 in Q8_0, max / 8 in Q4_0: it turns subnormal, and then
# 0, sixteen times earlier with 8 bits than with 4. For normal weights of deviation 1e-5 both err by 9 %, at 1e-6 Q8_0
# makes zeros of 99 % of them where Q4_0 errs by 11 %. MXFP4, whose scale is a power of two, errs by 11 or 12 % whatever
# the size. So matrices that training has hardly moved from 0 may vanish in the larger format. Seen with gguf-py 0.19.0.
#
# Needs python3 with venv. Exits with 0 while gguf behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install gguf==0.19.0 numpy
said=$("$work/python/bin/python" - <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

normal = np.random.default_rng(0).normal(size=(64, 256))
for deviation in 1e-2, 1e-5, 1e-6:
    weights = (normal * deviation).astype(np.float32)
    print(f"{deviation:g}:", end="")
    for name in "Q8_0", "Q4_0", "MXFP4":
        kind = GGMLQuantizationType[name]
        decoded = dequantize(quantize(weights, kind), kind)
        error, zeros = np.linalg.norm(decoded - weights) / np.linalg.norm(weights), (decoded == 0).mean()
        print(f" {name} {error:.0%} {zeros:.0%}", end="")
    print(end="; ")
PYTHON
)
echo "gguf 0.19.0, error and zeros by deviation: $said"
expected="0.01: Q8_0 1% 1% Q4_0 9% 11% MXFP4 11% 8%; 1e-05: Q8_0 9% 1% Q4_0 9% 11% MXFP4 12% 8%; "
expected+="1e-06: Q8_0 100% 99% Q4_0 11% 11% MXFP4 11% 9%; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
