"""Goldens of MLX's affine quantisation: affine.safetensors, beside this script.

The weights are drawn once and stored with the results. One group is all zeros, one is
constant, one has no negative weight, so that the corners of the format are in.
"""

import pathlib

import mlx.core as mx

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}


def weights():
    mx.random.seed(20)
    groups = mx.random.normal((16, 32)) * 0.05
    groups[0] = 0.0
    groups[4:8] = 0.3
    groups[8] = mx.abs(groups[8])
    return groups.reshape(1, 512)


def main():
    w = weights()
    tensors = {"weights": w}
    for label, dtype in DTYPES.items():
        for bits in BITS:
            for group_size in GROUP_SIZES:
                parts = mx.quantize(w.astype(dtype), group_size, bits)
                for name, part in zip(("codes", "scales", "biases"), parts):
                    tensors[f"{label}.{bits}.{group_size}.{name}"] = part
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    mx.save_safetensors(str(path), tensors, {"mlx": mx.__version__})


if __name__ == "__main__":
    main()
