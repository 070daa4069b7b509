//! Questions to a hub over HTTP: the endpoint, the token, attempts, and what answers mean.

use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::HubError;
use super::error::HubResult;

/// The hub where nothing else is said.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Attempts without progress before a connection counts as broken.
const ATTEMPTS: u32 = 5;
/// The longest that a hub may ask us to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 10;

/// Which hub, as whom.
#[derive(Clone)]
pub struct HubOptions {
    /// Scheme and host, without a slash at the end.
    pub endpoint: String,
    /// Who asks; only that host is told.
    pub token: Option<String>,
    /// Whether nothing may be asked.
    pub offline: bool,
    /// The cache to download into; `None`: there is no home for one.
    pub cache: Option<PathBuf>,
    /// The pause before a second attempt; it doubles with every further one.
    pub first_pause: Duration,
}

impl HubOptions {
    /// As `huggingface_hub` reads the environment: `HF_ENDPOINT`, `HF_TOKEN` (else the file
    /// `HF_TOKEN_PATH`, else `token` in `HF_HOME`), `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token = set("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file()?).ok());
        let yes =
            |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
            cache: super::local::default_cache(),
            first_pause: Duration::from_millis(500),
        }
    }
}

fn token_file() -> Option<PathBuf> {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || {
        let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        set("HF_HOME").or_else(|| Some(cache?.join("huggingface")))
    };
    set("HF_TOKEN_PATH").or_else(|| Some(home()?.join("token")))
}

/// A hub.
pub struct Hub {
    agent: ureq::Agent,
    options: HubOptions,
    requests: AtomicU64,
    received_bytes: AtomicU64,
}

/// An answer with a body that has not been read.
pub(super) struct Answer {
    /// Where it came from, redirects followed.
    pub(super) url: String,
    /// Whether it is the range that was asked for (206) or the whole (200).
    pub(super) partial: bool,
    /// Where a partial answer begins, as it states itself.
    pub(super) start: Option<u64>,
    body: ureq::Body,
}

type Response = ureq::http::Response<ureq::Body>;

/// What became of a question.
pub(super) enum Reply {
    /// It was answered.
    Answer(Answer),
    /// The range begins at or behind the end (416).
    NoSuchRange,
    /// Asking again may help; after so long, where the hub said.
    Again(HubError, Option<Duration>),
}

impl Hub {
    /// A hub; nothing is asked yet.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("mlxcel/", env!("CARGO_PKG_VERSION")));
        let (requests, received_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { agent: config.build().new_agent(), options, requests, received_bytes }
    }

    /// The hub that the environment names.
    #[must_use]
    pub fn from_env() -> Self {
        Self::new(HubOptions::from_env())
    }

    /// The cache, for a download of `name`.
    pub(super) fn cache(&self, name: &str) -> HubResult<PathBuf> {
        self.options.cache.clone().ok_or_else(|| HubError::NoCache { name: name.to_owned() })
    }

    /// Scheme and host.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.options.endpoint
    }

    /// Whether nothing may be asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.options.offline
    }

    /// Questions asked so far; following a redirect is not counted.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of answers read so far.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Asks once for `url`, or for a part of it.
    ///
    /// # Errors
    /// What asking again would not change.
    pub(super) fn ask(&self, url: &str, range: Option<&str>) -> HubResult<Reply> {
        if self.options.offline {
            return Err(HubError::Offline { url: url.to_owned() });
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut place = url.to_owned();
        for _ in 0..=REDIRECTS {
            let response = match self.call(&place, range) {
                Ok(response) => response,
                Err(error) => return connection(url, &error),
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return reply(url, place, response);
            }
            let location = response.headers().get("location").and_then(|text| text.to_str().ok());
            place =
                location.and_then(|location| redirected(&place, location)).ok_or_else(|| {
                    HubError::NotAHub {
                        url: url.to_owned(),
                        what: "it redirects nowhere".to_owned(),
                    }
                })?;
        }
        let reason = format!("more than {REDIRECTS} redirects");
        Err(HubError::Connection { url: url.to_owned(), reason })
    }

    /// One request. Redirects are followed by hand, so that each place is told the token or not.
    fn call(&self, url: &str, range: Option<&str>) -> Result<Response, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.options.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.call()
    }

    /// The whole of `url`, at most `limit` bytes; asks again where that may help.
    ///
    /// # Errors
    /// No answer after several attempts, a refusal, or more than `limit` bytes.
    pub(super) fn get(&self, url: &str, limit: u64) -> HubResult<Vec<u8>> {
        self.get_part(url, None, limit).map(|(_, bytes)| bytes)
    }

    /// A part of `url`, and where it came from, so that a next part need not be redirected again.
    ///
    /// # Errors
    /// As [`Self::get`]; a server that answers with another part.
    pub(super) fn get_range(
        &self,
        url: &str,
        range: RangeInclusive<u64>,
    ) -> HubResult<(String, Vec<u8>)> {
        let (start, end) = (range.start(), range.end());
        let limit = (end - start).saturating_add(1);
        let strange = |what: &str| HubError::NotAHub { url: url.to_owned(), what: what.to_owned() };
        let (answer, bytes) = self.get_part(url, Some(&format!("bytes={start}-{end}")), limit)?;
        match (answer.partial, answer.start) {
            (true, Some(at)) if at == *start => Ok((answer.url, bytes)),
            (true, _) => Err(strange("it sends another range than was asked for")),
            (false, _) => Err(strange("it sends whole files where a range is asked for")),
        }
    }

    fn get_part(&self, url: &str, range: Option<&str>, limit: u64) -> HubResult<(Answer, Vec<u8>)> {
        let mut attempt = 1;
        loop {
            let (error, wait) = match self.ask(url, range)? {
                Reply::Answer(mut answer) if range.is_none() || answer.partial => {
                    match self.read(&mut answer, url, limit)? {
                        Ok(bytes) => return Ok((answer, bytes)),
                        Err(error) => (error, None),
                    }
                }
                // Not the part that was asked for: none of it is read.
                Reply::Answer(answer) => return Ok((answer, Vec::new())),
                Reply::NoSuchRange => return Err(refusal(url, 416)),
                Reply::Again(error, wait) => (error, wait),
            };
            self.pause(attempt, wait, error)?;
            attempt += 1;
        }
    }

    /// Reads a body to its end: `Ok(Err(…))` where asking again may help.
    fn read(&self, answer: &mut Answer, url: &str, limit: u64) -> HubResult<HubResult<Vec<u8>>> {
        let mut bytes = Vec::new();
        let read = answer.body.as_reader().take(limit.saturating_add(1)).read_to_end(&mut bytes);
        self.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.len() as u64 > limit {
            let what = format!("more than {limit} bytes where fewer are expected");
            return Err(HubError::NotAHub { url: url.to_owned(), what });
        }
        Ok(match read {
            Ok(_) => Ok(bytes),
            Err(error) => Err(broken(url, &error)),
        })
    }

    /// Waits before attempt `attempt + 1`.
    ///
    /// # Errors
    /// `error`, where that were one too many.
    pub(super) fn pause(
        &self,
        attempt: u32,
        wait: Option<Duration>,
        error: HubError,
    ) -> HubResult<()> {
        if attempt >= ATTEMPTS {
            return Err(error);
        }
        let pause = self.options.first_pause * 2_u32.pow(attempt - 1);
        std::thread::sleep(wait.map_or(pause, |wait| wait.max(pause)).min(LONGEST_PAUSE));
        Ok(())
    }

    /// Counts bytes that were read elsewhere.
    pub(super) fn count(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether `url` is on the hub itself, which may see the token.
    fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.options.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl Answer {
    /// The body, to be read once.
    pub(super) fn reader(&mut self) -> impl Read + '_ {
        self.body.as_reader()
    }
}

