//! Requests that do not fit are refused with numbers, wait, or get a 507; none is cut short.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::support::{Server, model, post};

/// Limit for the whole process, whose own share differs between machines.
const LIMIT: (&str, &str) = ("MLXCEL_MEMORY_LIMIT", "128MiB");

#[test]
fn a_request_that_never_fits_is_refused_with_numbers() {
    let server = Server::with(131_072, &["--ctx-size", "131072"], &[LIMIT]);
    let ask = |tokens: u64, stream: bool| {
        let body =
            json!({ "prompt": "Once", "max_tokens": tokens, "ignore_eos": true, "stream": stream });
        server.complete(&body)
    };
    let refused = ask(100_000, true);
    assert!(!refused.head.contains("event-stream"), "before any header of a stream");
    let error = refused.error(413);
    assert_eq!(error["code"], "prefill_memory_exceeded");
    assert_eq!(error["limit_bytes"], 128 << 20);
    assert!(error["estimated_bytes"].as_u64().unwrap() > 100_000 * 3072);
    let most = error["max_context_tokens"].as_u64().unwrap();
    assert!((10_000..32_000).contains(&most), "{most}");
    assert_eq!(ask(most, false).error(413)["max_context_tokens"], most);
    assert_eq!(server.metric("requests_refused_total"), 2);
    // The longest that fits is admitted: its stream begins.
    let body =
        json!({ "prompt": "Once", "max_tokens": most - 1, "ignore_eos": true, "stream": true });
    let mut stream = server.connect();
    stream.write_all(post("/v1/completions", &body.to_string()).as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    // Another one of its size waits until the first is cancelled.
    let body = json!({ "prompt": "Once", "max_tokens": 9000, "stop": ["a", "e", "t"] });
    std::thread::scope(|scope| {
        let second = scope.spawn(|| server.complete(&body));
        server.wait_until("waiting", |server| server.metric("requests_waiting") > 0);
        drop(stream);
        assert_eq!(second.join().unwrap().status, 200);
    });
}

#[test]
fn a_full_queue_states_when_to_retry() {
    let flags = ["--parallel", "1", "--max-queue-depth", "0", "--ctx-size", "32768"];
    let server = Server::with(32768, &flags, &[]);
    let long =
        json!({ "prompt": "Once", "max_tokens": 30_000, "stream": true, "ignore_eos": true });
    let mut stream = server.connect();
    stream.write_all(post("/v1/completions", &long.to_string()).as_bytes()).unwrap();
    assert!(stream.read(&mut [0; 256]).unwrap() > 0);
    let refused = server.complete(&json!({ "prompt": "Once", "max_tokens": 1 }));
    assert_eq!(refused.error(503)["code"], "queue_full");
    assert!(refused.head.to_lowercase().contains("retry-after: 1"), "{}", refused.head);
    drop(stream);
    server.wait_until_idle();
    assert_eq!(server.complete(&json!({ "prompt": "Once", "max_tokens": 1 })).status, 200);
}

#[test]
fn a_vision_model_over_the_threshold_responds_with_507() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llava",
        "text_config": { "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
            "vocab_size": 1000, "max_position_embeddings": 512 },
        "vision_config": { "model_type": "clip_vision_model", "hidden_size": 64, "image_size": 28,
            "patch_size": 14, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 128 },
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let path = folder.path().to_str().unwrap();
    let flags = ["-m", path, "--vision-threshold", "0.0000001"];
    let strict = Command::new(env!("CARGO_BIN_EXE_mlxcel"))
        .args(["serve", "--port", "0", "--strict"])
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert_eq!(strict.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("exceeds 0% of system memory"), "{stderr}");
    let server = Server::only(&flags);
    for path in ["/v1/models", "/v1/memory", "/metrics", "/health"] {
        assert_eq!(server.get(path).error(507)["code"], "model_not_loaded", "{path}");
    }
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"] {
        server.post(path, &json!({})).error(507);
    }
    server.terminate();
}

#[test]
fn the_load_is_checked_with_completions_of_full_length() {
    let folder = model(131_072);
    let run = |flags: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_mlxcel"))
            .args(["serve", "--port", "0", "--estimate-memory", "-m"])
            .arg(folder.path())
            .args(flags)
            .env(LIMIT.0, LIMIT.1)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let output = run(&["--ctx-size", "8192", "--parallel", "8"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("DOES NOT FIT") && stderr.contains("mlxcel serve -m"), "{stderr}");
}

/// Bodies that arrive are part of the memory budget, and their sum is limited.
#[test]
fn bodies_are_counted_and_limited_while_they_arrive() {
    const BODY: usize = 4 << 20;
    let flags = ["--max-body-bytes", "4MiB", "--read-timeout", "120"];
    let server = Server::with(512, &flags, &[LIMIT]);
    let intake = || server.get("/v1/memory").json()["intake_bytes"].as_u64().unwrap();
    let until = |what: &str, done: &dyn Fn(u64) -> bool| {
        server.wait_until(what, |_| done(intake()));
    };
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n");
    let slow = || {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b' '; BODY - 1]).unwrap();
        stream
    };
    // A quarter of 128 MiB minus the weights holds seven of them.
    let clients: Vec<_> = (0..7).map(|_| slow()).collect();
    until("counted", &|bytes| bytes == 7 * (BODY as u64 - 1));
    assert_eq!(server.metric("intake_bytes"), 7 * (BODY as u64 - 1));
    let large = json!({ "prompt": " ".repeat(BODY - 100) });
    // There is room for a small one.
    assert_eq!(server.complete(&json!({ "prompt": "Once", "max_tokens": 1 })).status, 200);
    std::thread::scope(|scope| {
        // Another large one waits, and is read once the others are gone.
        let waiting = scope.spawn(|| server.complete(&large));
        let more = 7 * (BODY as u64 - 1);
        until("partly read", &|bytes| bytes > more);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished());
        drop(clients);
        assert_eq!(waiting.join().unwrap().error(400)["code"], "context_length_exceeded");
    });
    until("forgotten", &|bytes| bytes == 0);
    server.complete(&json!({ "prompt": "Once", "max_tokens": 1 })).text();

    // A single one larger than the limit of all.
    let server = {
        drop(server);
        Server::with(512, &["--max-body-bytes", "64MiB"], &[LIMIT])
    };
    let refused = server.complete(&json!({ "prompt": " ".repeat(16 << 20) }));
    assert_eq!(refused.error(413)["code"], "request_too_large");
}
