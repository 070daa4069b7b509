//! The error of this build script: one sentence for the user.

use std::fmt;

/// Reason why MLX could not be found or built against, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl Failure {
    /// Creates a failure from a `sentence` that says what is wrong and what to do.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cargo's error directive is a single line; messages of tools may span several.
        f.write_str(&self.0.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Result of every step of the build.
pub(crate) type Result<T> = std::result::Result<T, Failure>;
