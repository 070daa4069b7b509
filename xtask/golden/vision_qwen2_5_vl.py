"""Goldens of Qwen 2.5 VL: vision_qwen2_5_vl.py CHECKPOINTS GOLDENS NAME, called by `cargo xtask golden`.

GOLDENS/NAME-images.safetensors holds, for two pictures I and the checkpoints of each VARIANT:

picture.I             [height, width, 3] u8
pixels.I              [3, height, width] transformers' processor (Pillow) on the picture, its patches
                                         put back where they were
VARIANT.embeddings.I  [rows, hidden]     mlx-vlm's encoder on those patches
tokens                [n] i32            a prompt with a place for each
positions             [p] i32            rows of that prompt
VARIANT.logits        [p, vocab]         mlx-vlm's language model on the prompt with the images, at those rows

A token sees what comes before it, so that rows before the second image are those of a prompt with one.
"""

import json
import pathlib
import sys
import zlib

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_vlm.models.qwen2_5_vl import qwen2_5_vl
from mlx_vlm.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pictures import picture
from pinned import versions

# Pillow 13 begins with the columns where they shrink more; these sizes it resizes as older ones do.
PICTURES = ((85, 155), (128, 128))
TEXT_TOKENS = (7, 5, 11)
VARIANTS = ("f32", "q4")


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    parts = {
        "text_config": TextConfig.from_dict(config),
        "vision_config": VisionConfig.from_dict(config["vision_config"]),
    }
    names = ("model_type", "vocab_size", "image_token_id", "vision_start_token_id", "video_token_id")
    model = qwen2_5_vl.Model(ModelConfig(**parts, **{name: config[name] for name in names}))
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


def prepare(config, image):
    """Patches, grid, and the pixels that the patches came from."""
    vision = config["vision_config"]
    patch, merge = vision["patch_size"], vision["spatial_merge_size"]
    square = (patch * merge) ** 2
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=vision["temporal_patch_size"],
        size={"shortest_edge": 4 * square, "longest_edge": 1280 * square},
    )
    prepared = processor(Image.fromarray(image), return_tensors="np")
    patches, grid = prepared["pixel_values"], prepared["image_grid_thw"]
    _, height, width = grid[0].tolist()
    shape = (height // merge, width // merge, merge, merge, 3, -1, patch, patch)
    planes = patches.reshape(shape)[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
    return patches, grid, planes.reshape(3, height * patch, width * patch)


def prompt(config, rows):
    rng = np.random.default_rng(9)
    tokens = rng.integers(1, 500, TEXT_TOKENS[0]).tolist()
    for count, text in zip(rows, TEXT_TOKENS[1:]):
        image = [config["image_token_id"]] * count
        tokens += [config["vision_start_token_id"], *image, config["vision_end_token_id"]]
        tokens += rng.integers(1, 500, text).tolist()
    return np.array(tokens)


def kept(rows):
    """Rows around the borders of the images and within them, and the last ones."""
    first = TEXT_TOKENS[0] + 1
    second = first + rows[0] + 1 + TEXT_TOKENS[1] + 1
    end = second + rows[1]
    around = [0, 6, first - 1, first, first + 1, first + rows[0] // 2, second - 7, second - 6]
    return [*around, second - 1, second, second + 100, *range(end - 1, end + 1 + TEXT_TOKENS[2])]


def main(checkpoints, out, name):
    tensors, metadata = {}, versions()
    for variant in VARIANTS:
        folder = pathlib.Path(checkpoints) / name / variant
        model, config = load(folder)
        prepared = [prepare(config, picture(*size)) for size in PICTURES]
        patches = mx.array(np.concatenate([patches for patches, _, _ in prepared]))
        grids = mx.array(np.concatenate([grid for _, grid, _ in prepared]))
        embeddings = model.vision_tower(patches, grids)
        rows = [int(grid.prod()) // 4 for _, grid, _ in prepared]
        tokens = prompt(config, rows)
        positions = kept(rows)
        inputs = mx.array(tokens)[None]
        features = model.get_input_embeddings(inputs, patches, image_grid_thw=grids)
        logits = model.language_model(
            inputs, features.inputs_embeds, position_ids=features.position_ids
        ).logits[0]
        split = mx.split(embeddings, [rows[0]])
        for index, (size, (_, _, pixels)) in enumerate(zip(PICTURES, prepared)):
            tensors[f"picture.{index}"] = mx.array(picture(*size))
            tensors[f"pixels.{index}"] = mx.array(pixels)
            tensors[f"{variant}.embeddings.{index}"] = split[index]
        tensors["tokens"] = mx.array(tokens, mx.int32)
        tensors["positions"] = mx.array(positions, mx.int32)
        tensors[f"{variant}.logits"] = logits[mx.array(positions)]
        spread = np.array(embeddings).std()
        assert 0.1 < spread < 10, spread
        bytes_ = (folder / "model.safetensors").read_bytes()
        metadata[f"{variant}.crc32"] = str(zlib.crc32(bytes_))
    path = pathlib.Path(out) / f"{name}-images.safetensors"
    mx.save_safetensors(str(path), tensors, metadata)
    print(path.name, path.stat().st_size, "bytes", rows, "rows", len(tokens), "tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
