#!/usr/bin/env bash
# transformers reads experts in NVFP4 without their global scales: weights are tens of thousands of times too large.
#
# NVFP4 of compressed-tensors has a scale for 16 numbers and weight_global_scale for the matrix; w is
# e2m1 · weight_scale / weight_global_scale. transformers 5.23.0 reads attention so, but collects only packed numbers and
# scales of groups of a mixture's experts. No error, no warning, no unexpected key; and as norms keep the logits in
# range, the model runs and says something else. It does so with dequantize=True and by default. Seen on a tiny
# Qwen3-MoE that compressed-tensors 0.20.0 compressed: the attention's weights are those of compressed-tensors' own
# decompression, the experts' are those times weight_global_scale, 30969 for the first. It has been reported
# (huggingface/transformers issue 48371) and stands.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 compressed-tensors==0.20.0 \
  accelerate==1.15.0 torch==2.13.0 numpy
said=$("$work/python/bin/python" - "$work/model" 2>/dev/null <<'PYTHON'
import json
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from transformers import CompressedTensorsConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

folder = sys.argv[1]
torch.manual_seed(0)
Qwen3MoeForCausalLM(Qwen3MoeConfig(hidden_size=64, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
                                   num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                                   vocab_size=32)).save_pretrained(folder)
scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
stored, meant = {}, {}
for name, weight in load_file(folder + "/model.safetensors").items():
    if "_proj." not in name:
        stored[name] = weight
        continue
    whole = generate_gparam(weight.amin(), weight.amax()).reshape(1)
    groups = weight.unflatten(1, (-1, 16))
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), scheme.weights, global_scale=whole)
    packed = compressor.compress({"weight": weight, "weight_scale": scale, "weight_global_scale": whole}, scheme)
    stored.update({name.replace("weight", key): value.contiguous() for key, value in packed.items()})
    meant[name] = compressor.decompress(packed, scheme)["weight"].float()
save_file(stored, folder + "/model.safetensors", {"format": "pt"})
config = json.load(open(folder + "/config.json"))
config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
                                 "quantization_status": "compressed", "ignore": ["lm_head", "re:.*mlp\\.gate$"],
                                 "config_groups": {"group_0": scheme.model_dump(mode="json")}}
json.dump(config, open(folder + "/config.json", "w"))

attention, expert = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.experts.0.down_proj.weight"
for options in {"quantization_config": CompressedTensorsConfig(dequantize=True)}, {}:
    model, report = Qwen3MoeForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    state, complaints = model.state_dict(), sum(len(listed) for listed in report.values())
    factor = (state["model.layers.0.mlp.experts.down_proj"][0].float() / meant[expert]).nanmedian().item()
    if options:
        print("attention", "right," if torch.equal(state[attention].float(), meant[attention]) else "wrong,", end=" ")
    print("complaints", complaints, "factor of expert 0 over its global scale",
          round(factor / stored[expert.replace("weight", "weight_global_scale")].item(), 2), end="; ")
PYTHON
)
echo "transformers 5.23.0: $said"
expected="attention right, complaints 0 factor of expert 0 over its global scale 1.0; "
expected+="complaints 0 factor of expert 0 over its global scale 1.0; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
