#!/usr/bin/env bash
# MLX's affine quantisation is not the one that it documents, and loses an eighth of the smaller end of a 4-bit group.
#
# mlx.core.quantize documents s = (max - min) / (2^b - 1) and biases that are the minimum, so that both ends are exact and
# no number is off by more than s / 2. What mlx 0.32.4 does: the bias is the end farther from 0, the scale is negative
# where that is the maximum, and it is changed until 0 has a code, so that the other end may be out of reach. Of numbers
# from -0.999 to 1 in 4 bits, bias 1 and scale -1/8, -0.999 becomes -0.875, off by nearly a whole s; in 8 bits it becomes
# -0.9921875. Whoever writes MLX files by the documented formula gets other bits, and whoever takes scales to be positive,
# or biases to be minima, misreads the files there are.
#
# Needs python3 with venv, on Linux. Exits with 0 while MLX behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install "mlx[cpu]==0.32.4" numpy
said=$("$work/python/bin/python" - <<'PYTHON'
import mlx.core as mx
import numpy as np

documented = r"s &= \frac{\alpha - \beta}{2^b - 1}" in mx.quantize.__doc__ and r"\beta &= \min_i w_i" in mx.quantize.__doc__
print("documented" if documented else "documented otherwise", end="; ")
for low, high, bits in (-0.999, 1, 4), (-0.999, 1, 8), (-2, 1, 4), (1, 2, 4):
    group = np.linspace(low, high, 64, dtype=np.float32)
    codes, scales, biases = mx.quantize(mx.array(group[None]), group_size=64, bits=bits)
    decoded = np.array(mx.dequantize(codes, scales, biases, group_size=64, bits=bits))[0]
    print(f"{low}..{high} in {bits}: scale {scales.item():.4f} bias {biases.item():.0f},",
          f"ends {decoded[0]:.7g} {decoded[-1]:.7g}", end="; ")
PYTHON
)
echo "mlx 0.32.4: $said"
expected="documented; -0.999..1 in 4: scale -0.1250 bias 1, ends -0.875 1; "
expected+="-0.999..1 in 8: scale -0.0078 bias 1, ends -0.9921875 1; "
expected+="-2..1 in 4: scale 0.2000 bias -2, ends -2 1; 1..2 in 4: scale -0.0667 bias 2, ends 1 2; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
