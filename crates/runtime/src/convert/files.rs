//! The new folder: made under another name and renamed when it is complete; and the small files of
//! a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// Kinds of files that are taken over as they are.
const TAKEN: [&str; 7] = ["json", "jinja", "txt", "model", "tiktoken", "md", "py"];

/// Made anew, or true of the old weights only.
const LEFT: [&str; 2] = ["config.json", "model.safetensors.index.json"];

/// A folder that disappears unless it is finished.
pub(super) struct Incomplete(Option<PathBuf>);

impl Incomplete {
    /// Creates a folder beside `out`, hidden, and whatever folders are missing above it.
    pub(super) fn create(out: &Path) -> Result<Self> {
        let out = std::path::absolute(out)
            .map_err(|source| Error::Io { path: out.to_owned(), source })?;
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = out.with_file_name(format!(".{name}.incomplete-{}", std::process::id()));
        match std::fs::create_dir_all(&folder) {
            Ok(()) => Ok(Self(Some(folder))),
            Err(source) => Err(Error::Io { path: folder, source }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Gives the folder its name.
    pub(super) fn finish(mut self, out: &Path) -> Result<()> {
        std::fs::rename(self.path(), out)
            .map_err(|source| Error::Io { path: out.to_owned(), source })?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Incomplete {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            // There is nobody to tell: the error that brought us here is already on its way.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Writes `config.json` and the index, and takes over tokenizer, template, licence and the like.
pub(super) fn write_small(source: &Path, out: &Path, config: &Value, index: &Value) -> Result<()> {
    let failed = |path: &Path, source| Error::Io { path: path.to_owned(), source };
    let [config_name, index_name] = LEFT;
    for (name, value) in [(config_name, config), (index_name, index)] {
        let path = out.join(name);
        std::fs::write(&path, format!("{value:#}\n")).map_err(|error| failed(&path, error))?;
    }
    for entry in std::fs::read_dir(source).map_err(|error| failed(source, error))? {
        let path = entry.map_err(|error| failed(source, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_file() && is_taken(name) {
            std::fs::copy(&path, out.join(name)).map_err(|error| failed(&path, error))?;
        }
    }
    Ok(())
}

fn is_taken(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let kind = TAKEN.contains(&extension) || name.starts_with("LICENSE") || name == "NOTICE";
    kind && !LEFT.contains(&name) && !name.ends_with(".index.json") && !name.starts_with('.')
}