/// What an answer from `place` to a question about `url` means.
fn reply(url: &str, place: String, response: Response) -> HubResult<Reply> {
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let start = header("content-range").and_then(|text| range_start(&text));
    let wait = header("retry-after").and_then(|text| text.trim().parse().ok());
    let wait = wait.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    match status {
        200 | 206 => {
            let (partial, body) = (status == 206, response.into_body());
            Ok(Reply::Answer(Answer { url: place, partial, start, body }))
        }
        416 => Ok(Reply::NoSuchRange),
        408 | 429 | 500..=599 => Ok(Reply::Again(refusal(url, status), wait)),
        _ => Err(refusal(url, status)),
    }
}

/// Where `location`, which `url` answers with, leads.
fn redirected(url: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let path = location.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    Some(format!("{scheme}://{host}/{path}"))
}

/// A body that ended early.
pub(super) fn broken(url: &str, error: &std::io::Error) -> HubError {
    HubError::Connection { url: url.to_owned(), reason: format!("the connection broke: {error}") }
}

/// `bytes 5-9/10` begins at 5.
fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// What a failed request means: a lasting error, or one that may pass.
fn connection(url: &str, error: &ureq::Error) -> HubResult<Reply> {
    let reason = match error {
        ureq::Error::HostNotFound => "there is no such host, or no network".to_owned(),
        other => other.to_string().replace('\n', " "),
    };
    let error_again = HubError::Connection { url: url.to_owned(), reason };
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Ok(Reply::Again(error_again, None)),
        _ => Err(error_again),
    }
}

fn refusal(url: &str, status: u16) -> HubError {
    let advice = match status {
        401 => " (not found, or private: set HF_TOKEN to a token that may read it)",
        403 => " (access is restricted: ask for it on the model's page, and set HF_TOKEN)",
        404 => " (there is no such model, revision or file)",
        429 => " (too many requests: try again later, or set HF_TOKEN)",
        500..=599 => " (the hub is in trouble: try again later)",
        _ => "",
    };
    HubError::Status { url: url.to_owned(), status, advice }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_with_its_host() {
        let hub = Hub::new(HubOptions {
            endpoint: "https://hub.example".to_owned(),
            token: Some("secret".to_owned()),
            offline: true,
            cache: None,
            first_pause: Duration::ZERO,
        });
        assert!(hub.is_own("https://hub.example/api/models/a/b"));
        for other in ["https://hub.example.evil.net/x", "http://hub.example/x", "https://cdn.net/x"]
        {
            assert!(!hub.is_own(other), "{other}");
        }
        let error = hub.get("https://hub.example/x", 1).unwrap_err();
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
        assert_eq!(hub.requests(), 0);
    }

    #[test]
    fn redirects_are_absolute_or_on_the_same_host() {
        let at = |location| redirected("https://hub.example:1/a/b?c", location);
        assert_eq!(at("/x/y").as_deref(), Some("https://hub.example:1/x/y"));
        assert_eq!(at("https://cdn.net/z").as_deref(), Some("https://cdn.net/z"));
        for strange in ["file:///etc/passwd", "//evil.net/x", "x", ""] {
            assert_eq!(at(strange), None, "{strange}");
        }
    }

    #[test]
    fn ranges_state_where_they_begin() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("lines 5-9/10"), None);
    }
}
