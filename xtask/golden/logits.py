"""Goldens of logits: logits.py CHECKPOINTS GOLDENS NAME..., called by `cargo xtask golden`.

CHECKPOINTS/NAME/VARIANT are the checkpoints that xtask made; GOLDENS/NAME.safetensors is
written. crates/testing/src/golden.rs says what is in it. The prompt of a golden that is there stays.
"""

import json
import math
import pathlib
import sys
import zlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import llama
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.utils import load_model

from pinned import versions

TOKENS = 300
DECODED = 10
POSITIONS = [0, 1, 2, 31, 63, 64, 65, 127, 128, 200, 255, 256, 289, 298, 299]
COMPUTE = {"f32": mx.float32, "q4": mx.float32, "bf16": mx.bfloat16}


def gather_in_f32(self, x, indices, sorted_indices=False):
    """SwitchLinear: MLX's CPU backend gathers fp32 matrices only."""
    weight = self["weight"].swapaxes(-1, -2).astype(mx.float32)
    y = mx.gather_mm(
        x.astype(mx.float32), weight, rhs_indices=indices, sorted_indices=sorted_indices
    )
    y = y.astype(x.dtype)
    return y + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else y


SwitchLinear.__call__ = gather_in_f32

# Windows that mlx-lm leaves out, by layer, as transformers has them.
SLIDES = {"gemma2": lambda layer: layer % 2 == 0, "starcoder2": lambda layer: True}


class Windowed(nn.Module):
    """An attention whose mask is that of a sliding window."""

    def __init__(self, attention, window):
        super().__init__()
        self.attention, self.window = attention, window

    def __call__(self, x, mask=None, cache=None):
        mask = create_attention_mask(x, cache, self.window, return_array=True)
        return self.attention(x, mask, cache)


def add_windows(model, config):
    slides = SLIDES.get(config["model_type"], lambda layer: False)
    for index, layer in enumerate(model.layers):
        if slides(index):
            layer.self_attn = Windowed(layer.self_attn, config["sliding_window"])


def add_factors(model, config):
    """Falcon-H1's factors on keys and values, which mlx-lm leaves out of published files."""
    if config["model_type"] != "falcon_h1" or "quantization" in config:
        return
    for layer in model.layers:
        attention = layer.self_attn
        attention.k_proj.weight = attention.k_proj.weight * config["key_multiplier"]
        attention.v_proj.weight = attention.v_proj.weight * config["attention_in_multiplier"]
def untruncate(model, config):
    """YaRN without whole dimensions as its ramp's ends, which mlx-lm leaves out (gpt-oss)."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("truncate", True):
        return
    dims, base = config["head_dim"], config["rope_theta"]

    def correction(rotations):
        context = scaling["original_max_position_embeddings"]
        return dims * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(correction(scaling["beta_fast"]), 0)
    high = min(correction(scaling["beta_slow"]), dims - 1)
    keep = 1 - mx.clip((mx.arange(dims // 2) - low) / (high - low), 0, 1)
    plain = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
    stretched = scaling["factor"] * plain
    for layer in model.layers:
        freqs = stretched * plain / (stretched * keep + plain * (1 - keep))
        layer.self_attn.rope._freqs = freqs


def forward(model, tokens, cache=None):
    """Logits [tokens, vocab] in f32."""
    logits = model(tokens[None], cache=cache)[0].astype(mx.float32)
    mx.eval(logits)
    return logits


class Skipping(llama.Model):
    """Llama 3.2 Vision without images: its cross-attention layers are left out, as in transformers.

    mlx-lm has no such family, and mlx-vlm makes keys of the queries then.
    """

    def sanitize(self, weights):
        text = {}
        for name, weight in weights.items():
            parts = name.split(".")
            if parts[0] != "language_model":
                continue
            if parts[2] == "layers":
                layer = int(parts[3])
                if layer in self.args.skipped:
                    continue
                parts[3] = str(layer - sum(skipped < layer for skipped in self.args.skipped))
            if parts[2] == "embed_tokens":
                weight = weight[: self.args.vocab_size]
            text[".".join(parts[1:])] = weight
        return text


class SkippingArgs:
    @staticmethod
    def from_dict(config):
        text = dict(config["text_config"], model_type="llama")
        skipped = text["cross_attention_layers"]
        text["num_hidden_layers"] -= len(skipped)
        arguments = llama.ModelArgs.from_dict(text)
        arguments.skipped = skipped
        return arguments


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "mllama":
        return load_model(folder, get_model_classes=lambda config: (Skipping, SkippingArgs))
    return load_model(folder)


def goldens(folder, dtype, tokens):
    model, config = load(folder)
    model.set_dtype(dtype)
    add_windows(model, config)
    add_factors(model, config)
    untruncate(model, config)
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
    cosine = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    if dtype == mx.float32:
        assert cosine.min() > 1 - 1e-6, cosine
    else:  # Rounding may send a token to another expert.
        assert np.median(cosine) > 0.999, cosine
    assert 1 < a.std() < 5, a.std()


def prompt(path):
    """That of the golden where there is one, else one of the configuration's own."""
    if path.exists():
        return mx.load(str(path))["tokens"]
    rng = np.random.default_rng([TOKENS, zlib.crc32(path.stem.encode())])
    return mx.array(rng.integers(1, 512, TOKENS), mx.int32)


def main(checkpoints, out, *names):
    pins = versions()
    for name in names:
        configuration = pathlib.Path(checkpoints) / name
        path = pathlib.Path(out) / f"{name}.safetensors"
        tokens = prompt(path)
        tensors = {"tokens": tokens, "positions": mx.array(POSITIONS, mx.int32)}
        metadata = dict(pins)
        for variant, dtype in COMPUTE.items():
            folder = configuration / variant
            for name, tensor in goldens(folder, dtype, tokens).items():
                tensors[f"{variant}.{name}"] = tensor
            bytes_ = (folder / "model.safetensors").read_bytes()
            metadata[f"{variant}.crc32"] = str(zlib.crc32(bytes_))
        mx.save_safetensors(str(path), tensors, metadata)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
