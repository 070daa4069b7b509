//! Location of a model's files.

use std::path::PathBuf;

/// A model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// The small demo model that is compiled into the program.
    BuiltIn,
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
}
