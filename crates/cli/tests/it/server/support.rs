//! A server process over the files of the built-in model, and a client that writes bytes to a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const MLXCEL: &str = env!("CARGO_BIN_EXE_mlxcel");

/// A server that is killed at the end of the test.
pub(crate) struct Server {
    process: ServerProcess,
    pub(crate) address: String,
    /// Lets one server run at a time: several would compete for the cores.
    #[expect(dead_code, reason = "held as long as the server lives")]
    lock: MutexGuard<'static, ()>,
    #[expect(dead_code, reason = "the folder lives as long as the server")]
    model: Option<TempDir>,
}

/// A process that is killed on drop.
struct ServerProcess(Child);

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `error` object of a failure with this status.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string() && error["type"].is_string(), "{self:?}");
        error
    }

    /// Values of all events of a stream except the last one, which must be `[DONE]`.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.head.contains("text/event-stream"), "{}", self.head);
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|e| !e.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let json = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
        events.into_iter().map(|event| json(event).unwrap()).collect()
    }

    /// The text of a completion.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["choices"][0]["text"].as_str().unwrap().to_owned()
    }
}

/// The built-in model as a folder, with a chat template and this context.
pub(crate) fn model(context_tokens: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    for entry in std::fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = dir.path().join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    value["max_position_embeddings"] = json!(context_tokens);
    std::fs::write(&config, value.to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

impl Server {
    /// A server with a context of 512 and these flags.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::with(512, flags, &[])
    }

    /// A server with another context and variables of the environment.
    pub(crate) fn with(context: usize, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::over(model(context), flags, variables)
    }

    /// A server of the model in `folder`.
    pub(crate) fn over(folder: TempDir, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let path = folder.path().to_str().unwrap();
        let all = [&["--alias", "demo", "--log-level", "error", "-m", path], flags].concat();
        let server = Self::run(&all, variables);
        Self { model: Some(folder), ..server }
    }

    /// A server of the model that the flags name.
    pub(crate) fn only(flags: &[&str]) -> Self {
        Self::run(flags, &[])
    }

    fn run(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = Command::new(MLXCEL)
            .args(["serve", "--port", "0"])
            .args(flags)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("an address");
        Self { address: address.to_owned(), process: ServerProcess(process), lock, model: None }
    }

    /// A connection with a read timeout.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    /// Writes `bytes` and reads to the end.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may respond and close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.flush();
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        let _ = stream.shutdown(Shutdown::Both);
        response
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub(crate) fn send(&self, request: &str) -> Response {
        parse(&self.raw(request.as_bytes()))
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.send(&post(path, &body.to_string()))
    }

    #[track_caller]
    pub(crate) fn complete(&self, body: &Value) -> Response {
        self.post("/v1/completions", body)
    }

    /// Value of a metric.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("mlxcel_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// Largest resident size of the process so far.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits until `condition` holds; fails after 30 seconds.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            let metrics = || self.get("/metrics").body;
            assert!(start.elapsed() < Duration::from_secs(30), "never {what}: {}", metrics());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until no request runs or waits.
    #[track_caller]
    pub(crate) fn wait_until_idle(&self) {
        self.wait_until("idle", |server| {
            server.metric("requests_running") + server.metric("requests_waiting") == 0
        });
    }

    /// Sends SIGTERM and waits; fails unless the server exits with success.
    pub(crate) fn terminate(mut self) {
        let pid = self.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.process.0.wait().unwrap().success());
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of a POST request.
pub(crate) fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Splits a response; the chunks of a stream are joined.
#[track_caller]
pub(crate) fn parse(response: &[u8]) -> Response {
    let text = String::from_utf8(response.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Response { status, head: head.to_owned(), body }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    body
}
