"""Goldens of Llama 3.2 Vision: vision_mllama.py CHECKPOINTS GOLDENS NAME, called by `cargo xtask golden`.

GOLDENS/NAME-images.safetensors holds, for two pictures I, the prompts P and the checkpoints of each VARIANT:

picture.I         [height, width, 3] u8
pixels.I          [3, height, width] transformers' processor (Pillow) on the picture, its tiles put together
f32.embeddings.I  [rows, hidden]     mlx-vlm's encoder and projector on those tiles
P.tokens          [n] i32            a prompt with a place for each picture
VARIANT.P.logits  [n, vocab]         mlx-vlm's language model on the prompt with the images

`apart` has text before, between and behind the images, `together` begins with both. Which token sees which
tiles is transformers' (`processing_mllama`).
"""

import json
import pathlib
import sys
import zlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.mllama import mllama
from mlx_vlm.models.mllama.config import ModelConfig, TextConfig, VisionConfig
from PIL import Image
from transformers.models.mllama import processing_mllama as processing
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from pictures import picture
from pinned import versions

# On one tile and on three of four.
PICTURES = ((100, 70), (90, 250))
TEXT_TOKENS = (7, 5, 11)
VARIANTS = ("f32", "q4")


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    vision = dict(config["vision_config"])
    vision["num_attention_heads"] = vision["attention_heads"]
    parts = {
        "text_config": TextConfig.from_dict(config["text_config"]),
        "vision_config": VisionConfig.from_dict(vision),
    }
    names = ("model_type", "vocab_size", "image_token_index")
    model = mllama.Model(ModelConfig(**parts, **{name: config[name] for name in names}))
    weights = mx.load(str(folder / "model.safetensors"))
    weights = model.vision_tower.sanitize(model.sanitize(weights))
    if quantization := config.get("quantization"):
        nn.quantize(
            model,
            quantization["group_size"],
            quantization["bits"],
            class_predicate=lambda path, _: f"{path}.scales" in weights,
        )
    model.load_weights(list(weights.items()))
    model.set_dtype(mx.float32)
    return model, config


def prepare(folder, config):
    """Tiles of both pictures, and the pixels of each put together."""
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    names = ("size", "resample", "rescale_factor", "image_mean", "image_std", "max_image_tiles")
    processor = MllamaImageProcessorPil(**{name: stated[name] for name in names})
    images = [Image.fromarray(picture(*size)) for size in PICTURES]
    prepared = processor([images], return_tensors="np")
    ratios = config["vision_config"]["supported_aspect_ratios"]
    pixels = []
    for tiles, ratio in zip(prepared["pixel_values"][0], prepared["aspect_ratio_ids"][0]):
        down, right = ratios[ratio - 1]
        shown = tiles[: down * right].reshape(down, right, *tiles.shape[1:])
        _, _, _, height, width = shown.shape
        planes = shown.transpose(2, 0, 3, 1, 4)
        pixels.append(planes.reshape(3, down * height, right * width))
    return prepared, pixels


def prompts(config):
    rng = np.random.default_rng(9)
    image = [config["image_token_index"]]
    text = [rng.integers(1, 500, count).tolist() for count in TEXT_TOKENS]
    return {
        "apart": text[0] + image + text[1] + image + text[2],
        "together": image + image + text[2],
    }


def logits(model, prepared, tokens, states):
    config = model.config
    spans = processing.get_cross_attention_token_mask(tokens, config.image_token_index)
    dense = processing.convert_sparse_cross_attention_mask_to_dense(
        [spans], prepared["num_tiles"], config.vision_config.max_num_tiles, len(tokens)
    )
    rows = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    mask, behind = model._prepare_cross_attention_mask(mx.array(dense), rows)
    return model.language_model(
        mx.array(tokens)[None],
        cross_attention_states=states.reshape(1, -1, states.shape[-1]),
        cross_attention_mask=mask,
        full_text_row_masked_out_mask=behind,
    ).logits[0]


def main(checkpoints, out, name):
    tensors, metadata = {}, versions()
    for variant in VARIANTS:
        folder = pathlib.Path(checkpoints) / name / variant
        model, config = load(folder)
        prepared, pixels = prepare(folder, config)
        arrays = [mx.array(prepared[key]) for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")]
        hidden = model.vision_tower(*arrays)
        states = model.multi_modal_projector(hidden)[0]
        spread = np.array(states).std()
        assert 0.1 < spread < 10, spread
        for prompt, tokens in prompts(config).items():
            tensors[f"{prompt}.tokens"] = mx.array(tokens, mx.int32)
            tensors[f"{variant}.{prompt}.logits"] = logits(model, prepared, tokens, states)
        if variant == "f32":
            for index, size in enumerate(PICTURES):
                tensors[f"picture.{index}"] = mx.array(picture(*size))
                tensors[f"pixels.{index}"] = mx.array(pixels[index])
                tensors[f"f32.embeddings.{index}"] = states[index].reshape(-1, states.shape[-1])
        bytes_ = (folder / "model.safetensors").read_bytes()
        metadata[f"{variant}.crc32"] = str(zlib.crc32(bytes_))
    path = pathlib.Path(out) / f"{name}-images.safetensors"
    mx.save_safetensors(str(path), tensors, metadata)
    print(path.name, path.stat().st_size, "bytes", prepared["num_tiles"], "tiles")


if __name__ == "__main__":
    main(*sys.argv[1:])
