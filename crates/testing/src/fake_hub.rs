//! A small hub on 127.0.0.1, with a second address that plays the CDN, and ways to misbehave.

#![expect(clippy::unwrap_used, reason = "test support: a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest;

/// The one commit that there is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Another status, with `Retry-After: 0`.
    Status(u16),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// A byte of the body is another.
    Corrupt,
    /// A web page.
    Html,
    /// To itself.
    Redirect,
    /// More bytes of headers than anybody reads.
    HugeHeader,
    /// The whole file, whatever was asked for.
    WholeFile,
    /// Another answer of the API.
    Api(&'static str),
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// The header `Authorization`.
    pub token: Option<String>,
    /// Whether it went to the CDN.
    pub cdn: bool,
    /// Bytes of the body that was sent.
    pub sent: usize,
}

#[derive(Default)]
struct State {
    name: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Vec<(String, usize, Fault)>>,
    log: Mutex<Vec<Request>>,
    token: Option<String>,
    cdn: String,
    pause: Duration,
}

/// A hub with one repository.
pub struct Server {
    /// Scheme and host.
    pub endpoint: String,
    state: Arc<State>,
}

/// How a server differs from the ordinary.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Who may read.
    pub token: Option<String>,
    /// Between two pieces of 16 KiB.
    pub pause: Duration,
}

impl Server {
    /// A hub with the repository `name`.
    pub fn new(name: &str, files: &[(&str, Vec<u8>)]) -> Self {
        Self::with(name, files, Manner::default())
    }

    /// A hub with the repository `name` that differs from the ordinary.
    pub fn with(name: &str, files: &[(&str, Vec<u8>)], manner: Manner) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, cdn_address) = (address(&hub), address(&cdn));
        let state = Arc::new(State {
            name: name.to_owned(),
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect(),
            token: manner.token,
            pause: manner.pause,
            cdn: cdn_address,
            ..State::default()
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // A client that goes away is what some tests are about.
                    std::thread::spawn(move || drop(state.serve(stream, is_cdn)));
                }
            });
        }
        Self { endpoint, state }
    }

    /// Lets the next `times` requests whose path contains `part` go wrong.
    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.state.faults.lock().unwrap().push((part.to_owned(), times, fault));
    }

    /// Requests so far.
    pub fn log(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state.log.lock().unwrap().clear();
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream, cdn: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut range, mut token) = (None, None);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "range" => range = Some(value.to_owned()),
                "authorization" => token = Some(value.to_owned()),
                _ => {}
            }
        }
        let request = Request { path, range, token, cdn, sent: 0 };
        let at = {
            let mut log = self.log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let fault = self.next_fault(&request.path);
        let (head, body) = self.answer(&request, fault);
        let body = match fault {
            Some(Fault::Cut(bytes)) => &body[..bytes.min(body.len())],
            _ => &body[..],
        };
        stream.write_all(head.as_bytes())?;
        for piece in body.chunks(16 << 10) {
            if !self.pause.is_zero() && cdn {
                std::thread::sleep(self.pause);
            }
            stream.write_all(piece)?;
            if let Some(entry) = self.log.lock().unwrap().get_mut(at) {
                entry.sent += piece.len();
            }
        }
        stream.flush()
    }

    fn next_fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|(part, times, _)| *times > 0 && path.contains(part))?;
        fault.1 -= 1;
        Some(fault.2)
    }

    /// Head and body of an answer.
    fn answer(&self, request: &Request, fault: Option<Fault>) -> (String, Vec<u8>) {
        let plain = |status: &str, more: &str, body: Vec<u8>| {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n"
            );
            (head, body)
        };
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        match fault {
            Some(Fault::Status(status)) => {
                return plain(&format!("{status} No"), "Retry-After: 0\r\n", b"no".to_vec());
            }
            Some(Fault::Html) => {
                return plain("200 OK", "", b"<html>log in to this network</html>".to_vec());
            }
            Some(Fault::Api(text)) => return plain("200 OK", "", text.as_bytes().to_vec()),
            Some(Fault::Redirect) => {
                let to = format!("Location: {}\r\n", request.path);
                return plain("302 Found", &to, Vec::new());
            }
            Some(Fault::HugeHeader) => {
                return plain("200 OK", &format!("X: {}\r\n", "x".repeat(1 << 20)), Vec::new());
            }
            _ if !request.cdn && bearer.is_some() && request.token != bearer => {
                return plain("401 Unauthorized", "", Vec::new());
            }
            _ => {}
        }
        if request.path.starts_with("/api/") {
            return plain("200 OK", "", self.info().to_string().into_bytes());
        }
        let file = request.path.rsplit_once(&format!("{COMMIT}/")).map_or("", |(_, file)| file);
        let Some(bytes) = self.files.get(file) else {
            return plain("404 Not Found", "", Vec::new());
        };
        if !request.cdn && is_large(file) {
            let to = format!("Location: {}/signed/{COMMIT}/{file}\r\n", self.cdn);
            return plain("302 Found", &to, Vec::new());
        }
        let (status, more, mut body) = part(bytes, request, fault);
        if let (Some(Fault::Corrupt), Some(byte)) = (fault, body.last_mut()) {
            *byte ^= 1;
        }
        plain(status, &more, body)
    }

    fn info(&self) -> Value {
        let sibling = |(name, bytes): (&String, &Vec<u8>)| {
            let size = bytes.len();
            let git = sha1::Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(bytes);
            let mut entry =
                json!({ "rfilename": name, "size": size, "blobId": hex(&git.finalize()) });
            if is_large(name) {
                let sha256 = hex(&sha2::Sha256::digest(bytes));
                entry["lfs"] = json!({ "size": size, "sha256": sha256, "pointerSize": 134 });
            }
            entry
        };
        let siblings: Vec<Value> = self.files.iter().map(sibling).collect();
        json!({ "id": self.name, "sha": COMMIT, "siblings": siblings })
    }
}

/// Status, headers and body for the range that was asked for.
fn part(bytes: &[u8], request: &Request, fault: Option<Fault>) -> (&'static str, String, Vec<u8>) {
    let range = request.range.as_deref().filter(|_| !matches!(fault, Some(Fault::WholeFile)));
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        return ("200 OK", String::new(), bytes.to_vec());
    };
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
    if start >= bytes.len() {
        return ("416 Range Not Satisfiable", String::new(), Vec::new());
    }
    let head = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, bytes.len());
    ("206 Partial Content", head, bytes[start..end].to_vec())
}

/// Whether a file is kept where large ones are, behind a redirect.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Lowercase hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
