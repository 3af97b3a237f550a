"""Makes ggml.safetensors here from a whole one: slice_ggml.py FROM TO

FROM has matrices as ggml's C library (0.21.0) quantises them, <matrix>.<type>.bytes, and the numbers that it makes of them
again, <matrix>.<type>.dequantized. Here are those of the types that the library decodes, without their originals, and the
rows of each matrix that differ in kind; `random` are bytes at random: scales that are infinite or NaN among them.
"""
import json
import struct
import sys

ROWS = {"random": range(3), "edges": range(16), "zeros": (0, 4, 5), "heavy": (0,), "normal": (0,)}

with open(sys.argv[1], "rb") as file:
    size, = struct.unpack("<Q", file.read(8))
    header, body = json.loads(file.read(size)), file.read()
kept, data = {}, b""
for name in sorted(header):
    matrix, kind = (name.split(".") + [""])[:2]
    if matrix not in ROWS or kind == "original" or kind.startswith(("IQ1", "IQ2", "IQ3")): continue
    entry = header[name]
    begin, end = entry["data_offsets"]
    row = (end - begin) // entry["shape"][0]
    part = b"".join(body[begin + r * row:begin + (r + 1) * row] for r in ROWS[matrix])
    kept[name] = {"dtype": entry["dtype"], "shape": [len(ROWS[matrix]), *entry["shape"][1:]],
                  "data_offsets": [len(data), len(data) + len(part)]}
    data += part
text = json.dumps(kept, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
with open(sys.argv[2], "wb") as file: file.write(struct.pack("<Q", len(text)) + text + data)
