//! Errors of random checkpoints and goldens.

use std::path::{Path, PathBuf};

use mlxcel_estimator::EstimatorError;
use mlxcel_kernels::KernelError;

/// Error of a checkpoint that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestingError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A configuration is not JSON.
    #[error("{} is not JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The configuration states no vocabulary.
    #[error("the configuration has no vocab_size")]
    NoVocabulary,
    /// The vocabulary has no room for all bytes and special tokens.
    #[error("a vocabulary of {tokens} tokens does not hold the 256 bytes and the special tokens")]
    SmallVocabulary {
        /// Size of the vocabulary.
        tokens: u64,
    },
    /// The size of a tensor or file overflows.
    #[error("{name} is too large")]
    TooLarge {
        /// The tensor or file.
        name: String,
    },
    /// The estimator lists a tensor twice.
    #[error("the inventory names {name} twice")]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// The estimator does not know the architecture.
    #[error(transparent)]
    Estimator(#[from] EstimatorError),
    /// The weights cannot be quantised so.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Result with a [`TestingError`].
pub type Result<T> = std::result::Result<T, TestingError>;

impl TestingError {
    /// Error of the system for `path`.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Error of a size that overflows.
    pub(crate) fn too_large(name: &str) -> Self {
        Self::TooLarge { name: name.to_owned() }
    }
}
