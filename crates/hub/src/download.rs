//! Download of a repository into the cache: choice of files, disk space, and the entry's layout.
//!
//! Files are `blobs/CHECKSUM`, `snapshots/COMMIT/PATH` are links to them, and `refs/REVISION` holds
//! the commit. The reference is written last, so that only complete models are found.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use glob::Pattern;
use mlxcel_estimator::format_bytes;

use super::client::Hub;
use super::error::HubResult;
use super::fetch::FileDownload;
use super::info::{RemoteFile, RepoInfo};
use super::{HubError, local};

/// Small files that a model needs, as mlx-lm fetches them; none of them is a program.
const SMALL_FILES: [&str; 7] =
    ["*.json", "*.jinja", "*.txt", "*.jsonl", "*.tiktoken", "*.model", "LICENSE*"];

/// Selection of a download.
#[derive(Clone, Debug)]
pub struct Download<'a> {
    /// `org/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit.
    pub revision: &'a str,
    /// Patterns of files; without any, the files needed to run the model.
    pub include: &'a [String],
}

/// A download that can start.
#[derive(Clone, Debug)]
pub struct DownloadPlan {
    /// The repository.
    pub info: RepoInfo,
    /// Selected files.
    pub files: Vec<RemoteFile>,
    /// Bytes of them that are not in the cache yet.
    pub missing_bytes: u64,
    cache: PathBuf,
    entry: PathBuf,
}

impl Hub {
    /// Requests the list of files, selects from it, and checks that there is disk space for them.
    ///
    /// # Errors
    /// An invalid name, revision or pattern, a repository without the files wanted, a full disk, and
    /// refusals of the hub.
    pub fn plan(&self, download: &Download<'_>) -> HubResult<DownloadPlan> {
        let cache = self.cache(download.name)?;
        let entry = local::entry_of(&cache, download.name)?;
        let info = self.info(download.name, download.revision)?;
        let files = select(&info, download)?;
        let mut plan = DownloadPlan { info, files, missing_bytes: 0, cache, entry };
        let blobs = plan.blobs();
        let downloads =
            plan.files.iter().map(|file| plan.file_download(self, file, &blobs, Path::new("")));
        plan.missing_bytes = downloads.map(|download| download.missing_bytes()).sum();
        plan.check_disk_space()?;
        Ok(plan)
    }

    /// Fetches all missing files and returns the snapshot's folder. `progress` is called with the
    /// file, the number of complete bytes and of all bytes, and may interrupt; received parts are
    /// kept.
    ///
    /// # Errors
    /// Errors of the hub or the system; a wrong checksum; [`HubError::Interrupted`].
    pub fn download(
        &self,
        plan: &DownloadPlan,
        progress: &mut dyn FnMut(&str, u64, u64) -> ControlFlow<()>,
    ) -> HubResult<PathBuf> {
        let snapshot = plan.entry.join("snapshots").join(&plan.info.sha);
        let blobs = plan.blobs();
        let locks = plan.locks();
        for folder in [&blobs, &locks, &snapshot] {
            create_folder(folder)?;
        }
        let total = plan.total_bytes();
        let mut done = 0;
        for file in &plan.files {
            let download = plan.file_download(self, file, &blobs, &locks);
            download.fetch(self, &mut |bytes| progress(&file.path, done + bytes, total))?;
            link(&snapshot, file)?;
            done += file.size_bytes;
            if progress(&file.path, done, total).is_break() {
                return Err(HubError::Interrupted);
            }
        }
        plan.write_reference()?;
        Ok(snapshot)
    }
}

