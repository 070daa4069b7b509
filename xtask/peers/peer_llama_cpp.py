"""Speed of llama.cpp on a random-weights model of a config.json's shape.

    python peer_llama_cpp.py CONFIG.json --type q4_0 --prompt 512 --decode 32 --threads 2

Needs `llama-cpp-python` and `gguf`. Writes a GGUF file of random weights beside other temporary
files once per shape and type (as `llama-quantize` would: a tied head in Q6_K beside Q4_0), then
times prompt processing and decoding through the C API. Prints one JSON object.
"""

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time

import gguf
import llama_cpp
import llama_cpp.llama_cpp as ll
import numpy as np

Q = gguf.GGMLQuantizationType


def random_tensor(rng, rows, cols, kind):
    """Bytes of a random matrix, and its GGML type."""
    if kind == "f16":
        return (rng.standard_normal((rows, cols), dtype=np.float32) * 0.02).astype(np.float16), Q.F16
    if kind == "q4_0":
        blocks = np.empty((rows, cols // 32, 18), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.005).tobytes(), np.uint8)
        blocks[..., 2:] = rng.integers(0, 256, blocks[..., 2:].shape, np.uint8)
        return blocks.reshape(rows, -1), Q.Q4_0
    if kind == "q6_k":
        blocks = rng.integers(0, 256, (rows, cols // 256, 210), np.uint8)
        blocks[..., 192:208] = 16
        blocks[..., 208:] = np.frombuffer(np.float16(0.0001).tobytes(), np.uint8)
        return blocks.reshape(rows, -1), Q.Q6_K
    if kind == "q8_0":
        blocks = rng.integers(0, 256, (rows, cols // 32, 34), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.0005).tobytes(), np.uint8)
        return blocks.reshape(rows, -1), Q.Q8_0
    raise SystemExit(f"unknown type {kind}")


def head_kind(kind, cols):
    """What llama-quantize gives the head: Q6_K where its super-blocks of 256 divide the rows."""
    if kind != "q4_0":
        return kind
    return "q6_k" if cols % 256 == 0 else "q8_0"


def write_model(config, kind, path):
    arch = {"llama": "llama", "qwen2": "qwen2"}[config["model_type"]]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    kv, inter, vocab = config["num_key_value_heads"], config["intermediate_size"], config["vocab_size"]
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, arch)
    w.add_vocab_size(vocab)
    w.add_tokenizer_model("no_vocab")
    w.add_context_length(65536)
    w.add_embedding_length(hidden)
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(inter)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_rope_dimension_count(dim)
    w.add_rope_freq_base(config.get("rope_theta", 10000.0))
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])

    def matrix(name, rows, cols, k=kind):
        data, ty = random_tensor(rng, rows, cols, k)
        w.add_tensor(name, data, raw_dtype=ty)

    def vector(name, n):
        w.add_tensor(name, np.ones(n, np.float32))

    matrix("token_embd.weight", vocab, hidden, head_kind(kind, hidden))
    vector("output_norm.weight", hidden)
    if not config.get("tie_word_embeddings"):
        matrix("output.weight", vocab, hidden, head_kind(kind, hidden))
    for i in range(config["num_hidden_layers"]):
        b = f"blk.{i}."
        vector(b + "attn_norm.weight", hidden)
        vector(b + "ffn_norm.weight", hidden)
        matrix(b + "attn_q.weight", heads * dim, hidden)
        matrix(b + "attn_k.weight", kv * dim, hidden)
        matrix(b + "attn_v.weight", kv * dim, hidden)
        matrix(b + "attn_output.weight", hidden, heads * dim)
        if arch == "qwen2":
            for side, n in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
                w.add_tensor(b + f"attn_{side}.bias", np.zeros(n, np.float32))
        matrix(b + "ffn_gate.weight", inter, hidden)
        matrix(b + "ffn_up.weight", inter, hidden)
        matrix(b + "ffn_down.weight", hidden, inter)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def feed(ctx, tokens):
    array = (ll.llama_token * len(tokens))(*tokens)
    if ll.llama_decode(ctx, ll.llama_batch_get_one(array, len(tokens))) != 0:
        raise SystemExit("llama_decode failed")


def timed(body, repetitions):
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("config")
    p.add_argument("--type", default="q4_0")
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--decode", type=int, default=32)
    p.add_argument("--depth", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repetitions", type=int, default=3)
    p.add_argument("--no-mmap", action="store_true")
    a = p.parse_args()
    with open(a.config) as f:
        config = json.load(f)
    name = f"peer-{config['model_type']}-{config['hidden_size']}x{config['num_hidden_layers']}-{a.type}.gguf"
    path = os.path.join(tempfile.gettempdir(), name)
    if not os.path.exists(path):
        write_model(config, a.type, path + ".part")
        os.rename(path + ".part", path)

    silent = ll.llama_log_callback(lambda *_: None)
    ll.llama_log_set(silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    loading = ll.llama_model_default_params()
    loading.use_mmap = not a.no_mmap
    model = ll.llama_model_load_from_file(path.encode(), loading)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    params = ll.llama_context_default_params()
    params.n_ctx = a.depth + a.prompt + a.decode + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = a.threads
    params.offload_kqv = False
    ctx = ll.llama_init_from_model(model, params)
    if not ctx:
        raise SystemExit("llama.cpp cannot make a context")
    memory = ll.llama_get_memory(ctx)
    tokens = [i * 7919 % config["vocab_size"] for i in range(max(a.prompt, 512))]

    def reset():
        ll.llama_memory_clear(memory, True)
        for start in range(0, a.depth, 512):
            feed(ctx, tokens[: min(512, a.depth - start)])

    result = {"peer": "llama.cpp", "version": llama_cpp.__version__, "type": a.type, "depth": a.depth}
    result["system"] = ll.llama_print_system_info().decode().strip(" |")
    feed(ctx, tokens[:8])

    def prefill():
        ll.llama_memory_clear(memory, True)
        feed(ctx, tokens[: a.prompt])

    def decode():
        for token in tokens[: a.decode]:
            feed(ctx, [token])
            ll.llama_get_logits_ith(ctx, -1)

    if a.prompt:
        result["pp"] = a.prompt / timed(prefill, a.repetitions)
    if a.decode:
        times = []
        for _ in range(a.repetitions if a.depth == 0 else 1):
            reset()
            times.append(timed(decode, 1))
        result["tg"] = a.decode / statistics.median(times)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
