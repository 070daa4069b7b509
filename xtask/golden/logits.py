"""Goldens of logits: logits.py CHECKPOINTS GOLDENS, called by `cargo xtask golden`.

CHECKPOINTS/NAME/VARIANT are the checkpoints that xtask made; GOLDENS/NAME.safetensors is
written. xtask/src/golden.rs says what is in it.
"""

import pathlib
import sys
import zlib

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from pinned import versions

TOKENS = 300
DECODED = 10
POSITIONS = [0, 1, 2, 31, 63, 64, 65, 127, 128, 200, 255, 256, 289, 298, 299]
COMPUTE = {"f32": mx.float32, "q4": mx.float32, "bf16": mx.bfloat16}


def forward(model, tokens, cache=None):
    """Logits [tokens, vocab] in f32."""
    logits = model(tokens[None], cache=cache)[0].astype(mx.float32)
    mx.eval(logits)
    return logits


def goldens(folder, dtype, tokens):
    model, _ = load_model(folder)
    model.set_dtype(dtype)
    full = forward(model, tokens)
    cache = make_prompt_cache(model)
    forward(model, tokens[: TOKENS - DECODED], cache)
    decoded = [forward(model, tokens[i : i + 1], cache) for i in range(TOKENS - DECODED, TOKENS)]
    decoded = mx.concatenate(decoded)
    check(full, decoded, dtype)
    return {
        "one": forward(model, tokens[:1]),
        "full": full[mx.array(POSITIONS)],
        "top1": mx.argmax(full, axis=-1).astype(mx.int32),
        "decode": decoded,
    }


def check(full, decoded, dtype):
    """mlx-lm itself: decoding is the full pass, within rounding; logits are not flat."""
    a, b = np.array(full[-DECODED:]), np.array(decoded)
    cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    assert cosine > (1 - 1e-6 if dtype == mx.float32 else 0.999), cosine
    assert 1 < a.std() < 4, a.std()


def main(checkpoints, out):
    pins = versions()
    rng = np.random.default_rng(300)
    for configuration in sorted(pathlib.Path(checkpoints).iterdir()):
        tokens = mx.array(rng.integers(1, 512, TOKENS), mx.int32)
        tensors = {"tokens": tokens, "positions": mx.array(POSITIONS, mx.int32)}
        metadata = dict(pins)
        for variant, dtype in COMPUTE.items():
            folder = configuration / variant
            for name, tensor in goldens(folder, dtype, tokens).items():
                tensors[f"{variant}.{name}"] = tensor
            bytes_ = (folder / "model.safetensors").read_bytes()
            metadata[f"{variant}.crc32"] = str(zlib.crc32(bytes_))
        path = pathlib.Path(out) / f"{configuration.name}.safetensors"
        mx.save_safetensors(str(path), tensors, metadata)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
