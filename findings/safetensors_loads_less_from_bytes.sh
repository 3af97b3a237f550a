#!/usr/bin/env bash
# safetensors' load() of bytes knows fewer number formats than its save(), and than load_file().
#
# A good engineer expects load(save(x)) to be x, and load_file to be load of what the file has. In safetensors 0.8.0
# load_file is another implementation. torch's load() raises KeyError for F8_E8M0 and F4, the scales and numbers of MX and
# NVFP4, which save() writes and load_file reads back to the bit. numpy's load() raises for BF16, which its load_file
# reads with ml_dtypes, and numpy's save() takes ml_dtypes' FP8, which neither of its readers reads: load_file raises
# AttributeError, as it looks for numpy.float8_e4m3fn.
#
# Needs python3 with venv. Exits with 0 while safetensors behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install safetensors==0.8.0 torch==2.13.0 numpy ml-dtypes==0.6.0
said=$("$work/python/bin/python" - "$work/x.safetensors" 2>/dev/null <<'PYTHON'
import json
import sys

import ml_dtypes
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch


def reads(module, values):
    """The type as it is stored, and what load and load_file make of it."""
    stored = module.save({"x": values})
    module.save_file({"x": values}, sys.argv[1])
    header = json.loads(stored[8:8 + int.from_bytes(stored[:8], "little")])
    print(header["x"]["dtype"], end="")
    for load, source in (module.load, stored), (module.load_file, sys.argv[1]):
        try:
            read = load(source)["x"]
            same = read.dtype == values.dtype and read.shape == values.shape and \
                np.array_equal(*(np.asarray(one.view(torch.uint8 if isinstance(one, torch.Tensor) else np.uint8))
                                 for one in (read, values)))
            print(" same" if same else " other", end="")
        except (AttributeError, KeyError) as error:
            print("", type(error).__name__, end="")
    print(end=", ")


codes = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
print("torch", end=" ")
for kind in torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2:
    reads(safetensors.torch, codes.view(kind))
print("numpy", end=" ")
for kind in np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn:
    reads(safetensors.numpy, codes.numpy().view(kind))
PYTHON
)
echo "safetensors 0.8.0, load and load_file: $said"
expected="torch BF16 same same, F8_E4M3 same same, F8_E8M0 KeyError same, F4 KeyError same, "
expected+="numpy F16 same same, BF16 KeyError same, F8_E4M3 KeyError AttributeError, "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
