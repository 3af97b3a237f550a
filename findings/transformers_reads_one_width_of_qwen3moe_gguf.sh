#!/usr/bin/env bash
# transformers reads a GGUF of qwen3moe only if its experts are 768 wide.
#
# A good engineer expects the metadata to tell the shape: qwen3moe.expert_feed_forward_length is the experts' width, and
# llama.cpp reads it. transformers 5.23.0's table of this architecture's keys lacks it, so moe_intermediate_size is the
# default, 768, which is that of Qwen3-30B-A3B; of other models, such as Qwen3-235B-A22B with 1536, loading ends in an
# error of mismatched sizes. The key is read for qwen35moe. Seen with files that gguf-py 0.19.0 writes, alike but for it.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0 \
  torch==2.13.0 numpy
said=$("$work/python/bin/python" - "$work" 2>/dev/null <<'PYTHON'
import sys

import gguf
import numpy as np
from transformers import AutoModelForCausalLM

hidden, experts, heads, head, vocabulary = 64, 2, 2, 32, 32


def write(path, width):
    file = gguf.GGUFWriter(path, "qwen3moe")
    file.add_block_count(1)
    file.add_context_length(64)
    file.add_embedding_length(hidden)
    file.add_feed_forward_length(128)
    file.add_expert_feed_forward_length(width)
    file.add_expert_count(experts)
    file.add_expert_used_count(1)
    file.add_head_count(heads)
    file.add_head_count_kv(heads)
    file.add_key_length(head)
    file.add_value_length(head)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_freq_base(1e4)
    file.add_vocab_size(vocabulary)
    shapes = {"token_embd": [vocabulary, hidden], "output": [vocabulary, hidden], "output_norm": [hidden],
              "blk.0.attn_norm": [hidden], "blk.0.ffn_norm": [hidden], "blk.0.attn_q_norm": [head], "blk.0.attn_k_norm": [head],
              "blk.0.attn_q": [heads * head, hidden], "blk.0.attn_k": [heads * head, hidden],
              "blk.0.attn_v": [heads * head, hidden], "blk.0.attn_output": [hidden, heads * head],
              "blk.0.ffn_gate_inp": [experts, hidden], "blk.0.ffn_gate_exps": [experts, width, hidden],
              "blk.0.ffn_up_exps": [experts, width, hidden], "blk.0.ffn_down_exps": [experts, hidden, width]}
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        file.add_tensor(name + ".weight", numbers.normal(size=shape).astype(np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


for width in 768, 1536, 64:
    write(sys.argv[1] + "/model.gguf", width)
    print(gguf.GGUFReader(sys.argv[1] + "/model.gguf").fields["qwen3moe.expert_feed_forward_length"].contents(), end=" ")
    try:
        AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file="model.gguf")
        print("read", end="; ")
    except RuntimeError as error:
        print("mismatched sizes" if "ignore_mismatched_sizes" in str(error) else error, end="; ")
PYTHON
)
echo "transformers 5.23.0, width of experts: $said"
expected="768 read; 1536 mismatched sizes; 64 mismatched sizes; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
