#!/usr/bin/env python3
"""GGUF files that we have written, as gguf-py reads them. Those of examples/save_gguf: keys, names, shapes, and every
number as transformers' folder has it. Those of moe_quantize: every number, to the bit, as we decode it, in each type
that gguf-py decodes; and where gguf-py has a quantiser, every byte as that writes it.

    pip install gguf==0.19.0 safetensors==0.8.0
    python3 tests/gguf_py_reads_ours.py build/examples/save_gguf build/bin/moe_quantize

Prints "skipped: ..." and exits with 77 where the packages are not there.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
    import safetensors.numpy
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

REAL = pathlib.Path(__file__).parent / "real"
ARCHITECTURES = {"qwen3_moe": "qwen3moe", "mixtral": "llama", "deepseek_v3": "deepseek2", "gpt_oss": "gpt-oss",
                 "glm4_moe": "glm4moe", "qwen3_5_moe_text": "qwen35moe", "granitemoeshared": "granitemoe",
                 "nemotron_h_latent": "nemotron_h_moe", "olmoe": "olmoe"}


def key_of(config, *names):
    return next(config[name] for name in names if config.get(name) is not None)


def numbers_in(folder):
    """Of all tensors, each row as it lies, to look one up."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


def check(name, program, folder):
    file = folder / "saved.gguf"
    subprocess.run([program, REAL / name, file], check=True, stdout=subprocess.DEVNULL)
    config = json.loads((REAL / name / "config.json").read_text())
    config = config.get("text_config", config)
    reader = gguf.GGUFReader(file)
    keys = {key: field.contents() for key, field in reader.fields.items()}
    arch = keys["general.architecture"]
    assert arch == ARCHITECTURES[name], arch
    assert keys["general.name"] == "experts alone"
    experts = key_of(config, "num_experts", "num_local_experts", "n_routed_experts")
    assert keys[f"{arch}.expert_count"] == experts
    assert keys[f"{arch}.expert_used_count"] == config["num_experts_per_tok"]
    assert keys[f"{arch}.embedding_length"] == config["hidden_size"]
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[
        next(number for number, text in gguf.MODEL_ARCH_NAMES.items() if text == arch)]}
    # Rows of all of the folder's matrices, as they lie and turned: each of ours is one of them.
    rows = set()
    for tensor in numbers_in(REAL / name).values():
        if tensor.dtype.kind != "f" or tensor.size == 0 or tensor.ndim == 0:
            continue
        for matrix in (tensor, np.swapaxes(tensor, -1, -2) if tensor.ndim > 1 else tensor):
            for part in (matrix, matrix[..., ::2], matrix[..., 1::2]):  # as gate and up alternate
                if part.size > 0:
                    rows |= {row.astype(np.float32).tobytes() for row in part.reshape(-1, part.shape[-1])}
    found = 0
    for tensor in reader.tensors:
        block, number, rest = tensor.name.split(".", 2)
        assert block == "blk" and rest.endswith((".weight", ".bias")), tensor.name
        stem = f"blk.{{bid}}.{rest.rsplit('.', 1)[0]}"
        assert stem in known, f"{tensor.name} is no tensor of {arch}"
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert list(data.shape) == list(reversed(tensor.shape.tolist()))
        for row in data.reshape(-1, data.shape[-1]):
            assert row.tobytes() in rows, f"{tensor.name} has a row that the folder has not"
            found += 1
    print(f"{name}: {len(reader.tensors)} tensors, {found} rows")
    assert found > 0


TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "mxfp4", "nvfp4", "tq1_0",
         "tq2_0", "f16", "bf16", "f32")
# Whose quantiser of gguf-py writes the bytes of ggml's C, in which these numbers have no ties.
SAME_BYTES = {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4", "tq1_0", "tq2_0", "bf16"}


def make_model(folder):
    """A qwen2_moe whose rows are whole blocks of each type, its weights of unlike sizes, some zeros."""
    d, ff, experts = 256, 512, 3
    config = {"model_type": "qwen2_moe", "hidden_size": d, "moe_intermediate_size": ff, "num_experts": experts,
              "shared_expert_intermediate_size": ff, "num_experts_per_tok": 2, "norm_topk_prob": False, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(18)
    tensors = {}
    for layer in range(2):
        block = f"model.layers.{layer}.mlp"
        for expert in [f"experts.{e}" for e in range(experts)] + ["shared_expert"]:
            for name, shape in {"gate_proj": (ff, d), "up_proj": (ff, d), "down_proj": (d, ff)}.items():
                weight = random.standard_normal(shape) * random.uniform(0.001, 2, (shape[0], 1))
                weight[shape[0] // 2, :64] = 0
                tensors[f"{block}.{expert}.{name}.weight"] = weight.astype(np.float32)
        tensors[f"{block}.gate.weight"] = random.standard_normal((experts, d)).astype(np.float32)
        tensors[f"{block}.shared_expert_gate.weight"] = random.standard_normal((1, d)).astype(np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return tensors


def expected_weight(tensors, name):
    """The float tensor of a GGUF tensor's name."""
    _, layer, end = name.split(".", 2)
    kind = end.split("_")[1]
    block = f"model.layers.{layer}.mlp"
    if "_shexp" in end:
        return tensors[f"{block}.shared_expert.{kind}_proj.weight"]
    return np.stack([tensors[f"{block}.experts.{e}.{kind}_proj.weight"] for e in range(3)])


def check_quantized(name, program, folder, tensors):
    coded, decoded = folder / f"{name}.gguf", folder / f"{name}_decoded.gguf"
    for one, other, kind in ((folder, coded, name), (coded, decoded, "f32")):
        subprocess.run([program, one, other, "--type", kind], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    reader = gguf.GGUFReader(coded)
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(decoded).tensors}
    assert {tensor.name for tensor in reader.tensors} == set(ours)
    of_experts = 0
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert data.shape == ours[tensor.name].data.shape, tensor.name
        assert np.array_equal(data.view(np.uint32), ours[tensor.name].data.view(np.uint32)), f"{name}: {tensor.name}"
        if "_exps" not in tensor.name and "_shexp.weight" not in tensor.name or "gate_inp" in tensor.name:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32, tensor.name
            continue
        of_experts += 1
        assert tensor.tensor_type.name.lower() == name, f"{tensor.name} is {tensor.tensor_type.name}"
        weight = expected_weight(tensors, tensor.name)
        error = np.linalg.norm(data - weight) / np.linalg.norm(weight)
        assert error < {"tq1_0": 1, "tq2_0": 1, "q2_k": 0.4}.get(name, 0.25), f"{name}: {tensor.name} is off by {error}"
        if name in SAME_BYTES:
            same = gguf.quants.quantize(weight, tensor.tensor_type)
            assert np.array_equal(same.reshape(-1).view(np.uint8), tensor.data.reshape(-1).view(np.uint8)), \
                f"{name}: {tensor.name} has other bytes"
    assert of_experts == 12
    print(f"{name}: {len(reader.tensors)} tensors of moe_quantize as we decode them")


def main():
    save_gguf, moe_quantize = (pathlib.Path(program).resolve() for program in sys.argv[1:3])
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            check(name, save_gguf, pathlib.Path(folder))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        tensors = make_model(folder)
        for name in TYPES:
            check_quantized(name, moe_quantize, folder, tensors)
    print(f"{len(ARCHITECTURES) + len(TYPES)} passed, 0 failed")


main()
