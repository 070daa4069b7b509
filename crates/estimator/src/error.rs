//! The one error type of this crate: what is wrong *in the input*, on which file or field.

use std::path::PathBuf;

/// What can be wrong with a configuration, a checkpoint's headers or a value that a person typed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstimatorError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Text that should be a JSON object is not.
    #[error("{what} is not usable JSON: {reason}")]
    Json {
        /// Which text: a path, or `config.json`.
        what: String,
        /// What the parser said, with line and column where it knows them.
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
        /// What it holds, shortened.
        value: String,
        /// Why that cannot be.
        reason: String,
    },
    /// A product or a sum of sizes exceeds 64 bits.
    #[error("{what} exceeds 2^64 and cannot be a real size")]
    Overflow {
        /// What was being computed.
        what: String,
    },
    /// A description in `families/` is malformed. A test reads every one of them, so this cannot
    /// happen in a released crate.
    #[error("family description `{family}`, line {line}: {reason}")]
    Family {
        /// The description's file name.
        family: String,
        /// Line in that file, counted from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A safetensors file's header is malformed as a whole.
    #[error("{}: bad safetensors header: {reason}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// One tensor's entry in a safetensors header is wrong.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name, shortened.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder holds no weights that this crate can size.
    #[error("{}: {reason}", dir.display())]
    Checkpoint {
        /// The folder.
        dir: PathBuf,
        /// What is missing or inconsistent.
        reason: String,
    },
    /// A value that a person gave, in a flag or a variable, is not understood.
    #[error("{name}={value}: {reason}")]
    BadValue {
        /// The flag or the variable.
        name: String,
        /// What was given.
        value: String,
        /// What would be understood.
        reason: String,
    },
}

/// Shortens what a hostile input may have made long, so that an error stays one line.
pub(crate) fn shortened(text: &str) -> String {
    const LIMIT: usize = 80;
    let clean: String =
        text.chars().take(LIMIT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LIMIT).is_some() { format!("{clean}…") } else { clean }
}
