"""Measures a running `mlxcel serve`: python3 benches/serve/load.py URL MODE [...]

clients N [TOKENS]   total decode rate of N clients at once
beside TOKENS        time to the first token of a short prompt beside a prompt of TOKENS tokens
prefix TOKENS        time to the first token of a prompt of TOKENS tokens, new and cached
storm REQUESTS MOST  REQUESTS random requests of up to MOST tokens from 16 clients, a fifth of which leave

Random-weights models are fine: prompts are token ids, end tokens are ignored. Standard library only.
"""

import http.client
import json
import random
import sys
import threading
import time
from urllib.parse import urlsplit

HOST = urlsplit(sys.argv[1]).netloc


def tokens(count, seed):
    source = random.Random(seed)
    return [source.randrange(1000, 100000) for _ in range(count)]


def stream(prompt, max_tokens, leave=None):
    """Status, seconds to the first token and to the last, tokens; leaves after `leave` seconds."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True,
            "temperature": 0, "logprobs": 0}
    start, first, count, last = time.monotonic(), None, 0, None
    connection = http.client.HTTPConnection(HOST, timeout=900)
    connection.request("POST", "/v1/completions", json.dumps(body))
    if leave == 0:
        connection.close()
        return 0, None, None, 0
    response = connection.getresponse()
    if response.status != 200:
        error = json.loads(response.read())["error"]
        connection.close()
        return response.status, error["code"], None, 0
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                return 599, event["error"]["code"], None, count
            if event["choices"] and event["choices"][0]["logprobs"]:
                last = time.monotonic() - start
                first = first or last
                count += 1
                if leave:
                    break
    connection.close()
    return 200, first, last, count


def together(calls):
    results = [None] * len(calls)

    def run(index):
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return results


def clients(n, max_tokens):
    results = together([lambda i=i: stream(tokens(8, i), max_tokens) for i in range(n)])
    begin = max(first for _, first, _, _ in results)
    end = min(last for _, _, last, _ in results)
    rate = sum(count / (last - first) for _, first, last, count in results)
    print(f"{n} clients: {rate:.1f} tok/s in all (decoding together for {end - begin:.1f} s)")


def beside(count):
    long = threading.Thread(target=stream, args=(tokens(count, 1), 1))
    long.start()
    for wait in (1.0, 3.0):
        time.sleep(wait)
        _, first, _, _ = stream(tokens(16, int(wait)), 4)
        print(f"short prompt beside {count} tokens: first token after {first:.2f} s")
    start = time.monotonic()
    long.join()
    print(f"(the long one went on for {time.monotonic() - start:.1f} s)")


def prefix(count):
    prompt = tokens(count, 2)
    cold = stream(prompt, 1)[1]
    for _ in range(3):
        warm = stream(prompt, 1)[1]
        print(f"{count} tokens: first token after {cold:.2f} s, cached {warm:.3f} s: {cold / warm:.0f} x")


def storm(requests, most):
    seen, lock, source = {}, threading.Lock(), random.Random(3)
    jobs = [(source.choice([1, 1, 1, 4, 16]), source.random(), source.random()) for _ in range(requests)]

    def client():
        while True:
            with lock:
                if not jobs:
                    return
                scale, size, left = jobs.pop()
            count = 1 + int(size ** 3 * most * scale / 16)
            leave = None if left > 0.2 else 0 if left > 0.1 else 1
            while True:
                try:
                    status, code, _, _ = stream(tokens(count, count), 1 + count % 8, leave)
                except OSError as error:
                    status, code = type(error).__name__, None
                if status != 503 or code != "queue_full":
                    break
                time.sleep(0.05)
            with lock:
                key = f"{status} {code}" if status != 200 else "200"
                seen[key] = seen.get(key, 0) + 1

    threads = [threading.Thread(target=client) for _ in range(16)]
    start = time.monotonic()
    [t.start() for t in threads]
    [t.join() for t in threads]
    print(f"{requests} requests in {time.monotonic() - start:.0f} s: {seen}")
    time.sleep(1)
    connection = http.client.HTTPConnection(HOST)
    connection.request("GET", "/v1/memory")
    memory = json.loads(connection.getresponse().read())
    print({key: memory[key] for key in ("limit_bytes", "weights_bytes", "kv", "prompt_cache", "measured")})


if __name__ == "__main__":
    arguments = [int(a) for a in sys.argv[3:]]
    {"clients": lambda n, t=48: clients(n, t), "beside": beside, "prefix": prefix,
     "storm": storm}[sys.argv[2]](*arguments)
