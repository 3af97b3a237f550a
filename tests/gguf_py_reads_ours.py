#!/usr/bin/env python3
"""GGUF files that examples/save_gguf has written, as gguf-py reads them: keys, names, shapes, and every number as
transformers' folder has it.

    pip install gguf==0.19.0 safetensors==0.8.0
    python3 tests/gguf_py_reads_ours.py build/examples/save_gguf

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


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            check(name, program, pathlib.Path(folder))
    print(f"{len(ARCHITECTURES)} passed, 0 failed")


main()
