//! The error type of this crate.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;

/// An error of this crate, displayed as one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// A file or folder could be read, but not used.
    #[error("{} {problem}", path.display())]
    InvalidFile {
        /// Path of the file or folder.
        path: PathBuf,
        /// Reason.
        problem: FileProblem,
    },
    /// A key of `config.json` is missing or has a value that cannot be used.
    #[error("config.json: {}", problem.describe(key))]
    InvalidConfig {
        /// Key, with its parent where it is nested (`vision_config.patch_size`).
        key: Cow<'static, str>,
        /// Reason.
        problem: ConfigProblem,
    },
    /// The model family is not implemented.
    #[error("model_type \"{model_type}\" is not supported (supported: {supported})")]
    UnsupportedModel {
        /// Family that `config.json` names.
        model_type: String,
        /// Implemented families, comma-separated.
        supported: String,
    },
    /// The estimator rejected a configuration or a safetensors header.
    #[error(transparent)]
    Headers(#[from] mlxcel_estimator::EstimatorError),
    /// A tensor is missing or does not match the configuration.
    #[error("tensor \"{name}\" {problem}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// Reason.
        problem: TensorProblem,
    },
    /// An operation on arrays or caches failed.
    #[error(transparent)]
    Core(#[from] mlxcel_core::Error),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] crate::text::TextError),
    /// An image cannot be used, or the model takes no images.
    #[error(transparent)]
    Image(#[from] crate::vision::ImageError),
    /// A checkpoint cannot be converted.
    #[error(transparent)]
    Convert(#[from] crate::convert::ConvertError),
    /// A sampling option or a row of logits is invalid.
    #[error(transparent)]
    Sampling(#[from] crate::sampling::SamplingError),
    /// The prompt has no tokens.
    #[error("the prompt is empty: there is nothing to continue")]
    EmptyPrompt,
    /// Prompt and requested tokens exceed the context.
    #[error(
        "the prompt has {tokens} tokens and {wanted} more are wanted, but the context holds {context}"
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens to generate.
        wanted: usize,
        /// Limit of the context.
        context: usize,
    },
    /// The caller stopped a prefill or a conversion.
    #[error("interrupted")]
    Interrupted,
    /// A token id is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab} tokens")]
    TokenOutOfRange {
        /// Token id.
        token: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
}

/// Reason why a file or folder cannot be used; completes a sentence that starts with its path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// A folder contains no weights.
    #[error("holds no model.safetensors and no model.safetensors.index.json")]
    NoWeights,
    /// The contents are not in the safetensors format.
    #[error("is not a valid safetensors file: {0}")]
    Safetensors(SafeTensorError),
    /// The contents are not the expected JSON.
    #[error("is not valid: {0}")]
    Json(serde_json::Error),
    /// The contents are JSON, but not an object.
    #[error("is not a JSON object")]
    NotAnObject,
    /// The contents are not UTF-8 text.
    #[error("is not UTF-8 text (byte {byte})")]
    NotUtf8 {
        /// Bytes before the first invalid one.
        byte: usize,
    },
    /// A saved KV cache belongs to another model, mode or version, or is damaged.
    #[error("cannot be restored: {0}")]
    SavedCache(mlxcel_core::Error),
    /// A stored measurement has another schema or belongs to another model.
    #[error("is not a {schema} of model {fingerprint}: delete the file")]
    OtherMeasurement {
        /// Expected schema.
        schema: &'static str,
        /// Expected model.
        fingerprint: String,
    },
}

/// Reason why a key of a configuration file cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// The key is missing.
    Missing,
    /// The value is not among those implemented.
    Unsupported {
        /// Value found.
        found: String,
        /// Implemented values.
        supported: Cow<'static, str>,
    },
    /// The value is outside its range, or of another type.
    Invalid {
        /// Value found.
        found: String,
        /// Accepted values.
        expected: Cow<'static, str>,
    },
    /// A list has the wrong number of entries.
    Length {
        /// Entries found.
        found: usize,
        /// Entries expected.
        expected: usize,
    },
    /// A size is not a multiple of another one.
    NotAMultiple {
        /// Size found.
        found: usize,
        /// Key of the divisor.
        of: &'static str,
        /// The divisor.
        divisor: usize,
    },
    /// A token id is not in the tokenizer's vocabulary.
    UnknownToken {
        /// Token id.
        id: u32,
    },
    /// The value contradicts that of another key.
    Contradicts {
        /// Value found.
        found: String,
        /// The other key.
        other: &'static str,
        /// Value of the other key.
        stated: String,
    },
    /// A list names a layer that the model does not have.
    NoSuchLayer {
        /// Index of the layer.
        layer: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// A layer lacks a part that the model family needs.
    LayerLacks {
        /// Index of the layer.
        layer: usize,
        /// Layers of the model.
        layers: usize,
        /// The part.
        part: &'static str,
    },
    /// A layer is of a kind that is not implemented.
    LayerKind {
        /// Index of the layer.
        layer: usize,
        /// Kind found.
        found: &'static str,
        /// Implemented kinds.
        supported: &'static str,
    },
    /// The sizes of the layers cannot be derived.
    UnknownLayers {
        /// Assumption that sizing made instead.
        assumption: String,
    },
}

impl ConfigProblem {
    /// Describes the problem in one sentence that names `key`.
    pub(crate) fn describe(&self, key: &str) -> String {
        match self {
            Self::Missing => format!("{key} is missing"),
            Self::Unsupported { found, supported } => {
                format!("{key} is {found}, which is not supported (supported: {supported})")
            }
            Self::Invalid { found, expected } => format!("{key} is {found}, {expected} expected"),
            Self::Length { found, expected } => {
                format!("{key} has {found} entries, {expected} expected")
            }
            Self::NotAMultiple { found, of, divisor } => {
                format!("{key} ({found}) is not a multiple of {of} ({divisor})")
            }
            Self::UnknownToken { id } => format!("{key} is {id}, a token that the tokenizer lacks"),
            Self::Contradicts { found, other, stated } => {
                format!("{key} is {found}, which contradicts {other} ({stated})")
            }
            Self::NoSuchLayer { layer, layers } => format!("{key} names layer {layer} of {layers}"),
            Self::LayerLacks { layer, layers, part } => {
                format!("{key}: layer {layer} of {layers} has no {part}")
            }
            Self::LayerKind { layer, found, supported } => {
                format!("{key}: layer {layer} has {found} (supported: {supported})")
            }
            Self::UnknownLayers { assumption } => {
                format!("{key}: the layers are not known: {assumption}")
            }
        }
    }
}

/// Reason why a tensor cannot be used; completes a sentence that starts with its name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The tensor is not in the checkpoint.
    #[error("is missing from {}", dir.display())]
    Missing {
        /// Folder of the checkpoint.
        dir: PathBuf,
    },
    /// The tensor has another shape than the configuration implies.
    #[error("has shape {found:?}, {expected:?} expected from config.json")]
    Shape {
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// The tensor has an element type that cannot be computed with.
    #[error("has dtype {found}, {expected} expected")]
    Dtype {
        /// Dtype in the file.
        found: String,
        /// Accepted dtypes.
        expected: &'static str,
    },
    /// A matrix cannot have the affine quantisation that the configuration states.
    #[error(
        "has {columns} columns, which cannot be quantised to {bits} bits in groups of {group_size}"
    )]
    Affine {
        /// Columns of the matrix.
        columns: usize,
        /// Bits per weight.
        bits: usize,
        /// Columns of a group.
        group_size: usize,
    },
    /// A matrix cannot be quantised to mxfp4.
    #[error("has {columns} columns, which cannot be quantised to mxfp4 in groups of {group_size}")]
    Mxfp4 {
        /// Columns of the matrix.
        columns: usize,
        /// Columns of a group.
        group_size: usize,
    },
    /// The tensor is quantised, but the configuration does not say how.
    #[error("needs a \"quantization\" block in config.json")]
    NoQuantization,
    /// A dimension is larger than an array's can be.
    #[error("has shape {shape:?}, dimensions below 2^31 expected")]
    TooLarge {
        /// Shape of the tensor.
        shape: Vec<usize>,
    },
}

