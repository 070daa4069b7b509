//! Download of one file into the cache's `blobs`: resumed, verified, and by one process at a time.
//!
//! Received bytes are in `blobs/CHECKSUM.incomplete`, which only grows; the holder of the lock in
//! `.locks` may write it. A process that is killed at any time thus leaves a file that the next one
//! resumes, and a second process waits and then finds the complete file. Both names are those of
//! `huggingface_hub`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::HubError;
use super::client::{Attempt, Hub, HubResponse, connection_broke, unexpected};
use super::error::{HubResult, UnexpectedResponse};
use super::hash::Hasher;
use super::info::RemoteFile;

const BUFFER_BYTES: usize = 1 << 18;

/// A file to fetch, and its place.
pub(super) struct FileDownload<'a> {
    pub(super) url: String,
    pub(super) file: &'a RemoteFile,
    /// Folder `blobs` of the cache entry.
    pub(super) blobs: &'a Path,
    /// Folder of the entry's locks.
    pub(super) locks: &'a Path,
}

/// Called with the number of bytes of the file that are complete; may interrupt.
pub(super) type OnBytes<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

impl FileDownload<'_> {
    pub(super) fn blob(&self) -> PathBuf {
        self.blobs.join(self.file.checksum.hex())
    }

    fn incomplete(&self) -> PathBuf {
        self.blobs.join(format!("{}.incomplete", self.file.checksum.hex()))
    }

    /// Bytes that are still to be fetched.
    pub(super) fn missing_bytes(&self) -> u64 {
        if self.is_complete() {
            return 0;
        }
        let received = self.incomplete().metadata().map_or(0, |file| file.len());
        self.file.size_bytes.saturating_sub(received)
    }

    /// Returns true if the file is complete. It got its name when its checksum was verified; a different size
    /// means that it was damaged since.
    fn is_complete(&self) -> bool {
        self.blob().metadata().is_ok_and(|file| file.len() == self.file.size_bytes)
    }

    /// Fetches the missing bytes.
    ///
    /// # Errors
    /// Errors of the hub or the system; a checksum that is wrong twice; [`HubError::Interrupted`].
    pub(super) fn fetch(&self, hub: &Hub, on_bytes: OnBytes<'_>) -> HubResult<()> {
        if self.is_complete() {
            return Ok(());
        }
        let lock = self.locks.join(format!("{}.lock", self.file.checksum.hex()));
        let lock_file = File::create(&lock).map_err(|error| HubError::io(&lock, error))?;
        lock_file.lock().map_err(|error| HubError::io(&lock, error))?;
        if self.is_complete() {
            return Ok(());
        }
        let mut partial = PartialFile::open(self)?;
        if !partial.complete(hub, on_bytes)? {
            partial.restart()?;
            if !partial.complete(hub, on_bytes)? {
                partial.restart()?;
                return Err(HubError::Checksum { file: self.file.path.clone() });
            }
        }
        partial.out.sync_all().map_err(|error| HubError::io(&partial.path, error))?;
        let blob = self.blob();
        std::fs::rename(&partial.path, &blob).map_err(|error| HubError::io(&blob, error))
    }
}

/// The received part of a file.
struct PartialFile<'a> {
    download: &'a FileDownload<'a>,
    path: PathBuf,
    out: File,
    hasher: Hasher,
    bytes: u64,
}

/// End of a body.
enum BodyEnd {
    /// The body, or the file, is complete.
    Complete,
    /// The connection broke.
    Broken(HubError),
}

impl<'a> PartialFile<'a> {
    /// Opens the received part and hashes it.
    fn open(download: &'a FileDownload<'a>) -> HubResult<Self> {
        let path = download.incomplete();
        let mut options = OpenOptions::new();
        let mut out = options
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(|error| HubError::io(&path, error))?;
        let mut hasher = download.file.checksum.hasher(download.file.size_bytes);
        let mut bytes = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        out.seek(SeekFrom::Start(0)).map_err(|error| HubError::io(&path, error))?;
        loop {
            match out.read(&mut buffer).map_err(|error| HubError::io(&path, error))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    bytes += count as u64;
                }
            }
        }
        let mut partial = Self { download, path, out, hasher, bytes };
        if bytes > download.file.size_bytes {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn size_bytes(&self) -> u64 {
        self.download.file.size_bytes
    }

    /// Deletes the received part.
    fn restart(&mut self) -> HubResult<()> {
        self.out.set_len(0).map_err(|error| HubError::io(&self.path, error))?;
        self.hasher = self.download.file.checksum.hasher(self.size_bytes());
        self.bytes = 0;
        Ok(())
    }

    /// Fetches the rest of the file, with retries; returns whether its checksum is right.
    fn complete(&mut self, hub: &Hub, on_bytes: OnBytes<'_>) -> HubResult<bool> {
        let url = &self.download.url;
        let mut attempt = 1;
        while self.bytes < self.size_bytes() {
            let before = self.bytes;
            let range = (before > 0).then(|| format!("bytes={before}-"));
            let (error, delay) = match hub.request(url, range.as_deref())? {
                Attempt::Response(mut response) => {
                    match self.receive(hub, &mut response, on_bytes)? {
                        BodyEnd::Complete if self.bytes == self.size_bytes() => break,
                        BodyEnd::Complete => {
                            let early = std::io::Error::from(ErrorKind::UnexpectedEof);
                            (connection_broke(url, &early), None)
                        }
                        BodyEnd::Broken(error) => (error, None),
                    }
                }
                Attempt::RangeNotSatisfiable => {
                    self.restart()?;
                    let reason = "it does not know the rest of the file".to_owned();
                    (HubError::Connection { url: url.clone(), reason }, None)
                }
                Attempt::Retry(error, delay) => (error, delay),
            };
            if self.bytes > before {
                attempt = 1;
            }
            hub.pause(attempt, delay, error)?;
            attempt += 1;
        }
        let fresh = self.download.file.checksum.hasher(self.size_bytes());
        let hasher = std::mem::replace(&mut self.hasher, fresh);
        Ok(hasher.hex() == self.download.file.checksum.hex())
    }

    /// Appends a body.
    fn receive(
        &mut self,
        hub: &Hub,
        response: &mut HubResponse,
        on_bytes: OnBytes<'_>,
    ) -> HubResult<BodyEnd> {
        let url = &self.download.url;
        if !response.is_partial {
            self.restart()?;
        } else if response.start != Some(self.bytes) {
            return Err(unexpected(url, UnexpectedResponse::WrongRange));
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut reader = response.reader();
        while self.bytes < self.size_bytes() {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(BodyEnd::Complete),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Ok(BodyEnd::Broken(connection_broke(url, &error))),
            };
            let left = self.size_bytes() - self.bytes;
            let useful = usize::try_from(left).map_or(count, |left| count.min(left));
            let new = &buffer[..useful];
            self.out.write_all(new).map_err(|error| HubError::io(&self.path, error))?;
            self.hasher.update(new);
            self.bytes += useful as u64;
            hub.count_received(useful as u64);
            if on_bytes(self.bytes).is_break() {
                return Err(HubError::Interrupted);
            }
        }
        Ok(BodyEnd::Complete)
    }
}
