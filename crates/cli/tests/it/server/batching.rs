//! A completion depends neither on other requests nor on the prompt cache.

use std::io::{Read, Write};
use std::time::Instant;

use serde_json::{Value, json};

use super::support::{Response, Server, post};

/// A prompt of 300 tokens or more, so that whole blocks can be shared.
fn tale(number: usize) -> String {
    let beginning =
        format!("Tale {number}. Once upon a time there was a king who had {number} sons. ");
    let middle = "He said to them: go out into the world, and whoever comes back with the finest \
        ring shall have my kingdom. So they went out, the eldest to the east and the youngest to \
        the west, and they walked until the evening came. ";
    let more = if number < 6 { number % 3 * 5 } else { 0 };
    beginning + &middle.repeat(5 + more)
}

fn body(prompt: &str, max_tokens: usize) -> Value {
    json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true })
}

fn cached_tokens(reply: &Response) -> u64 {
    reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn prompt_tokens(reply: &Response) -> u64 {
    reply.json()["usage"]["prompt_tokens"].as_u64().unwrap()
}

/// Completions of `prompts` that are requested at the same time.
fn together(server: &Server, prompts: &[String]) -> Vec<String> {
    std::thread::scope(|scope| {
        let ask = |prompt: &String| {
            let body = body(prompt, 24);
            scope.spawn(move || server.complete(&body).text())
        };
        let threads: Vec<_> = prompts.iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Alone, batched, and over a cached prefix, with the default activations, in every cache mode; more
/// completions than the kernels decode at once, and prompts of one, two and three blocks.
#[test]
fn the_text_is_the_same_alone_batched_and_cached() {
    const MODES: [&str; 7] =
        ["fp16", "int8", "fp16+turbo4", "fp16+turbo3", "int8+turbo4", "turbo4", "turbo4-delegated"];
    let prompts: Vec<String> = (0..10).map(tale).collect();
    for mode in MODES {
        let start = |cache| {
            let flags =
                ["--parallel", "10", "--kv-cache-mode", mode, "--prompt-cache-bytes", cache];
            Server::with(1024, &flags, &[])
        };
        let plain = start("0");
        let new: Vec<Response> =
            prompts.iter().map(|prompt| plain.complete(&body(prompt, 24))).collect();
        let alone: Vec<String> = new.iter().map(Response::text).collect();
        assert_eq!(together(&plain, &prompts), alone, "{mode}: batched");
        assert_eq!(plain.metric("cached_prompt_tokens_total"), 0);
        drop(plain);

        let cached = start("64MiB");
        for number in [3, 4, 5] {
            let prompt = &prompts[number];
            let part = cached.complete(&body(&prompt[..prompt.len() * 2 / 3], 1));
            // All of the part of the prompt, except a word that was cut in two; then all tokens except
            // the last one, which is computed for its logits.
            let (part, all) = (prompt_tokens(&part), prompt_tokens(&new[number]));
            for hit in [part - 2..part + 1, all - 1..all] {
                let reply = cached.complete(&body(prompt, 24));
                assert!(hit.contains(&cached_tokens(&reply)), "{mode}: {hit:?} {reply:?}");
                assert_eq!(reply.text(), alone[number], "{mode}: {hit:?} tokens cached");
            }
        }
        assert!(cached.metric("prompt_cache_bytes") > 0);
        // Batched, each over a prefix.
        let found = together(&cached, &prompts[3..6]);
        assert_eq!(found, alone[3..6], "{mode}: cached and batched");
    }
}

/// A turn continues from the cached prompt of the turn before. The completion between them is read as
/// part of the prompt, so that its decode steps do not matter.
#[test]
fn a_conversation_continues_from_its_last_prompt() {
    let mut messages = vec![json!({ "role": "user", "content": tale(1) })];
    let mut turns = Vec::new();
    let ask = |server: &Server, messages: &[Value]| {
        let body = json!({ "messages": messages, "max_tokens": 20, "temperature": 0,
            "ignore_eos": true, "logprobs": true, "top_logprobs": 3 });
        let reply = server.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply
    };
    let server = Server::with(1024, &["--prompt-cache-bytes", "64MiB"], &[]);
    let mut read = 0;
    for _ in 0..3 {
        let reply = ask(&server, &messages);
        // The last token of a prompt may merge with the text that follows it.
        let cached = cached_tokens(&reply);
        assert!(cached + 2 >= read && cached < prompt_tokens(&reply), "{cached} of {read}");
        read = prompt_tokens(&reply);
        turns.push((messages.clone(), reply.json()["choices"].clone()));
        messages.push(reply.json()["choices"][0]["message"].clone());
        messages.push(json!({ "role": "user", "content": "And what did the youngest say?" }));
    }
    drop(server);
    let plain = Server::with(1024, &["--prompt-cache-bytes", "0"], &[]);
    for (messages, choices) in turns {
        assert_eq!(ask(&plain, &messages).json()["choices"], choices, "to the bit");
    }
}

/// The MLX kernel set copies what the host set shares; the text is the same.
#[test]
fn the_mlx_kernel_set_uses_prefixes_too() {
    let server = Server::with(512, &["--parallel", "2"], &[("MLXCEL_KERNELS", "mlx")]);
    let first = server.complete(&body(&tale(3), 4)).text();
    let again = server.complete(&body(&tale(3), 4));
    assert_eq!(cached_tokens(&again), prompt_tokens(&again) - 1);
    assert_eq!(again.text(), first);
}

#[test]
fn a_cancelled_request_frees_its_blocks() {
    let server = Server::with(65536, &["--prompt-cache-bytes", "0", "--ctx-size", "65536"], &[]);
    let long =
        json!({ "prompt": "Once", "max_tokens": 60_000, "stream": true, "ignore_eos": true });
    let mut stream = server.connect();
    stream.write_all(post("/v1/completions", &long.to_string()).as_bytes()).unwrap();
    let mut buffer = [0; 2048];
    assert!(stream.read(&mut buffer).unwrap() > 0);
    // A client that waits for its whole response is noticed too.
    let mut whole = long;
    whole["stream"] = json!(false);
    let mut silent = server.connect();
    silent.write_all(post("/v1/completions", &whole.to_string()).as_bytes()).unwrap();
    server.wait_until("running", |server| server.metric("requests_running") == 2);
    assert!(server.metric("kv_used_bytes") > 0 && server.metric("kv_reserved_bytes") > 300 << 20);
    drop((stream, silent));
    server.wait_until("free of blocks", |server| {
        server.metric("kv_used_bytes") + server.metric("kv_reserved_bytes") == 0
    });
    assert_eq!(server.metric("requests_cancelled_total"), 2);
    server.terminate();
}

/// A short prompt is completed while a long one is read.
#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let server = Server::with(16384, &["--ctx-size", "16384"], &[]);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| {
            server.complete(&json!({ "prompt": vec![5; 8000], "max_tokens": 1 }));
            Instant::now()
        });
        server.wait_until("running", |server| server.metric("requests_running") > 0);
        server.complete(&body("Once upon a time", 4)).text();
        let short = Instant::now();
        assert!(short < long.join().unwrap(), "the short one came last");
    });
}

#[test]
fn shutdown_finishes_running_requests() {
    let server = Server::start(&[]);
    let mut stream = server.connect();
    let request =
        json!({ "prompt": "Once", "max_tokens": 300, "stream": true, "ignore_eos": true });
    stream.write_all(post("/v1/completions", &request.to_string()).as_bytes()).unwrap();
    let mut buffer = [0; 64];
    assert!(stream.read(&mut buffer).unwrap() > 0);
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}
