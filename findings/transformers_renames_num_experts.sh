#!/usr/bin/env bash
# transformers writes the number of Qwen3-MoE's experts under another key than every published config.json has it.
#
# A good engineer reads num_experts, as Qwen3-30B-A3B's config.json says it. transformers 5.23.0 takes that name and
# writes num_local_experts in its place, and no num_experts: an attribute map calls the one the other, and saving follows
# it. So a model that was loaded and saved again, fine-tuned or not, is one that readers of the published key refuse, or
# take for the default of 128. Qwen2-MoE and Qwen3-Next keep num_experts.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0
said=$("$work/python/bin/python" - "$work" 2>/dev/null <<'PYTHON'
import json
import sys

from transformers import Qwen2MoeConfig, Qwen3MoeConfig, Qwen3NextConfig

for config in Qwen3MoeConfig, Qwen2MoeConfig, Qwen3NextConfig:
    config(num_experts=4).save_pretrained(sys.argv[1])
    written = json.load(open(sys.argv[1] + "/config.json"))
    print(written["model_type"], [key for key in ("num_experts", "num_local_experts") if key in written], end="; ")
PYTHON
)
echo "transformers 5.23.0 writes: $said"
expected="qwen3_moe ['num_local_experts']; qwen2_moe ['num_experts']; qwen3_next ['num_experts']; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
