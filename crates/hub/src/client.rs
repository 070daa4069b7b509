//! HTTP client of a hub: endpoint, token, retries, and the meaning of responses.

use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::HubError;
use super::error::{HubResult, UnexpectedResponse};

/// Default hub endpoint.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Maximum number of attempts without progress.
const MAX_ATTEMPTS: u32 = 5;
/// Maximum delay between attempts, whatever a hub asks for.
const MAX_DELAY: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: u32 = 10;

/// Endpoint, credentials and cache of a [`Hub`].
#[derive(Clone)]
pub struct HubOptions {
    /// Scheme and host, without a slash at the end.
    pub endpoint: String,
    /// Access token; it is sent to the endpoint only.
    pub token: Option<String>,
    /// True if requests are forbidden.
    pub offline: bool,
    /// The cache to download into; `None` without a home folder for one.
    pub cache: Option<PathBuf>,
    /// Delay before a second attempt; it doubles with every further one.
    pub retry_delay: Duration,
}

impl HubOptions {
    /// Options from the environment, as `huggingface_hub` reads it: `HF_ENDPOINT`, `HF_TOKEN` (else
    /// the file `HF_TOKEN_PATH`, else `token` in `HF_HOME`), `HF_HUB_OFFLINE`.
    #[must_use]
    pub fn from_env() -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file()?).ok());
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            cache: super::local::default_cache(),
            retry_delay: Duration::from_millis(500),
        }
    }
}

/// A variable of the environment that is set and not blank.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// A path from the environment, if it is set and not empty.
fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

fn token_file() -> Option<PathBuf> {
    if let Some(path) = path_variable("HF_TOKEN_PATH") {
        return Some(path);
    }
    if let Some(home) = path_variable("HF_HOME") {
        return Some(home.join("token"));
    }
    let cache =
        path_variable("XDG_CACHE_HOME").or_else(|| Some(path_variable("HOME")?.join(".cache")))?;
    Some(cache.join("huggingface/token"))
}

/// Client of a hub.
pub struct Hub {
    agent: ureq::Agent,
    options: HubOptions,
    requests: AtomicU64,
    received_bytes: AtomicU64,
}

/// A successful response with an unread body.
pub(super) struct HubResponse {
    /// Its URL, after redirects.
    pub(super) url: String,
    /// True if it is the requested range (206) or the whole file (200).
    pub(super) is_partial: bool,
    /// First byte of a partial response, as its header states it.
    pub(super) start: Option<u64>,
    body: ureq::Body,
}

type RawResponse = ureq::http::Response<ureq::Body>;

/// Outcome of one attempt.
pub(super) enum Attempt {
    /// A response.
    Response(HubResponse),
    /// The range starts at or behind the end of the file (416).
    RangeNotSatisfiable,
    /// A failure that may pass, and the delay that the hub asks for.
    Retry(HubError, Option<Duration>),
}

impl Hub {
    /// A client; no request is made yet.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("mlxcel/", env!("CARGO_PKG_VERSION")));
        Self {
            agent: config.build().new_agent(),
            options,
            requests: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        }
    }

    /// A client of the hub that the environment names.
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

    /// Returns true if requests are forbidden.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.options.offline
    }

    /// Number of requests so far, redirects not counted.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies read so far.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Requests `url`, or a range of it, once.
    ///
    /// # Errors
    /// Non-retryable failures.
    pub(super) fn request(&self, url: &str, range: Option<&str>) -> HubResult<Attempt> {
        if self.options.offline {
            return Err(HubError::Offline { url: url.to_owned() });
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut location = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let response = match self.call(&location, range) {
                Ok(response) => response,
                Err(error) => return transport_failure(url, &error),
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return classify(url, location, response);
            }
            let header = response.headers().get("location").and_then(|text| text.to_str().ok());
            let target = header.and_then(|target| redirect_target(&location, target));
            location = target.ok_or_else(|| unexpected(url, UnexpectedResponse::NoLocation))?;
        }
        let reason = format!("more than {MAX_REDIRECTS} redirects");
        Err(HubError::Connection { url: url.to_owned(), reason })
    }

    /// Makes one request. Redirects are followed by hand, so that the token goes to the hub only.
    fn call(&self, url: &str, range: Option<&str>) -> Result<RawResponse, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.options.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.call()
    }

    /// Fetches all of `url`, at most `limit` bytes, with retries.
    ///
    /// # Errors
    /// No response after several attempts, a refusal, or more than `limit` bytes.
    pub(super) fn get(&self, url: &str, limit: u64) -> HubResult<Vec<u8>> {
        self.get_with_retries(url, None, limit).map(|(_, bytes)| bytes)
    }

    /// Fetches a range of `url`. Returns the URL after redirects too, for the next range.
    ///
    /// # Errors
    /// Errors of [`Self::get`]; a server that sends another range.
    pub(super) fn get_range(
        &self,
        url: &str,
        range: RangeInclusive<u64>,
    ) -> HubResult<(String, Vec<u8>)> {
        let start = *range.start();
        let end = *range.end();
        let limit = (end - start).saturating_add(1);
        let header = format!("bytes={start}-{end}");
        let (response, bytes) = self.get_with_retries(url, Some(&header), limit)?;
        if !response.is_partial {
            return Err(unexpected(url, UnexpectedResponse::NoRanges));
        }
        if response.start != Some(start) {
            return Err(unexpected(url, UnexpectedResponse::WrongRange));
        }
        Ok((response.url, bytes))
    }

    fn get_with_retries(
        &self,
        url: &str,
        range: Option<&str>,
        limit: u64,
    ) -> HubResult<(HubResponse, Vec<u8>)> {
        let mut attempt = 1;
        loop {
            let (error, delay) = match self.request(url, range)? {
                Attempt::Response(mut response) if range.is_none() || response.is_partial => {
                    match self.read(&mut response, url, limit)? {
                        Ok(bytes) => return Ok((response, bytes)),
                        Err(error) => (error, None),
                    }
                }
                // A whole file in place of a range is not read.
                Attempt::Response(response) => return Ok((response, Vec::new())),
                Attempt::RangeNotSatisfiable => return Err(refusal(url, 416)),
                Attempt::Retry(error, delay) => (error, delay),
            };
            self.pause(attempt, delay, error)?;
            attempt += 1;
        }
    }

    /// Reads a body to its end; `Ok(Err(…))` for failures that may pass.
    fn read(
        &self,
        response: &mut HubResponse,
        url: &str,
        limit: u64,
    ) -> HubResult<HubResult<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut body = response.body.as_reader().take(limit.saturating_add(1));
        let read = body.read_to_end(&mut bytes);
        self.received_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.len() as u64 > limit {
            return Err(unexpected(url, UnexpectedResponse::TooLong { limit }));
        }
        Ok(match read {
            Ok(_) => Ok(bytes),
            Err(error) => Err(connection_broke(url, &error)),
        })
    }

    /// Sleeps before attempt `attempt + 1`.
    ///
    /// # Errors
    /// `error`, after the last attempt.
    pub(super) fn pause(
        &self,
        attempt: u32,
        delay: Option<Duration>,
        error: HubError,
    ) -> HubResult<()> {
        if attempt >= MAX_ATTEMPTS {
            return Err(error);
        }
        let own_delay = self.options.retry_delay * 2_u32.pow(attempt - 1);
        std::thread::sleep(delay.unwrap_or_default().max(own_delay).min(MAX_DELAY));
        Ok(())
    }

    /// Adds to [`Self::received_bytes`].
    pub(super) fn count_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns true if `url` is on the hub itself, which may see the token.
    fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.options.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl HubResponse {
    /// The body, to be read once.
    pub(super) fn reader(&mut self) -> impl Read + '_ {
        self.body.as_reader()
    }
}

