//! The one way in which this build ends early: a sentence for a person.

use std::fmt;

/// Why MLX could not be found or built against, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure described by one `sentence`, which names what to do.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cargo's error directive is one line, whatever a tool printed into the sentence.
        f.write_str(&self.0.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// What every step of the build returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;
