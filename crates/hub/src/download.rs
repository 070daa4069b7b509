//! A whole repository into the cache: which files, whether there is room, and the entry's layout.
//!
//! `blobs/CHECKSUM` are the files, `snapshots/COMMIT/PATH` are links to them, and `refs/REVISION`
//! holds the commit. The reference is written last, so that a model is found when it is complete.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use glob::Pattern;
use mlxcel_estimator::format_bytes;

use super::client::Hub;
use super::error::HubResult;
use super::fetch::Target;
use super::info::{RemoteFile, RepoInfo};
use super::{HubError, local};

/// The small files that a model needs, as mlx-lm fetches them; none of them is a program.
const SMALL: [&str; 7] =
    ["*.json", "*.jinja", "*.txt", "*.jsonl", "*.tiktoken", "*.model", "LICENSE*"];

/// What is to be downloaded.
#[derive(Clone, Debug)]
pub struct Download<'a> {
    /// `org/name`.
    pub name: &'a str,
    /// A branch, a tag or a commit.
    pub revision: &'a str,
    /// Patterns of the files wanted; empty: what running the model needs.
    pub include: &'a [String],
}

/// A download that can begin.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The repository.
    pub info: RepoInfo,
    /// The files that are wanted.
    pub files: Vec<RemoteFile>,
    /// Bytes of them that are not in the cache yet.
    pub missing_bytes: u64,
    cache: PathBuf,
    entry: PathBuf,
}

impl Hub {
    /// Asks what there is, chooses files, and checks that there is room for them.
    ///
    /// # Errors
    /// A name, revision or pattern that cannot be, a repository without what is wanted, a full disk,
    /// and what the hub says.
    pub fn plan(&self, download: &Download<'_>) -> HubResult<Planned> {
        let cache = self.cache(download.name)?;
        let entry = local::entry_of(&cache, download.name)?;
        let info = self.info(download.name, download.revision)?;
        let files = chosen(&info, download)?;
        let mut planned = Planned { info, files, missing_bytes: 0, cache, entry };
        let missing =
            |file| planned.target(self, file, &planned.blobs(), Path::new("")).missing_bytes();
        planned.missing_bytes = planned.files.iter().map(missing).sum();
        planned.check_room()?;
        Ok(planned)
    }

    /// Fetches everything that is missing and returns the snapshot's folder. `progress` is told the
    /// file, how many of how many bytes are there, and may break off; what has arrived stays.
    ///
    /// # Errors
    /// What the hub or the system says; a wrong checksum; [`HubError::Interrupted`].
    pub fn download(
        &self,
        planned: &Planned,
        progress: &mut dyn FnMut(&str, u64, u64) -> ControlFlow<()>,
    ) -> HubResult<PathBuf> {
        let snapshot = planned.entry.join("snapshots").join(&planned.info.sha);
        let (blobs, locks) = (planned.blobs(), planned.locks());
        for folder in [&blobs, &locks, &snapshot] {
            create_folder(folder)?;
        }
        let total = planned.files.iter().map(|file| file.size_bytes).sum();
        let mut done = 0;
        for file in &planned.files {
            let target = planned.target(self, file, &blobs, &locks);
            let mut on_bytes = |bytes| progress(&file.path, done + bytes, total);
            target.fetch(self, &mut on_bytes)?;
            link(&snapshot, file)?;
            done += file.size_bytes;
            if progress(&file.path, done, total).is_break() {
                return Err(HubError::Interrupted);
            }
        }
        planned.write_reference()?;
        Ok(snapshot)
    }
}

impl Planned {
    /// Bytes of all wanted files.
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

    fn target<'a>(
        &self,
        hub: &Hub,
        file: &'a RemoteFile,
        blobs: &'a Path,
        locks: &'a Path,
    ) -> Target<'a> {
        Target { url: hub.file_url(&self.info, &file.path), file, blobs, locks }
    }

    fn check_room(&self) -> HubResult<()> {
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

    /// A commit needs no reference to itself.
    fn write_reference(&self) -> HubResult<()> {
        if self.info.revision == self.info.sha {
            return Ok(());
        }
        let path = self.entry.join("refs").join(&self.info.revision);
        create_folder(path.parent().unwrap_or(&self.entry))?;
        let lock = self.locks().join("refs.lock");
        let locked = File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _locked = locked.map_err(|error| HubError::io(&lock, error))?;
        let new = path.with_file_name(format!(".new-{}", std::process::id()));
        let write = || {
            std::fs::write(&new, &self.info.sha)?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|error| HubError::io(&path, error))
    }
}