impl DownloadPlan {
    /// Bytes of all selected files.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    fn blobs(&self) -> PathBuf {
        self.entry.join("blobs")
    }

    fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(self.entry.file_name().unwrap_or_default())
    }

    fn file_download<'a>(
        &self,
        hub: &Hub,
        file: &'a RemoteFile,
        blobs: &'a Path,
        locks: &'a Path,
    ) -> FileDownload<'a> {
        FileDownload { url: hub.file_url(&self.info, &file.path), file, blobs, locks }
    }

    fn check_disk_space(&self) -> HubResult<()> {
        match available_bytes(&self.entry) {
            Some(available) if available < self.missing_bytes => Err(HubError::NoRoom {
                name: self.info.name.clone(),
                needed: format_bytes(self.missing_bytes),
                available: format_bytes(available),
                cache: self.cache.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Writes `refs/REVISION`, unless the revision is the commit itself.
    fn write_reference(&self) -> HubResult<()> {
        if self.info.revision == self.info.sha {
            return Ok(());
        }
        let path = self.entry.join("refs").join(&self.info.revision);
        create_folder(path.parent().unwrap_or(&self.entry))?;
        let lock = self.locks().join("refs.lock");
        let lock_file = File::create(&lock).map_err(|error| HubError::io(&lock, error))?;
        lock_file.lock().map_err(|error| HubError::io(&lock, error))?;
        let draft = path.with_file_name(format!(".new-{}", std::process::id()));
        std::fs::write(&draft, &self.info.sha)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|error| HubError::io(&path, error))
    }
}

/// Bytes that this user may still write at `entry`, which need not exist; `None` if the system does
/// not tell.
fn available_bytes(entry: &Path) -> Option<u64> {
    let entry = std::path::absolute(entry).ok()?;
    let folder = entry.ancestors().find(|folder| folder.exists())?;
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

fn create_folder(folder: &Path) -> HubResult<()> {
    std::fs::create_dir_all(folder).map_err(|error| HubError::io(folder, error))
}

/// Links `snapshot/PATH` to its blob by a relative path, so that the cache can be moved.
fn link(snapshot: &Path, file: &RemoteFile) -> HubResult<()> {
    let path = snapshot.join(&file.path);
    create_folder(path.parent().unwrap_or(snapshot))?;
    let depth = file.path.matches('/').count();
    let blob = format!("{}../../blobs/{}", "../".repeat(depth), file.checksum.hex());
    let linked = match std::os::unix::fs::symlink(&blob, &path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let is_same = std::fs::read_link(&path).is_ok_and(|old| old == Path::new(&blob));
            if is_same { Ok(()) } else { relink(&blob, &path) }
        }
        result => result,
    };
    linked.map_err(|error| HubError::io(&path, error))
}

fn relink(blob: &str, path: &Path) -> std::io::Result<()> {
    std::fs::remove_file(path)?;
    std::os::unix::fs::symlink(blob, path)
}

/// Selected files of a repository.
fn select(info: &RepoInfo, download: &Download<'_>) -> HubResult<Vec<RemoteFile>> {
    if !download.include.is_empty() {
        let files = matching(info, &patterns(download.include.iter().map(String::as_str))?);
        if files.is_empty() {
            return Err(info.lacks(format!("file that matches {}", download.include.join(", "))));
        }
        return Ok(files);
    }
    let weights: Vec<RemoteFile> = info.weight_files().cloned().collect();
    if weights.is_empty() {
        let has_gguf = info.files.iter().any(|file| file.path.ends_with(".gguf"));
        let hint = if has_gguf { " (its GGUF files are for llama.cpp)" } else { "" };
        return Err(info.lacks(format!("safetensors files{hint}")));
    }
    let mut files = matching(info, &patterns(SMALL_FILES.into_iter())?);
    files.retain(|file| !file.path.contains('/'));
    files.extend(weights);
    Ok(files)
}

/// Files of a repository that match any of `patterns`.
fn matching(info: &RepoInfo, patterns: &[Pattern]) -> Vec<RemoteFile> {
    let files = info.files.iter();
    files.filter(|file| patterns.iter().any(|p| p.matches(&file.path))).cloned().collect()
}

fn patterns<'a>(texts: impl Iterator<Item = &'a str>) -> HubResult<Vec<Pattern>> {
    let mut patterns = Vec::new();
    for text in texts {
        patterns.push(Pattern::new(text).map_err(|error| HubError::BadPattern {
            pattern: text.to_owned(),
            reason: error.msg.to_owned(),
        })?);
    }
    Ok(patterns)
}
