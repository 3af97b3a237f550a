#!/usr/bin/env bash
# compressed-tensors makes zeros of small float16 weights in MXFP4, which the same numbers in bfloat16 are not.
#
# The scale of MXFP4 is a byte that goes down to 2^-127, so a good engineer expects it to fit any weights. compressed-tensors
# 0.20.0 finds the exponent in the bits of the weights' own type: a subnormal half has none, so where a group's maximum is
# well below 6.1e-5, the scale is 1 and every code 0. Seen with numbers that are e2m1 codes times 2^-18: they come back
# exactly if float32 or bfloat16, and as zeros if float16, which holds them exactly too. A group of zeros shows the type as
# well: where other software has scale 0 or 1, W4A16 has the type's epsilon, 2^-23, 2^-7 or 2^-10, so that in bfloat16 the
# largest scale of a matrix may be that of a group of zeros.
#
# Needs python3 with venv. Exits with 0 while compressed-tensors behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install compressed-tensors==0.20.0 torch==2.13.0 numpy
said=$("$work/python/bin/python" - 2>/dev/null <<'PYTHON'
import math

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams

compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
mxfp4, int4 = (preset_name_to_scheme(name, ["Linear"]) for name in ("MXFP4A16", "W4A16"))
codes = torch.tensor([[0.5, 1, 1.5, 2, 3, 4, 6, 0] * 4])
for kind in torch.float32, torch.bfloat16, torch.float16:
    print(str(kind).removeprefix("torch."), end=":")
    for power in -14, -18:
        weight = (codes * 2.0**power).to(kind)
        scale, _ = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), mxfp4.weights)
        packed = compressor.compress({"weight": weight, "weight_scale": scale}, mxfp4)
        decoded = compressor.decompress(packed, mxfp4)["weight"].float()
        result = "exact" if torch.equal(decoded, codes * 2.0**power) else "other" if decoded.any() else "zeros"
        print(f" 2^{power} {result},", end="")
    zero = torch.zeros(1, 1, dtype=kind)
    print(f" zeros of int4 by 2^{math.log2(calculate_qparams(zero, zero, int4.weights)[0].item()):g}", end="; ")
PYTHON
)
echo "compressed-tensors 0.20.0: $said"
expected="float32: 2^-14 exact, 2^-18 exact, zeros of int4 by 2^-23; "
expected+="bfloat16: 2^-14 exact, 2^-18 exact, zeros of int4 by 2^-7; "
expected+="float16: 2^-14 exact, 2^-18 zeros, zeros of int4 by 2^-10; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
