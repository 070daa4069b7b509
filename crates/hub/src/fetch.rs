//! One file from a hub into the cache's `blobs`: resumed where it was left, checked before it gets
//! its name, by one process at a time.
//!
//! What has arrived is `blobs/CHECKSUM.incomplete`, which only grows; whoever holds the lock in
//! `.locks` may write it. So a process that is killed at any moment leaves something that the next
//! one goes on with, and a second process waits and then finds the file. Both names are those of
//! `huggingface_hub`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::HubError;
use super::client::{Answer, Hub, Reply, broken};
use super::error::HubResult;
use super::hash::Hasher;
use super::info::RemoteFile;

const BUFFER_BYTES: usize = 1 << 18;

/// Where a file goes.
pub(super) struct Target<'a> {
    pub(super) url: String,
    pub(super) file: &'a RemoteFile,
    /// The folder `blobs` of the cache entry.
    pub(super) blobs: &'a Path,
    /// The folder of its locks.
    pub(super) locks: &'a Path,
}

/// Is told how many bytes of this file are there; may break off.
pub(super) type OnBytes<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

impl Target<'_> {
    pub(super) fn blob(&self) -> PathBuf {
        self.blobs.join(self.file.checksum.hex())
    }

    fn incomplete(&self) -> PathBuf {
        self.blobs.join(format!("{}.incomplete", self.file.checksum.hex()))
    }

    /// Bytes that are still to come.
    pub(super) fn missing_bytes(&self) -> u64 {
        if self.is_there() {
            return 0;
        }
        let there = self.incomplete().metadata().map_or(0, |file| file.len());
        self.file.size_bytes.saturating_sub(there)
    }

    /// Whether the file is complete. Its name says that its checksum agreed; a size that differs
    /// says that something happened to it since.
    fn is_there(&self) -> bool {
        self.blob().metadata().is_ok_and(|file| file.len() == self.file.size_bytes)
    }

    /// Fetches what is missing.
    ///
    /// # Errors
    /// What the hub or the system says; a checksum that is wrong twice; [`HubError::Interrupted`].
    pub(super) fn fetch(&self, hub: &Hub, on_bytes: OnBytes<'_>) -> HubResult<()> {
        if self.is_there() {
            return Ok(());
        }
        let lock = self.locks.join(format!("{}.lock", self.file.checksum.hex()));
        let locked = File::create(&lock).map_err(|error| HubError::io(&lock, error))?;
        locked.lock().map_err(|error| HubError::io(&lock, error))?;
        if self.is_there() {
            return Ok(());
        }
        let mut part = Part::open(self)?;
        if !part.fill(hub, on_bytes)? {
            part.restart()?;
            if !part.fill(hub, on_bytes)? {
                part.restart()?;
                return Err(HubError::Checksum { file: self.file.path.clone() });
            }
        }
        part.out.sync_all().map_err(|error| HubError::io(&part.path, error))?;
        let blob = self.blob();
        std::fs::rename(&part.path, &blob).map_err(|error| HubError::io(&blob, error))
    }
}

/// A file that is arriving.
struct Part<'a> {
    target: &'a Target<'a>,
    path: PathBuf,
    out: File,
    hasher: Hasher,
    bytes: u64,
}

/// Why a body was read no further.
enum End {
    /// At its end, or at that of the file.
    Complete,
    /// The connection broke.
    Broken(HubError),
}

impl<'a> Part<'a> {
    /// Opens what is there, and hashes it.
    fn open(target: &'a Target<'a>) -> HubResult<Self> {
        let path = target.incomplete();
        let failed = |error| HubError::io(&path, error);
        let mut options = OpenOptions::new();
        let mut out = options.create(true).read(true).append(true).open(&path).map_err(failed)?;
        let mut hasher = target.file.checksum.hasher(target.file.size_bytes);
        let mut bytes = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        out.seek(SeekFrom::Start(0)).map_err(failed)?;
        loop {
            match out.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    bytes += count as u64;
                }
            }
        }
        let mut part = Self { target, path, out, hasher, bytes };
        if bytes > target.file.size_bytes {
            part.restart()?;
        }
        Ok(part)
    }

    /// Throws away what is there.
    fn restart(&mut self) -> HubResult<()> {
        self.out.set_len(0).map_err(|error| HubError::io(&self.path, error))?;
        self.hasher = self.target.file.checksum.hasher(self.target.file.size_bytes);
        self.bytes = 0;
        Ok(())
    }

    /// Fetches until the file has its size; says whether the checksum agrees.
    fn fill(&mut self, hub: &Hub, on_bytes: OnBytes<'_>) -> HubResult<bool> {
        let mut attempt = 1;
        while self.bytes < self.target.file.size_bytes {
            let before = self.bytes;
            let range = (before > 0).then(|| format!("bytes={before}-"));
            let (error, wait) = match hub.ask(&self.target.url, range.as_deref())? {
                Reply::Answer(mut answer) => match self.receive(hub, &mut answer, on_bytes)? {
                    End::Complete if self.bytes == self.target.file.size_bytes => break,
                    End::Complete => {
                        let early = std::io::Error::from(ErrorKind::UnexpectedEof);
                        (broken(&self.target.url, &early), None)
                    }
                    End::Broken(error) => (error, None),
                },
                Reply::NoSuchRange => {
                    self.restart()?;
                    let reason = "it does not know the rest of the file".to_owned();
                    (HubError::Connection { url: self.target.url.clone(), reason }, None)
                }
                Reply::Again(error, wait) => (error, wait),
            };
            if self.bytes > before {
                attempt = 1;
            }
            hub.pause(attempt, wait, error)?;
            attempt += 1;
        }
        let fresh = self.target.file.checksum.hasher(self.target.file.size_bytes);
        let hasher = std::mem::replace(&mut self.hasher, fresh);
        Ok(hasher.hex() == self.target.file.checksum.hex())
    }

    /// Appends a body.
    fn receive(&mut self, hub: &Hub, answer: &mut Answer, on_bytes: OnBytes<'_>) -> HubResult<End> {
        if !answer.partial || answer.start != Some(self.bytes) {
            if answer.partial {
                let what = "it sends another range than was asked for".to_owned();
                return Err(HubError::NotAHub { url: self.target.url.clone(), what });
            }
            self.restart()?;
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut reader = answer.reader();
        while self.bytes < self.target.file.size_bytes {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(End::Complete),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(End::Broken(broken(&self.target.url, &error))),
            };
            let left = self.target.file.size_bytes - self.bytes;
            let useful = usize::try_from(left).map_or(count, |left| count.min(left));
            let new = &buffer[..useful];
            self.out.write_all(new).map_err(|error| HubError::io(&self.path, error))?;
            self.hasher.update(new);
            self.bytes += useful as u64;
            hub.count(useful as u64);
            if on_bytes(self.bytes).is_break() {
                return Err(HubError::Interrupted);
            }
        }
        Ok(End::Complete)
    }
}
