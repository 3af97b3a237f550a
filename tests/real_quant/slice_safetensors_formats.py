"""Makes the files of formats of safetensors here from whole ones: slice_safetensors_formats.py FROM

FROM has what real software stored and decoded (README.md). Here are the matrices of each scheme without their originals,
and the first rows of them, where rows can be cut.
"""
import json
import math
import struct
import sys
from pathlib import Path

ROWS = 8


def read(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[8 + size:][slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def write(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size} bytes")


def first_rows(tensor, rows):
    dtype, shape, content = tensor
    return dtype, [rows] + shape[1:], content[:len(content) // shape[0] * rows]


def cut(tensors, keep, rows=ROWS):
    """The first rows of what `keep` has kept, of each scheme by its shape."""
    out = {}
    for name, (dtype, shape, content) in tensors.items():
        module, last = name.rsplit(".", 1)
        if last == "original" or not keep(name):
            continue
        all_rows = tensors[module + ".dequantized"][1][0]
        if last == "weight_shape":
            content = struct.pack("<qq", rows, struct.unpack("<qq", content)[1])
        elif last == "weight_zero_point" and dtype == "I32":
            bits = int(module.split(".int")[1][0])
            dtype, shape, content = first_rows((dtype, shape, content), math.ceil(rows * bits / 32))
        elif shape and shape[0] == all_rows:
            dtype, shape, content = first_rows((dtype, shape, content), rows)
        out[name] = (dtype, shape, content)
    return out


def main():
    source, here = Path(sys.argv[1]), Path(__file__).parent
    ct = read(source / "compressed_tensors.safetensors")
    small = cut(ct, lambda name: not name.startswith("ragged"))
    small |= {name: tensor for name, tensor in ct.items() if name.startswith("ragged.fp8_block")}  # 140 rows, blocks of 128
    small |= cut(ct, lambda name: name.startswith(("ragged.int4", "ragged.int8")), 10)
    write(here / "compressed_tensors.safetensors", small)
    fp8 = read(source / "transformers_fp8.safetensors")
    small = cut(fp8, lambda name: not name.startswith("experts"), 16)
    small |= {name: tensor for name, tensor in fp8.items() if name.startswith("experts.float_64x32")}
    write(here / "transformers_fp8.safetensors", small)
    for file in ("mlx", "modelopt", "torchao"):
        write(here / (file + ".safetensors"), cut(read(source / (file + ".safetensors")), lambda name: True, 4))
    for file in ("gpt_oss_mxfp4", "gptq_awq", "bitsandbytes"):  # cut by matrix alone
        whole = read(source / (file + ".safetensors"))
        write(here / (file + ".safetensors"),
              {name: tensor for name, tensor in whole.items() if not name.endswith(".original")
               and not (file == "gptq_awq" and name.startswith("zeros")) and not (file == "bitsandbytes" and name.startswith(("heavy", "edges.nf4_128", "edges.fp4_128")))})


main()
