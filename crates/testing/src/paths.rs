//! Paths relative to the root of the repository.

use std::path::{Path, PathBuf};

/// The root of the workspace that this crate was built in.
///
/// # Panics
/// Never in a checkout: the manifest lies two folders below the root.
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().and_then(Path::parent);
    root.expect("the crate lies two folders below the root").to_path_buf()
}

/// Folder next to the repository with material that is never committed (corpora, published model
/// configurations), if it exists.
pub fn shared_folder() -> Option<PathBuf> {
    let folder = workspace_root().join("../shared");
    folder.is_dir().then_some(folder)
}
