#!/usr/bin/env bash
# transformers' NLLB-MoE block runs experts 0 and 1 alone, whatever its router chooses.
#
# A good engineer takes the class as the reference for this model's mathematics. Of transformers 5.23.0 it is none: with
# tokens routed to all four experts, forward() calls two of them. The router, its capacity and its masks are right; what
# the masks say and what the block returns differ. Seen on a block of random weights: experts 0 and 1 run, of 0 to 3
# chosen.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 torch==2.13.0 numpy
said=$("$work/python/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from transformers import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

torch.manual_seed(0)
block = NllbMoeSparseMLP(NllbMoeConfig(d_model=8, num_experts=4, expert_capacity=64, moe_token_dropout=0.0), 8).eval()
tokens = torch.randn(1, 16, 8)
run = set()
for name, expert in block.experts.items():
    expert.register_forward_hook(lambda *_, name=name: run.add(int(name.rsplit("_", 1)[1])))
with torch.no_grad():
    block(tokens)
    chosen = block.router.classifier(tokens).topk(2, dim=-1).indices.unique().tolist()
print("chosen", chosen, "run", sorted(run))
PYTHON
)
echo "transformers 5.23.0: $said"
if [ "$said" != "chosen [0, 1, 2, 3] run [0, 1]" ]; then
  echo 'CHANGED: expected "chosen [0, 1, 2, 3] run [0, 1]"'
  exit 1
fi
