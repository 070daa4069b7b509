//! A small hub on 127.0.0.1, with a second address as its CDN, and injected faults.

#![expect(clippy::unwrap_used, reason = "test support: a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::Digest;

/// The only commit of the repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Fault of a response.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This status, with `Retry-After: 0`.
    Status(u16),
    /// The connection closes after this many bytes of the body.
    Cut(usize),
    /// One byte of the body is wrong.
    Corrupt,
    /// A web page.
    Html,
    /// A redirect to the same URL.
    Redirect,
    /// A header of 1 MiB.
    HugeHeader,
    /// The whole file in place of a range.
    WholeFile,
    /// This response of the API.
    Api(&'static str),
}

/// A request that the hub received.
#[derive(Clone, Debug)]
pub struct HubRequest {
    /// Path and query.
    pub path: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// The header `Authorization`.
    pub token: Option<String>,
    /// True if the CDN received it.
    pub cdn: bool,
    /// Bytes of the body sent.
    pub sent: usize,
}

#[derive(Default)]
struct HubState {
    name: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: Mutex<Vec<PendingFault>>,
    log: Mutex<Vec<HubRequest>>,
    token: Option<String>,
    cdn: String,
    pause: Duration,
}

/// A fault for the next responses.
#[derive(Debug)]
struct PendingFault {
    /// Part of the path of the requests.
    part: String,
    /// Responses left.
    times: usize,
    fault: Fault,
}

/// A hub with one repository.
pub struct FakeHub {
    /// Scheme and host.
    pub endpoint: String,
    state: Arc<HubState>,
}

/// Behaviour of a hub.
#[derive(Clone, Debug, Default)]
pub struct HubBehavior {
    /// Token required to read.
    pub token: Option<String>,
    /// Pause of the CDN between two pieces of 16 KiB.
    pub pause: Duration,
}

impl FakeHub {
    /// A hub with the repository `name`.
    pub fn new(name: &str, files: &[(&str, Vec<u8>)]) -> Self {
        Self::with(name, files, HubBehavior::default())
    }

    /// A hub with the repository `name` and this behaviour.
    pub fn with(name: &str, files: &[(&str, Vec<u8>)], behavior: HubBehavior) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let cdn_address = format!("http://{}", cdn.local_addr().unwrap());
        let state = Arc::new(HubState {
            name: name.to_owned(),
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect(),
            token: behavior.token,
            pause: behavior.pause,
            cdn: cdn_address,
            ..HubState::default()
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    // Some tests are about clients that leave.
                    std::thread::spawn(move || drop(state.serve(stream, is_cdn)));
                }
            });
        }
        Self { endpoint, state }
    }

    /// Injects a fault into the next `times` responses to requests whose path contains `part`.
    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.state.faults.lock().unwrap().push(PendingFault {
            part: part.to_owned(),
            times,
            fault,
        });
    }

    /// Requests so far.
    pub fn log(&self) -> Vec<HubRequest> {
        self.state.log.lock().unwrap().clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.state.log.lock().unwrap().clear();
    }
}

impl HubState {
    fn serve(&self, mut stream: TcpStream, cdn: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        let mut token = None;
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
        let request = HubRequest { path, range, token, cdn, sent: 0 };
        let at = {
            let mut log = self.log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let fault = self.next_fault(&request.path);
        let (head, body) = self.respond(&request, fault);
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
        let pending = faults.iter_mut().find(|f| f.times > 0 && path.contains(&f.part))?;
        pending.times -= 1;
        Some(pending.fault)
    }

    /// Head and body of a response.
    fn respond(&self, request: &HubRequest, fault: Option<Fault>) -> (String, Vec<u8>) {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        match fault {
            Some(Fault::Status(status)) => {
                return with_head(&format!("{status} No"), "Retry-After: 0\r\n", b"no".to_vec());
            }
            Some(Fault::Html) => {
                return with_head("200 OK", "", b"<html>log in to this network</html>".to_vec());
            }
            Some(Fault::Api(text)) => return with_head("200 OK", "", text.as_bytes().to_vec()),
            Some(Fault::Redirect) => {
                let to = format!("Location: {}\r\n", request.path);
                return with_head("302 Found", &to, Vec::new());
            }
            Some(Fault::HugeHeader) => {
                return with_head("200 OK", &format!("X: {}\r\n", "x".repeat(1 << 20)), Vec::new());
            }
            _ if !request.cdn && bearer.is_some() && request.token != bearer => {
                return with_head("401 Unauthorized", "", Vec::new());
            }
            _ => {}
        }
        if request.path.starts_with("/api/") {
            return with_head("200 OK", "", self.info().to_string().into_bytes());
        }
        let file = request.path.rsplit_once(&format!("{COMMIT}/")).map_or("", |(_, file)| file);
        let Some(bytes) = self.files.get(file) else {
            return with_head("404 Not Found", "", Vec::new());
        };
        if !request.cdn && is_large(file) {
            let to = format!("Location: {}/signed/{COMMIT}/{file}\r\n", self.cdn);
            return with_head("302 Found", &to, Vec::new());
        }
        let (status, more, mut body) = part(bytes, request, fault);
        if let (Some(Fault::Corrupt), Some(byte)) = (fault, body.last_mut()) {
            *byte ^= 1;
        }
        with_head(status, &more, body)
    }

    fn info(&self) -> Value {
        let mut siblings = Vec::new();
        for (name, bytes) in &self.files {
            let size = bytes.len();
            let git = sha1::Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(bytes);
            let mut entry =
                json!({ "rfilename": name, "size": size, "blobId": hex(&git.finalize()) });
            if is_large(name) {
                let sha256 = hex(&sha2::Sha256::digest(bytes));
                entry["lfs"] = json!({ "size": size, "sha256": sha256, "pointerSize": 134 });
            }
            siblings.push(entry);
        }
        json!({ "id": self.name, "sha": COMMIT, "siblings": siblings })
    }
}

/// A response with `headers`, each ended by a line break.
fn with_head(status: &str, headers: &str, body: Vec<u8>) -> (String, Vec<u8>) {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    (head, body)
}

/// Status, headers and body for the requested range.
fn part(
    bytes: &[u8],
    request: &HubRequest,
    fault: Option<Fault>,
) -> (&'static str, String, Vec<u8>) {
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

/// Returns true for a file in large file storage, behind a redirect to the CDN.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Lowercase hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
