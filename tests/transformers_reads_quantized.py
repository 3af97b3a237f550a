#!/usr/bin/env python3
"""Models that moe_quantize has written, as transformers reads them: their weights are, to the bit, those that it decodes
from what its own quantiser, or compressed-tensors', makes of the model.

    pip install transformers==5.23.0 torch==2.13.0 accelerate==1.15.0 compressed-tensors==0.20.0
    python3 tests/transformers_reads_quantized.py build/bin/moe_quantize

Without compressed-tensors, of FP8 alone. Prints "skipped: ..." and exits with 77 where the first three are not there.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

try:
    import accelerate  # without which transformers reads no FP8
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
if transformers.__version__ != "5.23.0":
    print(f"skipped: transformers is {transformers.__version__}, expected 5.23.0")
    sys.exit(77)
try:
    import compressed_tensors
except ImportError:
    compressed_tensors = None

from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def make_model(folder):
    torch.manual_seed(5)
    config = transformers.Qwen3MoeConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                                         head_dim=64, vocab_size=52, max_position_embeddings=64, num_experts=4,
                                         num_experts_per_tok=2, moe_intermediate_size=128, intermediate_size=128)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def stored_fp8(weight, name):
    """What transformers stores."""
    config = transformers.FineGrainedFP8Config(weight_block_size=(128, 128))
    quantizer = type("Quantizer", (), {"quantization_config": config})()
    return Fp8Quantize(quantizer).convert({name: weight}), Fp8Dequantize(quantizer)


def decoded_by_transformers(folder, kind):
    """Weights of the model that transformers makes of a folder."""
    config = transformers.FineGrainedFP8Config(dequantize=True) if kind == "fp8" else \
        transformers.CompressedTensorsConfig(run_compressed=False, dequantize=True)
    options = {"quantization_config": config}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options).state_dict()


def expert_of(state, name):
    """Expert weights of transformers' model, which has them all in one."""
    before, _, after = name.partition(".experts.")
    number, projection, _ = after.split(".")
    fused = state[f"{before}.experts.{'down_proj' if projection == 'down_proj' else 'gate_up_proj'}"][int(number)]
    if projection == "down_proj":
        return fused
    gate, up = fused.chunk(2)
    return gate if projection == "gate_proj" else up


def check(program, model, kind, folder):
    subprocess.run([program, model, folder, "--type", kind], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before, after = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    state = decoded_by_transformers(folder, kind)
    wrong = []
    for name, weight in before.items():
        if ".experts." not in name:
            if not torch.equal(after[name], weight) or not torch.equal(state[name], weight):
                wrong.append(name)
            continue
        if kind == "fp8":
            stored, decoder = stored_fp8(weight, name)
            same = all(torch.equal(after[key].float(), value.float()) for key, value in stored.items())
            expected = decoder._dequantize_one(stored[name], stored[name + "_scale_inv"], torch.bfloat16)
        else:
            same, expected = True, expected_of_compressed_tensors(weight, kind)
        if not same or not torch.equal(expert_of(state, name), expected):
            wrong.append(name)
    print(f"{kind}: {len(before) - len(wrong)} of {len(before)} tensors as transformers has them" +
          (f"; wrong: {wrong[0]}" if wrong else ""))
    return not wrong


def expected_of_compressed_tensors(weight, kind):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams
    args = {
        "int4_g32": QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=True),
        "int4_g128": QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=128, symmetric=True),
        "mxfp4": QuantizationArgs(num_bits=4, type="float", strategy="group", group_size=32, symmetric=True,
                                  scale_dtype=torch.uint8),
    }[kind]
    groups = weight.unflatten(-1, (-1, args.group_size))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return fake_quantize(weight, scale, zero, args)


def fuse(model, folder):
    """The same model as transformers has it in memory: experts in two tensors a layer."""
    folder.mkdir()
    shutil.copy(model / "config.json", folder)
    tensors, experts = {}, {}
    for name, weight in load_file(model / "model.safetensors").items():
        before, found, after = name.partition(".experts.")
        if found:
            number, projection, _ = after.split(".")
            experts.setdefault(before, {})[int(number), projection] = weight
        else:
            tensors[name] = weight
    for block, its in experts.items():
        every = range(1 + max(number for number, _ in its))
        both = [torch.cat([its[e, "gate_proj"], its[e, "up_proj"]]) for e in every]
        tensors[block + ".experts.gate_up_proj"] = torch.stack(both)
        tensors[block + ".experts.down_proj"] = torch.stack([its[e, "down_proj"] for e in every])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def check_fused(program, fused, kind, folder, apart):
    """Experts that were in one tensor become what experts become that never were."""
    subprocess.run([program, fused, folder, "--type", kind], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    is_, expected = load_file(folder / "model.safetensors"), load_file(apart / "model.safetensors")
    same = is_.keys() == expected.keys() and all(
        is_[name].dtype == weight.dtype and torch.equal(is_[name].float(), weight.float()) for name, weight in expected.items())
    same = same and (folder / "config.json").read_text() == (apart / "config.json").read_text()
    print(f"{kind}, of experts in one: {'the same folder' if same else 'another folder'}")
    return same


def check_gpt_oss(program, root):
    """Its own form of MXFP4, with compressed-tensors' numbers."""
    torch.manual_seed(6)
    config = transformers.GptOssConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                                       head_dim=32, vocab_size=52, max_position_embeddings=64, num_local_experts=4,
                                       num_experts_per_tok=2, intermediate_size=96)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(root / "gpt_oss")
    subprocess.run([program, root / "gpt_oss", root / "gpt_oss_mxfp4", "--type", "mxfp4"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = transformers.AutoModelForCausalLM.from_pretrained(
        root / "gpt_oss_mxfp4", dtype=torch.bfloat16,
        quantization_config=transformers.Mxfp4Config(dequantize=True)).state_dict()
    before, wrong = load_file(root / "gpt_oss" / "model.safetensors"), []
    for name, weight in before.items():
        expected = weight
        if name.endswith(("gate_up_proj", "down_proj")) and ".experts." in name:
            turned = weight.transpose(1, 2)
            expected = expected_of_compressed_tensors(turned.flatten(0, 1), "mxfp4").unflatten(0, turned.shape[:2]).transpose(1, 2)
        if not torch.equal(state[name], expected):
            wrong.append(name)
    print(f"mxfp4 of gpt_oss: {len(before) - len(wrong)} of {len(before)} tensors as transformers reads them" +
          (f"; wrong: {wrong[0]}" if wrong else ""))
    return not wrong


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        make_model(root / "model")
        kinds = ["fp8"] + (["int4_g32", "int4_g128", "mxfp4"] if compressed_tensors else [])  # it drops NVFP4's global scale
        right = [check(program, root / "model", kind, root / kind) for kind in kinds]
        fuse(root / "model", root / "fused")
        right += [check_fused(program, root / "fused", kind, root / f"{kind}_fused", root / kind) for kind in kinds]
        if compressed_tensors:
            right.append(check_gpt_oss(program, root))
    if not compressed_tensors:
        print("skipped: compressed-tensors is not there")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
