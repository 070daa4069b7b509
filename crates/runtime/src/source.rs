//! Where a model's files are.

use std::path::PathBuf;

/// Which model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// The small model that ships inside the program.
    BuiltIn,
    /// A folder in the Hugging Face layout.
    Folder(PathBuf),
}
