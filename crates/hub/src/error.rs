//! Errors of the hub and its cache.

use std::path::PathBuf;

/// Error of a checkpoint's name, the cache or the hub. Its text is one sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The argument names a folder that does not exist.
    #[error("no such model folder: {}", path.display())]
    NoSuchFolder {
        /// The path as given.
        path: PathBuf,
    },
    /// The argument names a file.
    #[error("{} is a file; a model is a folder (with config.json, tokenizer.json and *.safetensors)", path.display())]
    NotAFolder {
        /// The path as given.
        path: PathBuf,
    },
    /// The name is not a valid one on a hub.
    #[error(
        "\"{name}\" is not a model's name on a hub: that is ORG/NAME, of letters, digits, -, _ and ."
    )]
    BadName {
        /// The name as given.
        name: String,
    },
    /// The name is neither a folder nor a checkpoint in the cache.
    #[error(
        "{name} is neither a folder nor in the local Hugging Face cache (looked in {}); \
         `mlxcel download {name}` fetches it", cache.display()
    )]
    NotInCache {
        /// The name as given, `org/name`.
        name: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// There is no home folder for a cache.
    #[error(
        "{name} is not a folder, and without HF_HUB_CACHE, HF_HOME or HOME there is no Hugging Face cache to look in"
    )]
    NoCache {
        /// The name as given.
        name: String,
    },
    /// The cache entry of the checkpoint is incomplete.
    #[error("the cache entry {} is broken: {reason}; download it again", entry.display())]
    BrokenEntry {
        /// The entry's folder.
        entry: PathBuf,
        /// The defect.
        reason: &'static str,
    },
    /// `HF_HUB_OFFLINE` is set.
    #[error("HF_HUB_OFFLINE is set: {url} is not requested")]
    Offline {
        /// The URL.
        url: String,
    },
    /// No response, or a part of one, after several attempts.
    #[error("{url}: {reason}")]
    Connection {
        /// The URL.
        url: String,
        /// Message of the system or the transport.
        reason: String,
    },
    /// The hub refuses the request.
    #[error("{url}: the hub responds with {status}{advice}")]
    Status {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Meaning of the status, and advice, in parentheses.
        advice: &'static str,
    },
    /// The server is not a hub.
    #[error("{url} does not respond as a hub does: {response}")]
    NotAHub {
        /// The URL.
        url: String,
        /// The difference.
        response: UnexpectedResponse,
    },
    /// A file arrived with a wrong checksum twice.
    #[error("{file} arrived with a wrong checksum, also at the second attempt; it was deleted")]
    Checksum {
        /// The file.
        file: String,
    },
    /// The repository has none of the files wanted.
    #[error("{name} holds no {wanted}")]
    NothingToDownload {
        /// The repository.
        name: String,
        /// Description of the files.
        wanted: String,
    },
    /// A pattern of `--include` is malformed.
    #[error("--include {pattern}: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// The mistake.
        reason: String,
    },
    /// The disk is too full.
    #[error("{name} needs {needed} more, but the disk of {} has {available} left", cache.display())]
    NoRoom {
        /// The repository.
        name: String,
        /// Size of the files to fetch.
        needed: String,
        /// Space left.
        available: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// A model's configuration or headers are broken.
    #[error(transparent)]
    Model(#[from] mlxcel_estimator::EstimatorError),
    /// The caller interrupted a download; received parts are kept.
    #[error("interrupted")]
    Interrupted,
    /// A file of the cache could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
}

/// Difference between a response and that of a hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnexpectedResponse {
    /// A redirect without a usable target.
    #[error("it redirects nowhere")]
    NoLocation,
    /// Another range than the requested one.
    #[error("it sends another range than was requested")]
    WrongRange,
    /// A whole file in place of a range.
    #[error("it sends whole files where a range is requested")]
    NoRanges,
    /// A longer body than expected.
    #[error("it sends more than {limit} bytes where fewer are expected")]
    TooLong {
        /// Expected maximum, bytes.
        limit: u64,
    },
    /// A text file that is not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// A web page in place of JSON.
    #[error("it sends a web page")]
    WebPage,
    /// JSON of another shape.
    #[error("{0}")]
    Json(serde_json::Error),
    /// A commit that cannot be one.
    #[error("its revision is not one")]
    Revision,
    /// A file name that would leave the folder.
    #[error("a file is called \"{name}\"")]
    FileName {
        /// The name, shortened.
        name: String,
    },
    /// A file without size or checksum.
    #[error("{name} has no size or no checksum")]
    NoChecksum {
        /// The file.
        name: String,
    },
}

/// Result with a [`HubError`].
pub type HubResult<T> = std::result::Result<T, HubError>;

impl HubError {
    /// Error of the system for `path`.
    pub(super) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
