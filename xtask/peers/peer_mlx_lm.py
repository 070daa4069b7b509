"""Speed of mlx-lm on its CPU backend, on a checkpoint folder.

    python peer_mlx_lm.py DIR --prompt 16 --decode 4

Needs `mlx[cpu]` and `mlx-lm`. Prints one JSON object with tokens per second.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--prompt", type=int, default=16)
    p.add_argument("--decode", type=int, default=4)
    a = p.parse_args()
    model, _ = load_model(Path(a.folder))
    cache = make_prompt_cache(model)
    tokens = mx.array([[i * 7919 % 4096 for i in range(a.prompt)]])
    mx.eval(model(tokens[:, :1], cache=make_prompt_cache(model)))
    start = time.perf_counter()
    mx.eval(model(tokens, cache=cache))
    prompt_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(a.decode):
        mx.eval(model(tokens[:, :1], cache=cache))
    decode_seconds = time.perf_counter() - start
    result = {"peer": "mlx-lm", "version": version("mlx-lm"), "pp": a.prompt / prompt_seconds}
    print(json.dumps(result | {"tg": a.decode / decode_seconds}))


if __name__ == "__main__":
    main()
