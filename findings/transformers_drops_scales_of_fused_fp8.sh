#!/usr/bin/env bash
# transformers reads experts in FP8 under its own names without their scales: weights are thousands of times too large.
#
# Since version 5 experts of a model are one parameter for all, "mlp.experts.gate_up_proj", and
# save_pretrained(save_original_format=False) writes them so. FP8 with blocks of 128 x 128 has a scale a block beside
# each weight, "…_scale_inv", and w is its codes times these. Under the hub's names, one tensor an expert, transformers
# 5.23.0 reads both (dequantize=True, on a CPU). Under its own it takes the codes for the weights, lists the scales among
# the keys that it did not expect, and goes on. Seen on a tiny Mixtral, quantised once in each form: by hub's names the
# norm of gate and up is 1.0 of what it was, by its own 5424.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 accelerate==1.15.0 \
  torch==2.13.0 numpy
said=$("$work/python/bin/python" - "$work" 2>/dev/null <<'PYTHON'
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import FineGrainedFP8Config, MixtralConfig, MixtralForCausalLM

torch.manual_seed(0)
model = MixtralForCausalLM(MixtralConfig(hidden_size=256, intermediate_size=128, num_local_experts=4,
                                         num_experts_per_tok=2, num_hidden_layers=1, num_attention_heads=2,
                                         num_key_value_heads=2, vocab_size=32))
name = "model.layers.0.mlp.experts.gate_up_proj"
norm = model.state_dict()[name].norm()
for form, original in ("hub", True), ("own", False):
    folder = f"{sys.argv[1]}/{form}"
    model.save_pretrained(folder, save_original_format=original)
    stored = {}
    for key, weight in load_file(folder + "/model.safetensors").items():
        if "experts" not in key:
            stored[key] = weight
            continue
        *experts, rows, cols = weight.shape
        blocks = weight.reshape(*experts, rows // 128, 128, cols // 128, 128)
        scale = blocks.abs().amax((-3, -1), keepdim=True) / 448
        stored[key] = (blocks / scale).reshape(weight.shape).to(torch.float8_e4m3fn)
        stored[key + "_scale_inv"] = scale.reshape(*experts, rows // 128, cols // 128)
    save_file(stored, folder + "/model.safetensors", {"format": "pt"})
    config = json.load(open(folder + "/config.json"))
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic",
                                     "weight_block_size": [128, 128],
                                     "modules_to_not_convert": ["lm_head", "self_attn", "gate"]}
    json.dump(config, open(folder + "/config.json", "w"))
    read, report = MixtralForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True))
    print(form, "norm", round((read.state_dict()[name].norm() / norm).item(), 1), "unexpected keys",
          len(report["unexpected_keys"]), end="; ")
PYTHON
)
echo "transformers 5.23.0: $said"
expected="hub norm 1.0 unexpected keys 0; own norm 5424.2 unexpected keys 2; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
