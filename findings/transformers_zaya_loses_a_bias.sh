#!/usr/bin/env bash
# from_pretrained() of ZAYA overwrites one number of each router that it has just read.
#
# A good engineer expects a model that was saved and loaded again to be the same one. Of transformers 5.23.0's ZAYA the
# last of a router's balancing_biases, which decides how readily a token skips the layer, is -1 after loading, whatever
# the file says: it is set where weights are initialised, and that runs after they were read. The file itself is right.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 torch==2.13.0 numpy
said=$("$work/python/bin/python" - "$work/model" 2>/dev/null <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file
from transformers import ZayaConfig, ZayaForCausalLM

model = ZayaForCausalLM(ZayaConfig(hidden_size=32, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=1,
                                   num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                                   vocab_size=32, router_hidden_size=8, layer_types=["hybrid", "hybrid"]))
with torch.no_grad():
    for name, bias in model.named_buffers():
        if name.endswith("balancing_biases"):
            bias.copy_(torch.tensor([0.125, 0.25, 0.375, 0.5, 0.625]))
model.save_pretrained(sys.argv[1])
stored = load_file(sys.argv[1] + "/model.safetensors")
loaded = dict(ZayaForCausalLM.from_pretrained(sys.argv[1]).named_buffers())
name = "model.layers.0.mlp.gate.balancing_biases"
print("file", stored[name][-1].item(), "loaded", loaded[name][-1].item())
PYTHON
)
echo "transformers 5.23.0: $said"
if [ "$said" != "file 0.625 loaded -1.0" ]; then
  echo 'CHANGED: expected "file 0.625 loaded -1.0"'
  exit 1
fi
