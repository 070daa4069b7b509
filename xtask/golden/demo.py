"""Golden of the demo model: demo.py MODEL GOLDENS, called by `cargo xtask golden`.

Writes GOLDENS/demo.json: a prompt, its tokens, and the greedy continuation that mlx-lm
computes in fp32 (tokens and text). Also records the smallest distance between the best and
the second-best logit on the way: an implementation within that distance must agree.
"""

import json
import pathlib
import sys

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from pinned import versions

PROMPT = "Once upon a time"
TOKENS = 200


def greedy(model, prompt):
    cache = make_prompt_cache(model)
    feed, produced, margin = mx.array(prompt), [], float("inf")
    while len(produced) < TOKENS:
        logits = model(feed[None], cache=cache)[0, -1]
        second, first = mx.sort(logits)[-2:].tolist()
        margin = min(margin, first - second)
        produced.append(mx.argmax(logits).item())
        feed = mx.array(produced[-1:])
    return produced, margin


def main(folder, out):
    pins = versions()
    model, tokenizer = load(folder)
    model.set_dtype(mx.float32)
    prompt = tokenizer.encode(PROMPT)
    tokens, margin = greedy(model, prompt)
    golden = {
        **pins,
        "prompt": PROMPT,
        "prompt_tokens": prompt,
        "tokens": tokens,
        "text": tokenizer.decode(tokens),
        "smallest_margin": margin,
    }
    path = pathlib.Path(out) / "demo.json"
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path.name, "smallest margin", margin)


if __name__ == "__main__":
    main(*sys.argv[1:])
