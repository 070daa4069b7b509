//! Malformed requests of a random generator: each gets a 4xx or a closed connection, and the next valid
//! one is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::{Server, post};

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
const VALUES: [&str; 16] = [
    "-1",
    "1e400",
    "99999999999999999999999",
    "\"x\"",
    "[]",
    "{}",
    "[[[]]]",
    "true",
    "-0.5",
    "1.5",
    "\"\\ud800\"",
    "NaN",
    "{\"a\": 1",
    "\"\\x\"",
    "[1, \"a\"]",
    "0x10",
];
const KEYS: [&str; 14] = [
    "prompt",
    "messages",
    "max_tokens",
    "n",
    "stop",
    "temperature",
    "top_p",
    "logit_bias",
    "logprobs",
    "stream",
    "seed",
    "stream_options",
    "unknown",
    "presence_penalty",
];
const PLACES: [&str; 8] = [
    "/../../etc/passwd",
    "/v1/../v1/models/x",
    "/%2e%2e/%2e%2e",
    "//v1//completions",
    "/v1/models/%00",
    "/\u{7f}",
    "/v1/completions/",
    "*",
];

/// One malformed request.
fn wrong(random: &mut Random) -> Vec<u8> {
    let path = random.of(&PATHS);
    let key = random.of(&KEYS);
    let value = random.of(&VALUES);
    match random.below(9) {
        // A wrong value, next to a field that is always wrong.
        0..3 => post(path, &format!("{{\"{key}\": {value}, \"nonsense\": 1}}")).into_bytes(),
        3 => post(path, &format!("{{\"{key}\": {value}").repeat(1 + random.below(40))).into_bytes(),
        4 => {
            let mut bytes = post(path, &"x".repeat(64)).into_bytes();
            let from = bytes.len() - 64;
            bytes[from..].fill_with(|| u8::try_from(random.below(256)).unwrap() | 0x80);
            bytes
        }
        5 => format!("GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", random.of(&PLACES))
            .into(),
        6 => {
            let headers = "X: y\r\n".repeat(200);
            format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into()
        }
        7 => format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            random.of(&["-5", "99999999999", "18446744073709551616", "1e3", "12 12"])
        )
        .into(),
        _ => (0..random.below(200))
            .map(|_| u8::try_from(random.below(256)).unwrap())
            .chain(*b"\r\n\r\n")
            .collect(),
    }
}

fn check(count: usize) {
    let server = Server::start(&["--max-body-bytes", "64KiB"]);
    let mut random = Random(20_261_120);
    for round in 0..count {
        let request = wrong(&mut random);
        let mut stream = server.connect();
        let _ = stream.write_all(&request);
        // Some clients close one half of the connection, some both.
        match random.below(4) {
            0 => drop(stream),
            _ => {
                let _ = stream.shutdown(Shutdown::Write);
                let mut response = Vec::new();
                let _ = stream.read_to_end(&mut response);
                let text = String::from_utf8_lossy(&response);
                let fine = response.is_empty() || text.starts_with("HTTP/1.1 4");
                let request = String::from_utf8_lossy(&request);
                assert!(fine, "round {round}: {request:?} got {text:?}");
            }
        }
        if round % 100 == 99 {
            good(&server);
        }
    }
    oversized(&server);
    good(&server);
    server.terminate();
}

fn good(server: &Server) {
    let reply = server.complete(&json!({ "prompt": "Once", "max_tokens": 2, "temperature": 0 }));
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// A body over the limit, with and without a length.
fn oversized(server: &Server) {
    let body = format!("{{\"prompt\": \"{}\"}}", "x".repeat(100 << 10));
    let announced = server.raw(post("/v1/completions", &body).as_bytes());
    assert!(announced.is_empty() || announced.starts_with(b"HTTP/1.1 413"));
    let mut chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..30 {
        chunked.extend(format!("1000\r\n{}\r\n", "x".repeat(4096)).bytes());
    }
    chunked.extend(b"0\r\n\r\n");
    let response = server.raw(&chunked);
    assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 413"));
}

/// Heads and bodies that never end, and idle connections.
#[test]
fn slow_clients_are_disconnected() {
    let server = Server::start(&["--read-timeout", "1"]);
    let get = "GET /health HTTP/1.1\r\nHost: x\r\n";
    let cut_off = |beginning: &str, answer: &str| {
        let mut stream = server.connect();
        let start = Instant::now();
        stream.write_all(beginning.as_bytes()).unwrap();
        let mut read = String::new();
        let _ = stream.read_to_string(&mut read);
        assert!(read.starts_with(answer), "{beginning:?}: {read:?}");
        let waited = start.elapsed().as_secs_f64();
        assert!((0.9..20.0).contains(&waited), "{beginning:?}: after {waited} s");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| cut_off("", ""));
        scope.spawn(|| cut_off(get, ""));
        scope.spawn(|| cut_off(&format!("{get}\r\n"), "HTTP/1.1 200"));
        let body = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{";
        scope.spawn(|| cut_off(body, "HTTP/1.1 408"));
        // One byte at a time does not help.
        scope.spawn(|| {
            let mut stream = server.connect();
            let start = Instant::now();
            for byte in format!("{get}X: ").bytes().chain(std::iter::repeat(b'y')) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
                assert!(start.elapsed() < Duration::from_secs(20), "still connected");
            }
        });
    });
    good(&server);
    server.terminate();
}

#[test]
fn malformed_requests_are_refused() {
    check(400);
}

#[test]
#[ignore = "needs two minutes"]
fn ten_thousand_malformed_requests() {
    check(10_000);
}
