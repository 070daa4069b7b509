"""Puts rows of logits through mlx-lm's sampling steps and writes `sampling.json`.

Run with mlx-lm 0.32.2 installed:

    python sampling.py

`kept` are the ids of the candidates, ascending, `logits` the row after bias and penalties. Rows
have no two equal logits, so that the outcome does not depend on how a partition orders ties.
"""

import json
import math
import random
from pathlib import Path

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
)

mx.set_default_device(mx.cpu)
RANDOM = random.Random(20_240_501)


def row(vocab_size, spread):
    values = [round(RANDOM.gauss(0, spread), 3) for _ in range(vocab_size)]
    seen = set()
    for index, value in enumerate(values):
        while value in seen:
            value = round(value + 0.001, 3)
        seen.add(value)
        values[index] = value
    return values


def kept(logits, top_p=None, min_p=None, top_k=None):
    """The steps and the order of `mlx_lm.sample_utils.make_sampler`."""
    x = mx.array([logits], mx.float32)
    x = x - mx.logsumexp(x, keepdims=True)
    if top_p is not None:
        x = apply_top_p(x, top_p)
    if min_p is not None:
        x = apply_min_p(x, min_p)
    if top_k is not None:
        x = apply_top_k(x, top_k)
    return [index for index, value in enumerate(x[0].tolist()) if value != -math.inf]


def filters():
    for vocab_size, spread in [(20, 1.0), (300, 2.0), (300, 5.0)]:
        for options in [
            {"top_p": 0.9},
            {"top_p": 0.5},
            {"top_p": 0.05},
            {"min_p": 0.1},
            {"min_p": 0.9},
            {"top_k": 1},
            {"top_k": 7},
            {"top_p": 0.95, "top_k": 10},
            {"top_p": 0.6, "min_p": 0.02},
            {"top_p": 0.8, "min_p": 0.05, "top_k": 5},
            {"min_p": 0.01, "top_k": 19},
        ]:
            logits = row(vocab_size, spread)
            yield {"logits": logits, "options": options, "kept": kept(logits, **options)}


def penalties():
    for options in [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.3, "repetition_context_size": 4},
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.3},
        {"logit_bias": {3: 5.0, 11: -100.0}},
        {
            "repetition_penalty": 1.1,
            "presence_penalty": 0.25,
            "frequency_penalty": -0.5,
            "presence_context_size": 12,
            "frequency_context_size": 12,
            "logit_bias": {2: -1.5},
        },
    ]:
        logits = row(16, 2.0)
        history = [RANDOM.randrange(16) for _ in range(30)]
        x = mx.array([logits], mx.float32)
        for processor in make_logits_processors(**options):
            x = processor(mx.array(history), x)
        yield {
            "logits": logits,
            "history": history,
            "options": options,
            "penalised": x[0].tolist(),
            "logprobs": (x - mx.logsumexp(x, keepdims=True))[0].tolist(),
        }


def main():
    goldens = {"filters": list(filters()), "penalties": list(penalties())}
    text = json.dumps(goldens).replace("}, {", "},\n{")
    (Path(__file__).parent / "sampling.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