impl Error {
    /// A key of `config.json` is missing.
    #[must_use]
    pub(crate) fn missing_key(key: impl Into<Cow<'static, str>>) -> Self {
        Self::invalid_config(key, ConfigProblem::Missing)
    }

    /// A key of `config.json` has a value that is not implemented.
    #[must_use]
    pub(crate) fn unsupported_value(
        key: impl Into<Cow<'static, str>>,
        found: impl ToString,
        supported: impl Into<Cow<'static, str>>,
    ) -> Self {
        let found = found.to_string();
        let supported = supported.into();
        Self::invalid_config(key, ConfigProblem::Unsupported { found, supported })
    }

    /// A key of `config.json` has a value outside its range.
    #[must_use]
    pub(crate) fn invalid_value(
        key: impl Into<Cow<'static, str>>,
        found: impl ToString,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        let found = found.to_string();
        let expected = expected.into();
        Self::invalid_config(key, ConfigProblem::Invalid { found, expected })
    }

    /// A list in `config.json` has the wrong number of entries.
    #[must_use]
    pub(crate) fn wrong_length(
        key: impl Into<Cow<'static, str>>,
        found: usize,
        expected: usize,
    ) -> Self {
        Self::invalid_config(key, ConfigProblem::Length { found, expected })
    }

