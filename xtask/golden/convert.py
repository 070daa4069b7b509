"""Goldens of conversions: convert.py CHECKPOINTS GOLDENS, called by `cargo xtask golden`.

CHECKPOINTS/NAME/VARIANT are the checkpoints that xtask made. Writes GOLDENS/convert.json: what
mlx_lm.convert makes of them, per tensor dtype, shape and CRC-32 of the bytes.
"""

import json
import pathlib
import struct
import sys
import tempfile
import zlib

from mlx_lm.convert import convert

CASES = [
    {"config": "llama", "variant": "bf16", "bits": bits, "group_size": group}
    for bits, group in [(2, 32), (3, 64), (4, 64), (5, 128), (6, 64), (8, 32)]
] + [
    {"config": "qwen3", "variant": "f32", "bits": 4, "group_size": 64},
    {"config": "phi3", "variant": "bf16", "mixed": "mixed_3_6", "group_size": 64},
    {"config": "llama", "variant": "bf16", "mixed": "mixed_4_6", "group_size": 64},
    {"config": "smollm3", "variant": "bf16", "bits": 4, "group_size": 64, "dtype": "float16"},
    {"config": "qwen2", "variant": "bf16", "dtype": "float32"},
    {"config": "mistral", "variant": "f32", "dtype": "float16"},
    {"config": "mixtral", "variant": "bf16", "bits": 4, "group_size": 64},
    {"config": "olmoe", "variant": "f32", "bits": 8, "group_size": 32},
    {"config": "qwen3_moe", "variant": "bf16", "bits": 4, "group_size": 64},
    {"config": "qwen3_moe", "variant": "bf16", "mixed": "mixed_3_6", "group_size": 64},
    {"config": "olmoe", "variant": "bf16", "dtype": "float16"},
]


def tensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    result = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        result[name] = [entry["dtype"], entry["shape"], zlib.crc32(data[begin:end])]
    return result


def golden(checkpoints, case):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        convert(
            str(checkpoints / case["config"] / case["variant"]),
            str(out),
            quantize="bits" in case or "mixed" in case,
            q_bits=case.get("bits"),
            q_group_size=case.get("group_size"),
            quant_predicate=case.get("mixed"),
            dtype=case.get("dtype"),
        )
        config = json.loads((out / "config.json").read_text())
        return case | {
            "quantization": config.get("quantization"),
            "tensors": tensors(out / "model.safetensors"),
        }


def main():
    checkpoints = pathlib.Path(sys.argv[1])
    result = {}
    for case in CASES:
        name = "-".join(str(value) for value in case.values())
        result[name] = golden(checkpoints, case)
    pathlib.Path(sys.argv[2], "convert.json").write_text(json.dumps(result, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
