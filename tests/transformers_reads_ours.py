#!/usr/bin/env python3
"""Models that examples/save_changed_model has changed and written, as transformers reads them: it computes with them
what it computes when the same change is made in torch. And dense models that examples/upcycle_model has made sparse.

    pip install transformers==5.23.0 torch==2.13.0
    python3 tests/transformers_reads_ours.py build/examples/save_changed_model build/examples/upcycle_model

Prints "skipped: ..." and exits with 77 where the two packages are not there.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
if transformers.__version__ != "5.23.0":
    print(f"skipped: transformers is {transformers.__version__}, expected 5.23.0")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

COMMON = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=52,
              max_position_embeddings=128, num_experts_per_tok=2)
CASES = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**COMMON, num_experts=8, moe_intermediate_size=16,
                                                     intermediate_size=24, norm_topk_prob=True, head_dim=10),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=8, intermediate_size=24),
    "gpt_oss": lambda: transformers.GptOssConfig(**COMMON, num_local_experts=8, intermediate_size=24, head_dim=10,
                                                 layer_types=["full_attention"] * 2),
}

DENSE_COMMON = {key: value for key, value in COMMON.items() if key != "num_experts_per_tok"} | {"intermediate_size": 24}
DENSE = {
    "qwen3": lambda: transformers.Qwen3Config(**DENSE_COMMON, head_dim=10),
    "mistral": lambda: transformers.MistralConfig(**DENSE_COMMON),
    "llama": lambda: transformers.LlamaConfig(**DENSE_COMMON),
}


def change(model):
    """What the example does: the answer of expert 0, without its bias, is twice as loud."""
    with torch.no_grad():
        changed = 0
        for module in model.modules():
            down = getattr(getattr(module, "experts", None), "down_proj", None)
            if down is not None:
                down[0] *= 2
                changed += 1
    assert changed == 2, f"expected 2 blocks, found {changed}"


def check(name, program, original_form, dtype, folder):
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(CASES[name](), dtype=dtype).eval()
    ids = torch.arange(3 * 17).reshape(3, 17) * 5 % 52
    before, after = folder / "before", folder / "after"
    model.save_pretrained(before, save_original_format=original_form)
    plain = model(ids).logits
    change(model)
    expected = model(ids).logits
    assert not torch.equal(plain, expected), "the change is to be seen"

    subprocess.run([program, before, after], check=True, stdout=subprocess.DEVNULL)
    ours, info = transformers.AutoModelForCausalLM.from_pretrained(after, dtype=dtype, output_loading_info=True)
    left = {key: value for key, value in info.items() if value}
    assert not left, f"{name}: not all was read: {left}"
    assert json.loads((before / "config.json").read_text()) == json.loads((after / "config.json").read_text())
    worst = (ours.eval()(ids).logits - expected).abs().max().item()
    print(f"{name}, {'as on the hub' if original_form else 'as in memory'}, {dtype}: differs by {worst}")
    assert worst == 0


def check_upcycled(dense_type, sparse_type, program, folder):
    """Right after, experts are copies of the dense FFN, so logits are the dense model's, to rounding."""
    torch.manual_seed(8)
    config = DENSE[dense_type]()
    dense = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(3 * 17).reshape(3, 17) * 5 % 52
    expected = dense(ids).logits
    dense.save_pretrained(folder / "dense")
    subprocess.run([program, folder / "dense", folder / "sparse", sparse_type], check=True, stdout=subprocess.DEVNULL)
    sparse, info = transformers.AutoModelForCausalLM.from_pretrained(folder / "sparse", output_loading_info=True)
    left = {key: value for key, value in info.items() if value}
    assert not left, f"{dense_type}: not all was read: {left}"
    assert sparse.config.model_type == sparse_type
    worst = (sparse.eval()(ids).logits - expected).abs().max().item()
    print(f"{dense_type} to {sparse_type}: differs by {worst}, of logits up to {expected.abs().max().item()}")
    assert worst <= 1e-5 + 1e-4 * expected.abs().max().item()


@torch.no_grad()
def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    cases = 0
    for dense_type, sparse_type in (("qwen3", "qwen3_moe"), ("mistral", "mixtral"), ("llama", "mixtral")):
        with tempfile.TemporaryDirectory() as folder:
            check_upcycled(dense_type, sparse_type, pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(folder))
            cases += 1
    for name in CASES:
        for original_form in (True, False):
            for dtype in (torch.float32, torch.bfloat16):
                with tempfile.TemporaryDirectory() as folder:
                    check(name, program, original_form, dtype, pathlib.Path(folder))
                    cases += 1
    print(f"{cases} passed, 0 failed")


main()
