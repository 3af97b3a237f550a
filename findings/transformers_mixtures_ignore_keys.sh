#!/usr/bin/env bash
# Two mixtures of transformers take a key of their config, save it, and compute without it.
#
# PhiMoE: num_experts_per_tok says how many experts a token meets; the class always takes two, one after the other.
# Aria: hidden_act is the activation of the shared expert; the routed ones are SwiGLU whatever it says. Who reads such a
# folder by its config computes something else. Seen with one set of weights under configs that differ in that key alone:
# PhiMoE answers the same to the last bit at 1 and at 2 experts, Aria's routed experts at "silu" and at "gelu", while
# its shared expert follows the key.
#
# Needs python3 with venv. Exits with 0 while transformers behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install transformers==5.23.0 torch==2.13.0 numpy
said=$("$work/python/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from transformers import AriaTextConfig, PhimoeConfig
from transformers.models.aria import modeling_aria
from transformers.models.phimoe import modeling_phimoe

x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))


def same(make, values):
    answers = []
    weights = None
    for value in values:
        block = make(value).eval()
        if weights is None:
            generator = torch.Generator().manual_seed(2)
            weights = {name: torch.randn(w.shape, generator=generator) * 0.2 for name, w in block.state_dict().items()}
        block.load_state_dict(weights)
        with torch.no_grad():
            out = block(x)
        answers.append(out[0] if isinstance(out, tuple) else out)
    return bool(torch.equal(*answers))


def phimoe(top_k):
    return modeling_phimoe.PhimoeSparseMoeBlock(PhimoeConfig(
        hidden_size=32, intermediate_size=16, num_local_experts=8, num_experts_per_tok=top_k, num_attention_heads=2,
        num_key_value_heads=2))


def aria(act, part):
    config = AriaTextConfig(hidden_size=32, intermediate_size=16, moe_num_experts=8, moe_topk=2, hidden_act=act,
                            moe_num_shared_experts=1, num_attention_heads=2, num_key_value_heads=2)
    if part == "shared":
        return modeling_aria.AriaSharedExpertsMLP(config)
    block = modeling_aria.AriaTextMoELayer(config)
    block.shared_experts.forward = lambda hidden: torch.zeros_like(hidden)
    return block


print("PhiMoE at 1 and 2 experts a token:", "same" if same(phimoe, (1, 2)) else "other", end="; ")
for part in "routed", "shared":
    print(f"Aria's {part} at silu and gelu:", "same" if same(lambda act: aria(act, part), ("silu", "gelu")) else "other",
          end="; ")
PYTHON
)
echo "transformers 5.23.0: $said"
expected="PhiMoE at 1 and 2 experts a token: same; Aria's routed at silu and gelu: same; Aria's shared at silu and gelu: other; "
if [ "$said" != "$expected" ]; then
  echo "CHANGED: expected \"$expected\""
  exit 1
fi
