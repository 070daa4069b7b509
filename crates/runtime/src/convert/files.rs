//! The output folder, created under a temporary name and renamed when complete, and the small files
//! of a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Error, Result};

/// Extensions of files that are copied.
const COPIED_EXTENSIONS: [&str; 7] = ["json", "jinja", "txt", "model", "tiktoken", "md", "py"];

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

/// A temporary output folder, deleted on drop unless it was renamed.
pub(super) struct StagingFolder {
    path: PathBuf,
    renamed: bool,
}

impl StagingFolder {
    /// Creates a hidden folder next to `out`, and the missing folders above it.
    pub(super) fn create(out: &Path) -> Result<Self> {
        let out = std::path::absolute(out).map_err(|error| Error::io(out, error))?;
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = out.with_file_name(format!(".{name}.incomplete-{}", std::process::id()));
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(Self { path, renamed: false }),
            Err(error) => Err(Error::io(&path, error)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder to `out`.
    pub(super) fn finish(mut self, out: &Path) -> Result<()> {
        std::fs::rename(&self.path, out).map_err(|error| Error::io(out, error))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for StagingFolder {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that ended the conversion is the one to report.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Writes `config.json` and the index, and copies tokenizer, templates, licence and the like.
pub(super) fn write_small_files(
    source: &Path,
    out: &Path,
    config: &Value,
    index: &Value,
) -> Result<()> {
    write_json(&out.join(CONFIG), config)?;
    write_json(&out.join(INDEX), index)?;
    for entry in std::fs::read_dir(source).map_err(|error| Error::io(source, error))? {
        let path = entry.map_err(|error| Error::io(source, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_file() && is_copied(name) {
            std::fs::copy(&path, out.join(name)).map_err(|error| Error::io(&path, error))?;
        }
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|error| Error::io(path, error))
}

fn is_copied(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_known =
        COPIED_EXTENSIONS.contains(&extension) || name.starts_with("LICENSE") || name == "NOTICE";
    let is_rewritten = name == CONFIG || name.ends_with(".index.json");
    is_known && !is_rewritten && !name.starts_with('.')
}