    /// `config.json` does not have the structure that the model needs.
    #[must_use]
    pub(crate) fn config_json(error: serde_json::Error) -> Self {
        Self::invalid_file(Path::new("config.json"), FileProblem::Json(error))
    }

    /// The key of `config.json` has this problem.
    #[must_use]
    pub(crate) fn invalid_config(
        key: impl Into<Cow<'static, str>>,
        problem: ConfigProblem,
    ) -> Self {
        Self::InvalidConfig { key: key.into(), problem }
    }

    /// The file or folder `path` cannot be used.
    #[must_use]
    pub(crate) fn invalid_file(path: &Path, problem: FileProblem) -> Self {
        Self::InvalidFile { path: path.to_owned(), problem }
    }

    /// Reading or writing `path` failed.
    #[must_use]
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// Reading or writing the safetensors file `path` failed.
    #[must_use]
    pub(crate) fn safetensors(path: &Path, error: SafeTensorError) -> Self {
        match error {
            SafeTensorError::IoError(source) => Self::io(path, source),
            other => Self::invalid_file(path, FileProblem::Safetensors(other)),
        }
    }

    /// The tensor `name` cannot be used.
    #[must_use]
    pub(crate) fn tensor(name: &str, problem: TensorProblem) -> Self {
        Self::Tensor { name: name.to_owned(), problem }
    }
}

/// Result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_error_names_its_key() {
        let cases = [
            (Error::missing_key("vocab_size"), "config.json: vocab_size is missing"),
            (
                Error::unsupported_value("hidden_act", "\"magic\"", "silu"),
                "config.json: hidden_act is \"magic\", which is not supported (supported: silu)",
            ),
            (Error::invalid_value("head_dim", 0, "1 or more"), "head_dim is 0, 1 or more expected"),
            (Error::wrong_length("layer_types", 1, 2), "layer_types has 1 entries, 2 expected"),
            (
                Error::invalid_config(
                    "norm_eps",
                    ConfigProblem::Contradicts {
                        found: "1".to_owned(),
                        other: "rms_norm_eps",
                        stated: "2".to_owned(),
                    },
                ),
                "norm_eps is 1, which contradicts rms_norm_eps (2)",
            ),
            (
                Error::invalid_config(
                    format!("rope_scaling.{}", "factor"),
                    ConfigProblem::NotAMultiple { found: 5, of: "heads", divisor: 2 },
                ),
                "rope_scaling.factor (5) is not a multiple of heads (2)",
            ),
            (
                Error::invalid_config(
                    "layer_types",
                    ConfigProblem::LayerLacks { layer: 1, layers: 2, part: "attention" },
                ),
                "layer_types: layer 1 of 2 has no attention",
            ),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            assert!(text.starts_with("config.json: ") && text.ends_with(expected), "{text}");
        }
    }
}
