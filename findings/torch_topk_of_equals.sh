#!/usr/bin/env bash
# torch.topk on a CPU does not choose the first of equal values, and which it chooses depends on how many others there are.
#
# A good engineer expects ties to go to the lower index, as with a stable sort. torch.topk selects by std::nth_element
# where 64 · k > n, and by std::partial_sort else: of equals it takes whichever these leave in front. It counts where
# equals are the rule: transformers 5.23.0's router of A.X K2 (axk2) masks the experts of rejected groups with 0.0, so
# that all of them tie, and one is chosen whenever the others' biased scores are negative. Whoever computes that model
# otherwise (by a sort, on a GPU) sends such tokens to other experts. Seen with torch 2.13.0 (CPU): of four zeros at 2 to
# 5 in eight numbers, index 4; with 200 smaller numbers behind, index 3; a stable sort takes 2.
#
# Needs python3 with venv. Exits with 0 while torch behaves so, and with 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/python"
"$work/python/bin/pip" --quiet --disable-pip-version-check install torch==2.13.0 numpy
said=$("$work/python/bin/python" - <<'PYTHON'
import torch

few = torch.tensor([-0.1, -0.2, 0, 0, 0, 0, -0.3, 0.1])
many = torch.cat([few, torch.full((200,), -1.0)])
print(*(torch.topk(values, 2, sorted=False).indices.tolist() for values in (few, many)),
      torch.sort(few, descending=True, stable=True).indices[:2].tolist())
PYTHON
)
echo "torch 2.13.0: topk of eight, topk of 208, stable sort: $said"
if [ "$said" != "[7, 4] [7, 3] [7, 2]" ]; then
  echo 'CHANGED: expected "[7, 4] [7, 3] [7, 2]"'
  exit 1
fi
