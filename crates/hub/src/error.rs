//! Why there is no checkpoint of that name.

use std::path::PathBuf;

/// An error about a checkpoint's name, the cache or the hub. Its text is one sentence for a person.
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
    /// Not a name that a hub can have.
    #[error(
        "\"{name}\" is not a model's name on a hub: that is ORG/NAME, of letters, digits, -, _ and ."
    )]
    BadName {
        /// The name as given.
        name: String,
    },
    /// Neither a folder, nor a checkpoint in the cache.
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
    /// There is no home folder to look for a cache in.
    #[error(
        "{name} is not a folder, and without HF_HUB_CACHE, HF_HOME or HOME there is no Hugging Face cache to look in"
    )]
    NoCache {
        /// The name as given.
        name: String,
    },
    /// The cache has an entry for the checkpoint that is incomplete.
    #[error("the cache entry {} is broken: {reason}; download it again", entry.display())]
    BrokenEntry {
        /// The entry's folder.
        entry: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `HF_HUB_OFFLINE` is set.
    #[error("HF_HUB_OFFLINE is set: {url} is not asked")]
    Offline {
        /// What would have been asked.
        url: String,
    },
    /// No answer, or half of one, also after several attempts.
    #[error("{url}: {reason}")]
    Connection {
        /// What was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The hub says no.
    #[error("{url}: the hub answers {status}{advice}")]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What that means, or what to do.
        advice: &'static str,
    },
    /// Something answers that is no hub.
    #[error("{url} does not answer as a hub does: {what}")]
    NotAHub {
        /// What was asked.
        url: String,
        /// What is strange.
        what: String,
    },
    /// A file arrived wrong, twice.
    #[error(
        "{file} arrived with a wrong checksum, also after a second attempt; nothing of it is kept"
    )]
    Checksum {
        /// The file.
        file: String,
    },
    /// The repository has nothing that could be run.
    #[error("{name} holds no {wanted}")]
    NothingToDownload {
        /// The repository.
        name: String,
        /// What was looked for.
        wanted: String,
    },
    /// A pattern of `--include` is malformed.
    #[error("--include {pattern}: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk is too full.
    #[error("{name} needs {needed} more, but the disk of {} has {available} left", cache.display())]
    NoRoom {
        /// The repository.
        name: String,
        /// What is missing.
        needed: String,
        /// What there is.
        available: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// A model's configuration or headers are broken.
    #[error(transparent)]
    Model(#[from] mlxcel_estimator::EstimatorError),
    /// The caller asked to stop; what has arrived stays.
    #[error("interrupted")]
    Interrupted,
    /// A file of the cache could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// The result of what fails with a [`HubError`] only.
pub type HubResult<T> = std::result::Result<T, HubError>;

impl HubError {
    /// What the system said about `path`.
    pub(super) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
