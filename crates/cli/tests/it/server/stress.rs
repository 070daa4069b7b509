//! Many clients with requests of all sizes under a tight memory limit: every request gets a completion
//! or a proper error, and at the end no memory is held.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Server, parse, post};

const CLIENTS: usize = 16;
/// Memory limit of the server, the process and the mapped weights included.
const LIMIT_BYTES: u64 = 128 << 20;

/// Outcome of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Completed,
    Refused,
    Left,
    Full,
}

fn storm(requests: usize) {
    let flags = [
        "--ctx-size",
        "131072",
        "--parallel",
        "8",
        "--max-queue-depth",
        "6",
        "--prompt-cache-bytes",
        "8MiB",
    ];
    let limit = LIMIT_BYTES.to_string();
    let server = Server::with(131_072, &flags, &[("MLXCEL_MEMORY_LIMIT", &limit)]);
    let idle = server.get("/v1/memory").json();
    let next = AtomicUsize::new(0);
    let completed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= requests {
                        break;
                    }
                    let outcome = loop {
                        match one(&server, number) {
                            Outcome::Full => std::thread::sleep(Duration::from_millis(20)),
                            other => break other,
                        }
                    };
                    if outcome == Outcome::Completed {
                        completed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    server.wait_until_idle();
    assert!(completed.load(Ordering::SeqCst) > requests / 4, "{completed:?} of {requests}");
    assert_idle(&server, &idle);
    // Peak of the process as the system counts it, pages of the mapped weights included.
    #[cfg(target_os = "linux")]
    {
        let peak = server.peak_resident_bytes();
        eprintln!("{requests} requests: {peak} bytes at the most, of {LIMIT_BYTES}");
        assert!(peak <= LIMIT_BYTES + LIMIT_BYTES / 20, "{peak} bytes of {LIMIT_BYTES}");
    }
    assert_eq!(server.metric("requests_aborted_total"), 0, "the estimate held");
    assert!(server.metric("prompt_cache_bytes") <= 8 << 20);
    server.terminate();
}

/// All counts of bytes are back at their start, except cached prefixes, which are all that is held.
fn assert_idle(server: &Server, idle: &Value) {
    // The bytes of an abandoned connection are freed when the server notices.
    server.wait_until("free of requests", |server| server.metric("intake_bytes") == 0);
    let now = server.get("/v1/memory").json();
    for account in ["used_bytes", "reserved_bytes"] {
        assert_eq!(now["kv"][account], idle["kv"][account], "{account}");
    }
    assert_eq!(now["kv"]["shared_bytes"], now["prompt_cache"]["bytes"]);
    assert_eq!((&now["scratch_bytes"], &now["requests"]), (&json!(0), &json!([])));
    assert_eq!(server.metric("kv_used_bytes") + server.metric("kv_reserved_bytes"), 0);
}

/// One request of some length. Most of the length is reserved for a completion that stops early, so
/// that time goes into admission, not into arithmetic.
fn one(server: &Server, number: usize) -> Outcome {
    let mix = number.wrapping_mul(2_654_435_761) >> 7;
    let length = if mix.is_multiple_of(8) { 1000 + mix % 2000 } else { 1 + mix % 400 };
    let prompt: Vec<usize> = (0..length).map(|i| (i * 31 + mix % 3) % 4000 + 1).collect();
    let max_tokens = if mix % 3 == 1 { 1 + mix % 120_000 } else { 1 + mix % 24 };
    let stream = mix.is_multiple_of(3);
    let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "stream": stream,
        "stop": ["a", "e", "i", "o"] });
    let mut connection = server.connect();
    connection.write_all(post("/v1/completions", &body.to_string()).as_bytes()).unwrap();
    if mix.is_multiple_of(5) {
        // Leaves, sometimes after the first bytes.
        if mix.is_multiple_of(2) {
            let _ = connection.read(&mut [0; 16]);
        }
        return Outcome::Left;
    }
    let mut response = Vec::new();
    connection.read_to_end(&mut response).unwrap();
    let reply = parse(&response);
    match reply.status {
        200 if stream => assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}"),
        200 => assert!(!reply.json()["choices"].as_array().unwrap().is_empty()),
        413 => assert_eq!(reply.error(413)["code"], "prefill_memory_exceeded"),
        400 => assert_eq!(reply.error(400)["code"], "context_length_exceeded"),
        503 => assert_eq!(reply.error(503)["code"], "queue_full"),
        other => panic!("{other}: {reply:?}"),
    }
    match reply.status {
        200 => Outcome::Completed,
        503 => Outcome::Full,
        _ => Outcome::Refused,
    }
}

/// A body of millions of tiny values takes memory that no estimate counts: the newest request is
/// aborted at the limit, and later ones are served.
#[test]
fn the_newest_request_is_aborted_at_the_limit() {
    let flags = ["--ctx-size", "32768", "--parallel", "2", "--prompt-cache-bytes", "0"];
    let server = Server::with(32768, &flags, &[("MLXCEL_MEMORY_LIMIT", "128MiB")]);
    let long = json!({ "prompt": "Once", "max_tokens": 8000, "ignore_eos": true, "stream": true });
    let values = vec!["0"; 2_000_000].join(",");
    let body = format!("{{\"prompt\": \"a\", \"chat_template_kwargs\": {{\"a\": [{values}]}}}}");
    let greedy = post("/v1/completions", &body);
    let reply = std::thread::scope(|scope| {
        let reply = scope.spawn(|| server.complete(&long));
        server.wait_until("running", |server| server.metric("requests_running") > 0);
        let start = Instant::now();
        while !reply.is_finished() && start.elapsed() < Duration::from_secs(60) {
            server.raw(greedy.as_bytes());
        }
        reply.join().unwrap()
    });
    assert!(reply.body.contains("\"code\":\"memory_pressure\""), "{:?}", server.get("/metrics"));
    assert!(!reply.body.contains("[DONE]"));
    assert_eq!(server.metric("requests_aborted_total"), 1);
    let short = json!({ "prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": true });
    server.wait_until("free again", |server| server.complete(&short).status != 503);
    assert_eq!(server.complete(&short).status, 200);
    server.wait_until_idle();
    assert_eq!(server.metric("kv_used_bytes") + server.metric("kv_reserved_bytes"), 0);
    server.terminate();
}

#[test]
fn hundreds_of_requests_under_a_limit() {
    storm(200);
}

#[test]
#[ignore = "needs minutes"]
fn thousands_of_requests_under_a_limit() {
    storm(2000);
}
