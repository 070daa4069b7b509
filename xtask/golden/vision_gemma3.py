"""Goldens of Gemma 3's images: vision_gemma3.py CHECKPOINTS GOLDENS NAME..., called by `cargo xtask golden`.

On CHECKPOINTS/NAME/f32, GOLDENS/NAME-images.safetensors holds:

picture     [height, width, 3] u8
pixels      [3, side, side]    transformers' processor (Pillow) on the picture
embeddings  [rows, hidden]     mlx-vlm's encoder and projector on those pixels
tokens      [n] i32            a prompt with two places for that image
positions   [p] i32            rows of that prompt
logits      [p, vocab]         mlx-vlm's language model on the prompt with the image at both places, at those rows

mlx-vlm 0.7 lets every token of such a prompt see every other one. Here a token sees those before it
and, within an image, all of it, windowed layers no further back than their window: the masks of
transformers (`create_masks_for_vision_model`).
"""

import json
import pathlib
import sys
import zlib

import mlx.core as mx
import numpy as np
from mlx_vlm.models.gemma3 import gemma3
from mlx_vlm.models.gemma3.config import ModelConfig, TextConfig, VisionConfig
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from pictures import picture
from pinned import versions

PICTURE = (90, 150)
TEXT_TOKENS = (7, 5, 11)
POSITIONS = [0, 6, 7, 8, 9, 100, 200, 263, 264, 269, 271, 272, 400, 527, *range(528, 539)]


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    text = dict(config["text_config"], vocab_size=config["vocab_size"])
    text["mm_tokens_per_image"] = config["mm_tokens_per_image"]
    parts = {
        "text_config": TextConfig.from_dict(text),
        "vision_config": VisionConfig.from_dict(config["vision_config"]),
    }
    names = ("model_type", "vocab_size", "image_token_index")
    model = gemma3.Model(ModelConfig(**parts, **{name: config[name] for name in names}))
    weights = mx.load(str(folder / "model.safetensors"))
    weights = model.language_model.sanitize(model.vision_tower.sanitize(weights))
    model.load_weights(list(weights.items()))
    return model, config


def prompt(config):
    rng = np.random.default_rng(9)
    text = [rng.integers(1, 500, count).tolist() for count in TEXT_TOKENS]
    image = [config["image_token_index"]] * config["mm_tokens_per_image"]
    image = [config["boi_token_index"], *image, config["eoi_token_index"]]
    return np.array(text[0] + image + text[1] + image + text[2])


def masks(tokens, image_token, window):
    """Boolean [queries, keys] of global and of windowed layers."""
    is_image = tokens == image_token
    starts = is_image & ~np.concatenate([[False], is_image[:-1]])
    group = np.where(is_image, np.cumsum(starts), 0)
    query, key = np.mgrid[0 : len(tokens), 0 : len(tokens)]
    same = (group[query] == group[key]) & (group[query] > 0)
    full = (key <= query) | same
    return mx.array(full), mx.array(full & (key > query - window))


def logits(model, config, tokens, embeddings):
    language = model.language_model.model
    hidden = language.config.hidden_size
    scale = mx.array(hidden**0.5, mx.bfloat16).astype(mx.float32)
    h = language.embed_tokens(mx.array(tokens)) * scale
    places = np.where(tokens == config["image_token_index"])[0]
    h[mx.array(places)] = mx.concatenate([embeddings] * 2)
    full, windowed = masks(tokens, config["image_token_index"], language.window_size)
    h = h[None]
    for layer in language.layers:
        h = layer(h, windowed if layer.self_attn.is_sliding else full)
    return model.language_model.lm_head(language.norm(h))[0]


def main(checkpoints, out, *names):
    pins = versions()
    for name in names:
        folder = pathlib.Path(checkpoints) / name / "f32"
        model, config = load(folder)
        side = config["vision_config"]["image_size"]
        half = [0.5] * 3
        processor = Gemma3ImageProcessorPil(
            size={"height": side, "width": side}, resample=2, image_mean=half, image_std=half
        )
        pixels = processor(Image.fromarray(picture(*PICTURE)), return_tensors="np")["pixel_values"][0]
        nhwc = mx.array(pixels.transpose(1, 2, 0)[None])
        hidden, _, _ = model.vision_tower(nhwc, output_hidden_states=True)
        embeddings = model.multi_modal_projector(hidden)[0]
        tokens = prompt(config)
        tensors = {
            "picture": mx.array(picture(*PICTURE)),
            "pixels": mx.array(pixels),
            "embeddings": embeddings,
            "tokens": mx.array(tokens, mx.int32),
            "positions": mx.array(POSITIONS, mx.int32),
            "logits": logits(model, config, tokens, embeddings)[mx.array(POSITIONS)],
        }
        assert 0.1 < np.array(embeddings).std() < 10, np.array(embeddings).std()
        bytes_ = (folder / "model.safetensors").read_bytes()
        path = pathlib.Path(out) / f"{name}-images.safetensors"
        mx.save_safetensors(str(path), tensors, dict(pins, crc32=str(zlib.crc32(bytes_))))
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
