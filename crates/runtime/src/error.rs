//! What can go wrong between a command line and a generated token.

use std::path::PathBuf;

/// An error of this crate. Its text is one sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// `config.json` is missing a key, or contradicts itself.
    #[error("config.json: {what}")]
    Config {
        /// What is wrong.
        what: String,
    },
    /// A family that this crate does not run.
    #[error("model_type \"{model_type}\" is not supported (supported: {supported})")]
    UnsupportedModel {
        /// The family's name.
        model_type: String,
        /// The names that are.
        supported: String,
    },
    /// The safetensors files are broken.
    #[error(transparent)]
    Headers(#[from] mlxcel_estimator::EstimatorError),
    /// A folder without weights.
    #[error("{} holds no model.safetensors and no model.safetensors.index.json", dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A tensor that the model needs is not in the files.
    #[error("tensor \"{name}\" is missing from {}", dir.display())]
    MissingTensor {
        /// The tensor.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A tensor does not have the shape that the configuration implies.
    #[error("tensor \"{name}\" has shape {found:?}, {expected:?} expected from config.json")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that cannot be computed with.
    #[error("tensor \"{name}\" has dtype {found}, {expected} expected")]
    TensorDtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// An operation failed.
    #[error(transparent)]
    Core(#[from] mlxcel_core::Error),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// An image, or a model that reads none.
    #[error(transparent)]
    Image(#[from] crate::vision::ImageError),
    /// A conversion that does not happen.
    #[error(transparent)]
    Convert(#[from] crate::convert::ConvertError),
    /// A sampling parameter or a row of logits.
    #[error(transparent)]
    Sampling(#[from] crate::sampling::SamplingError),
    /// Nothing to continue.
    #[error("the prompt is empty: there is nothing to continue")]
    EmptyPrompt,
    /// The prompt and the wanted tokens exceed the context.
    #[error(
        "the prompt has {tokens} tokens and {wanted} more are wanted, but the context holds {context}"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens to generate.
        wanted: usize,
        /// The limit.
        context: usize,
    },
    /// The caller asked to stop while a prompt was being read.
    #[error("interrupted while reading the prompt")]
    Interrupted,
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// The number of tokens of the model.
        vocab: usize,
    },
}

impl Error {
    /// A configuration error in one sentence.
    pub fn config(what: impl Into<String>) -> Self {
        Self::Config { what: what.into() }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
