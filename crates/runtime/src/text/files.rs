//! Access to a checkpoint's text files, in a folder or inside the binary.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;

use mlxcel_estimator::{EstimatorError, parse_object};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use super::TextError;

/// Parses one JSON object, as leniently as the estimator parses a configuration.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let text = std::str::from_utf8(bytes).map_err(serde_json::Error::custom)?;
    let object = parse_object(text, "").map_err(|error| {
        serde_json::Error::custom(match error {
            EstimatorError::Json { reason, .. } => reason,
            other => other.to_string(),
        })
    })?;
    T::deserialize(Value::Object(object))
}

/// Text files of a checkpoint (`tokenizer.json`, `tokenizer_config.json`, …), by name.
#[derive(Debug, Clone, Copy)]
pub enum TextFiles<'a> {
    /// Files in a folder.
    Folder(&'a Path),
    /// `(name, contents)` pairs of a model inside the binary.
    Embedded(&'a [(&'a str, &'a [u8])]),
}

impl<'a> TextFiles<'a> {
    /// Reads the file `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// [`TextError::Unreadable`] if the file exists but cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Cow<'a, [u8]>>, TextError> {
        match self {
            Self::Embedded(files) => {
                let found = files.iter().find(|(file, _)| *file == name);
                Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Folder(folder) => match std::fs::read(folder.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(source) => Err(TextError::Unreadable { file: self.label(name), source }),
            },
        }
    }

    /// Reads the file `name`, which must exist.
    ///
    /// # Errors
    /// [`TextError::MissingFile`], and the errors of [`TextFiles::read`].
    pub(crate) fn require(&self, name: &str) -> Result<Cow<'a, [u8]>, TextError> {
        self.read(name)?.ok_or_else(|| TextError::MissingFile { file: self.label(name) })
    }

    /// Parses the JSON object in the file `name`; `None` if it does not exist. `Infinity` and `NaN`,
    /// which Python writes, are read as strings.
    ///
    /// # Errors
    /// [`TextError::InvalidJson`], and the errors of [`TextFiles::read`].
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, TextError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        parse(&bytes)
            .map(Some)
            .map_err(|source| TextError::InvalidJson { file: self.label(name), source })
    }

    /// Path of the file `name` for error messages.
    pub(crate) fn label(&self, name: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(name).display().to_string(),
            Self::Embedded(_) => format!("built-in/{name}"),
        }
    }

    /// Name of the checkpoint for error messages.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Embedded(_) => "the built-in model".to_owned(),
        }
    }
}
