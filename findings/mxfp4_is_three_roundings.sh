#!/usr/bin/env bash
# MXFP4 is three quantisers: GGUF's, compressed-tensors' and MLX's give other codes for the same numbers.
#
# A good engineer takes MXFP4 for one format, so that numbers quantised anywhere are the same. Its decoding is; of 32
# numbers, ways to choose the shared exponent and to round ties differ. gguf 0.19.0 takes floor(log2(max)) - 2, and clips
# up to a quarter of a maximum (7.5 to 6). compressed-tensors 0.20.0 goes to the next exponent from 7 on, and clips up to
# 7. MLX 0.32.4 does so from 6 on, and never clips. Ties, such as 0.75, 1.75 and 3.5, go to even codes in
# compressed-tensors and towards zero in the others. So a converted file is not one quantised anew, and a test for equal
# bits must name its quantiser. (Bytes differ as well: GGUF pairs numbers 16 apart in a byte, the others neighbours.)
#
# Needs python3 with venv, on Linux. Exits with 0 while it is so, and with 1 once it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install gguf==0.19.0 compressed-tensors==0.20.0 "mlx[cpu]==0.32.4" \
  torch==2.13.0 numpy
said=$("$work/python/bin/python" - 2>/dev/null <<'PYTHON'
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize


def by_gguf(row):
    block = quantize(row, GGMLQuantizationType.MXFP4)
    return block[0, 0], dequantize(block, GGMLQuantizationType.MXFP4)


def by_compressed_tensors(row):
    scheme = preset_name_to_scheme("MXFP4A16", ["Linear"])
    compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    weight = torch.from_numpy(row)
    scale, _ = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), scheme.weights)
    packed = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    return packed["weight_scale"].item(), compressor.decompress(packed, scheme)["weight"].float().numpy()


def by_mlx(row):
    codes, scales = mx.quantize(mx.array(row), mode="mxfp4")
    return scales.item(), np.array(mx.dequantize(codes, scales, mode="mxfp4").astype(mx.float32))


for name, quantiser in ("gguf", by_gguf), ("compressed-tensors", by_compressed_tensors), ("mlx", by_mlx):
    row = np.zeros((1, 32), np.float32)
    print(name, end=":")
    for top in 6, 6.5, 7.5:
        row[0, 0] = top
        exponent, decoded = quantiser(row)
        print(f" {top} to {decoded[0, 0]:g} by 2^{int(exponent) - 127},", end="")
    row[0, :4] = 6, 0.75, 1.75, 3.5
    print(" ties", *(f"{number:g}" for number in quantiser(row)[1][0, 1:4]), end="; ")
PYTHON
)
echo "MXFP4 of $said"
expected="gguf: 6 to 6 by 2^0, 6.5 to 6 by 2^0, 7.5 to 6 by 2^0, ties 0.5 1.5 3; "
expected+="compressed-tensors: 6 to 6 by 2^0, 6.5 to 6 by 2^0, 7.5 to 8 by 2^1, ties 1 2 4; "
expected+="mlx: 6 to 6 by 2^0, 6.5 to 6 by 2^1, 7.5 to 8 by 2^1, ties 0.5 1.5 3; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