/// Bytes that this user may still write where `entry` lies, or would lie: the nearest folder above
/// it that exists is asked. `None` where the system does not say.
fn available_bytes(entry: &Path) -> Option<u64> {
    let entry = std::path::absolute(entry).ok()?;
    let folder = entry.ancestors().find(|folder| folder.exists())?;
    let system = rustix::fs::statvfs(folder).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

fn create_folder(folder: &Path) -> HubResult<()> {
    std::fs::create_dir_all(folder).map_err(|error| HubError::io(folder, error))
}

/// Links `snapshot/PATH` to its blob, relative, so that the cache can be moved.
fn link(snapshot: &Path, file: &RemoteFile) -> HubResult<()> {
    let path = snapshot.join(&file.path);
    create_folder(path.parent().unwrap_or(snapshot))?;
    let depth = file.path.matches('/').count();
    let blob = format!("{}../../blobs/{}", "../".repeat(depth), file.checksum.hex());
    match std::os::unix::fs::symlink(&blob, &path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let same = std::fs::read_link(&path).is_ok_and(|old| old == Path::new(&blob));
            if same { Ok(()) } else { relink(&blob, &path) }
        }
        result => result.map_err(|error| HubError::io(&path, error)),
    }
}

fn relink(blob: &str, path: &Path) -> HubResult<()> {
    let again = || {
        std::fs::remove_file(path)?;
        std::os::unix::fs::symlink(blob, path)
    };
    again().map_err(|error| HubError::io(path, error))
}

/// The files that are wanted.
fn chosen(info: &RepoInfo, download: &Download<'_>) -> HubResult<Vec<RemoteFile>> {
    let nothing = |wanted: String| HubError::NothingToDownload { name: info.name.clone(), wanted };
    let pick = |patterns: &[Pattern]| -> Vec<RemoteFile> {
        let wanted = |file: &&RemoteFile| patterns.iter().any(|p| p.matches(&file.path));
        info.files.iter().filter(wanted).cloned().collect()
    };
    if !download.include.is_empty() {
        let files = pick(&patterns(download.include.iter().map(String::as_str))?);
        let all = || nothing(format!("file that matches {}", download.include.join(", ")));
        return if files.is_empty() { Err(all()) } else { Ok(files) };
    }
    let mut weights = weights(info);
    if weights.is_empty() {
        let gguf = info.files.iter().any(|file| file.path.ends_with(".gguf"));
        let hint = if gguf { " (its GGUF files are for llama.cpp)" } else { "" };
        return Err(nothing(format!("safetensors files{hint}")));
    }
    let top = |file: &RemoteFile| !file.path.contains('/');
    let mut files = pick(&patterns(SMALL.into_iter())?);
    files.retain(top);
    files.append(&mut weights);
    Ok(files)
}

/// `model*.safetensors`, or whatever is called so; the same weights under two names are not wanted.
fn weights(info: &RepoInfo) -> Vec<RemoteFile> {
    let top = |file: &&RemoteFile| file.path.ends_with(".safetensors") && !file.path.contains('/');
    let all: Vec<RemoteFile> = info.files.iter().filter(top).cloned().collect();
    let model: Vec<RemoteFile> =
        all.iter().filter(|file| file.path.starts_with("model")).cloned().collect();
    if model.is_empty() { all } else { model }
}

fn patterns<'a>(texts: impl Iterator<Item = &'a str>) -> HubResult<Vec<Pattern>> {
    let parse = |text: &str| {
        let bad = |error: glob::PatternError| error.msg.to_owned();
        Pattern::new(text)
            .map_err(|error| HubError::BadPattern { pattern: text.to_owned(), reason: bad(error) })
    };
    texts.map(parse).collect()
}