/// Classifies a response from `location` to a request for `url`.
fn classify(url: &str, location: String, response: RawResponse) -> HubResult<Attempt> {
    let status = response.status().as_u16();
    match status {
        200 | 206 => Ok(Attempt::Response(HubResponse {
            url: location,
            is_partial: status == 206,
            start: header(&response, "content-range").and_then(range_start),
            body: response.into_body(),
        })),
        416 => Ok(Attempt::RangeNotSatisfiable),
        408 | 429 | 500..=599 => {
            let seconds =
                header(&response, "retry-after").and_then(|text| text.trim().parse().ok());
            let delay = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_DELAY));
            Ok(Attempt::Retry(refusal(url, status), delay))
        }
        _ => Err(refusal(url, status)),
    }
}

fn header<'a>(response: &'a RawResponse, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Absolute URL of `location`, a redirect from `url`: on any host, or a path on the same one.
fn redirect_target(url: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let path = location.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    Some(format!("{scheme}://{host}/{path}"))
}

/// Error of a body that ended early.
pub(super) fn connection_broke(url: &str, error: &std::io::Error) -> HubError {
    HubError::Connection { url: url.to_owned(), reason: format!("the connection broke: {error}") }
}

/// Error of a response that no hub sends.
pub(super) fn unexpected(url: &str, response: UnexpectedResponse) -> HubError {
    HubError::NotAHub { url: url.to_owned(), response }
}

/// First byte of a `Content-Range`: 5 in `bytes 5-9/10`.
fn range_start(text: &str) -> Option<u64> {
    text.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Classifies a request without a response: a lasting error, or one that may pass.
fn transport_failure(url: &str, error: &ureq::Error) -> HubResult<Attempt> {
    let reason = match error {
        ureq::Error::HostNotFound => "there is no such host, or no network".to_owned(),
        other => other.to_string().replace('\n', " "),
    };
    let failure = HubError::Connection { url: url.to_owned(), reason };
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Ok(Attempt::Retry(failure, None)),
        _ => Err(failure),
    }
}

fn refusal(url: &str, status: u16) -> HubError {
    let advice = match status {
        401 => " (not found, or private: set HF_TOKEN to a token that may read it)",
        403 => " (access is restricted: ask for it on the model's page, and set HF_TOKEN)",
        404 => " (there is no such model, revision or file)",
        429 => " (too many requests: try again later, or set HF_TOKEN)",
        500..=599 => " (the hub has a problem: try again later)",
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
            retry_delay: Duration::ZERO,
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
        let at = |location| redirect_target("https://hub.example:1/a/b?c", location);
        assert_eq!(at("/x/y").as_deref(), Some("https://hub.example:1/x/y"));
        assert_eq!(at("https://cdn.net/z").as_deref(), Some("https://cdn.net/z"));
        for strange in ["file:///etc/passwd", "//evil.net/x", "x", ""] {
            assert_eq!(at(strange), None, "{strange}");
        }
    }

    #[test]
    fn content_ranges_state_their_start() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("lines 5-9/10"), None);
    }
}
