//! The error type of this crate: says what is wrong *in the input*, in which file or field.

use std::path::{Path, PathBuf};

/// An error in a configuration, in the headers of a checkpoint or in a value that a user typed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstimatorError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// Text that should be a JSON object is not one.
    #[error("{document} is not usable JSON: {reason}")]
    Json {
        /// Name of the text: a path, or `config.json`.
        document: String,
        /// Message of the parser, with line and column where it knows them.
        reason: String,
    },
    /// A field that the sizes depend on is neither there nor has a class default.
    #[error("config.json gives no `{field}`, and model type `{model_type}` has no default for it")]
    MissingField {
        /// The field's usual name.
        field: String,
        /// The model type whose layout needs it.
        model_type: String,
    },
    /// A field holds something that cannot be a size.
    #[error("config.json: `{field}` is {value}: {reason}")]
    BadField {
        /// The field's name.
        field: String,
        /// Its value, shortened.
        value: String,
        /// Reason why it cannot be a size.
        reason: String,
    },
    /// A size is zero, no whole number, or larger than any model's.
    #[error("config.json: {field} is {value}, not a whole number from 1 to {largest}")]
    SizeOutOfRange {
        /// The field's name.
        field: String,
        /// Its value, shortened.
        value: String,
        /// Largest valid size.
        largest: u64,
    },
    /// Query heads that do not divide among the key-value heads.
    #[error(
        "config.json: num_attention_heads ({query_heads}) is not a multiple of num_key_value_heads ({kv_heads})"
    )]
    UnevenHeads {
        /// Query heads.
        query_heads: u64,
        /// Key-value heads.
        kv_heads: u64,
    },
    /// A per-layer list or pattern of another length than the model.
    #[error("config.json: {field} has {entries} entries, but the model has {layers} layers")]
    WrongLength {
        /// The field's name.
        field: String,
        /// Entries of the list.
        entries: usize,
        /// Layers of the model.
        layers: u64,
    },
    /// A per-layer list or pattern names a type of layer that the family does not have.
    #[error("config.json: {field} says \"{word}\" of layer {layer} (known: {known})")]
    UnknownLayerType {
        /// The field's name.
        field: String,
        /// Layer, counted from 0.
        layer: usize,
        /// The word or letter, shortened.
        word: String,
        /// Known words or letters, separated by commas.
        known: String,
    },
    /// A list of layer numbers holds one that does not exist.
    #[error(
        "config.json: {field} names layer {number}, but the {layers} layers are numbered from 0 to {}",
        layers.saturating_sub(1)
    )]
    NoSuchLayer {
        /// The field's name.
        field: String,
        /// The number, shortened.
        number: String,
        /// Layers of the model.
        layers: u64,
    },
    /// A product or a sum of sizes exceeds 64 bits.
    #[error("{quantity} exceeds 2^64 and cannot be a real size")]
    Overflow {
        /// Quantity that was being computed.
        quantity: String,
    },
    /// A description in `families/` is malformed. A test reads every one of them, so this cannot
    /// happen in a released crate.
    #[error("family description `{family}`, line {line}: {reason}")]
    Family {
        /// The description's file name.
        family: String,
        /// Line in that file, counted from 1.
        line: usize,
        /// Defect of that line.
        reason: String,
    },
    /// A safetensors file's header is malformed as a whole.
    #[error("{}: bad safetensors header: {reason}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// Defect of the header.
        reason: String,
    },
    /// One tensor's entry in a safetensors header is wrong.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name, shortened.
        tensor: String,
        /// Defect of the entry.
        reason: String,
    },
    /// A folder holds no weights that this crate can size.
    #[error("{}: {reason}", dir.display())]
    Checkpoint {
        /// The folder.
        dir: PathBuf,
        /// Missing or inconsistent part.
        reason: String,
    },
    /// A value given in a flag or an environment variable is not valid.
    #[error("{name}={value}: {reason}")]
    BadValue {
        /// The flag or the environment variable.
        name: String,
        /// Its value.
        value: String,
        /// Values that are accepted.
        reason: String,
    },
}

impl EstimatorError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Shortens text from an untrusted input, so that an error stays one line.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 80;
    let clean: String =
        text.chars().take(LIMIT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LIMIT).is_some() { format!("{clean}…") } else { clean }
}
