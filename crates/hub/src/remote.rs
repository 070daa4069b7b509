//! Sizes of a remote model, from `config.json`, the index and the headers of its safetensors files.
//! Headers are read by range requests: kilobytes instead of gigabytes.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlxcel_estimator::headers::{Checkpoint, Header, MAX_HEADER_BYTES, parse_header};
use mlxcel_estimator::{ModelSpec, WeightFootprint};

use super::client::{Hub, unexpected};
use super::error::{HubResult, UnexpectedResponse};
use super::info::{RemoteFile, RepoInfo};

/// Size of the first request for a header; a longer header needs a second one.
const FIRST_REQUEST_BYTES: u64 = 64 << 10;
/// Length field before the JSON of a header.
const PREFIX_BYTES: u64 = 8;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Number of headers read in parallel.
const PARALLEL_HEADERS: usize = 8;
const INDEX: &str = "model.safetensors.index.json";

impl Hub {
    /// Specification and weights of the model `name` at `revision`, equal to those that the
    /// estimator reads after a download.
    ///
    /// # Errors
    /// Refusals of the hub, and files that are broken or contradict each other.
    pub fn sized(&self, name: &str, revision: &str) -> HubResult<(ModelSpec, WeightFootprint)> {
        self.sized_from(&self.info(name, revision)?)
    }

    /// [`Self::sized`] for a repository that is described already.
    ///
    /// # Errors
    /// Errors of [`Self::sized`].
    pub fn sized_from(&self, info: &RepoInfo) -> HubResult<(ModelSpec, WeightFootprint)> {
        let config = self.text(info, "config.json", MAX_CONFIG_BYTES)?;
        let config = config.ok_or_else(|| info.lacks("config.json".to_owned()))?;
        let spec = ModelSpec::from_config(&config)?;
        let index = self.text(info, INDEX, MAX_INDEX_BYTES)?;
        let names = match &index {
            Some(index) => Checkpoint::shard_names(index)?,
            None => info.weight_files().map(|file| file.path.clone()).collect(),
        };
        if names.is_empty() {
            return Err(info.lacks("safetensors files".to_owned()));
        }
        let mut files = Vec::new();
        for name in &names {
            let missing = || info.lacks(format!("{name}, which its index names"));
            files.push(info.file(name).ok_or_else(missing)?);
        }
        let headers = self.headers(info, &files)?;
        let origin = PathBuf::from(&info.name);
        let checkpoint = Checkpoint::assemble(&origin, headers, index.as_deref())?;
        let weights = WeightFootprint::from_headers(&checkpoint, &spec);
        Ok((spec, weights))
    }

    /// A text file of the repository; `None` if there is none.
    fn text(&self, info: &RepoInfo, path: &str, limit: u64) -> HubResult<Option<String>> {
        if info.file(path).is_none() {
            return Ok(None);
        }
        let url = self.file_url(info, path);
        let bytes = self.get(&url, limit)?;
        let text = String::from_utf8(bytes).map(Some);
        text.map_err(|_| unexpected(&url, UnexpectedResponse::NotText))
    }

    /// Headers of `files`, in order of their paths, several in parallel.
    fn headers(&self, info: &RepoInfo, files: &[&RemoteFile]) -> HubResult<Vec<(PathBuf, Header)>> {
        let next = AtomicUsize::new(0);
        let read = Mutex::new(Vec::with_capacity(files.len()));
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL_HEADERS.min(files.len()) {
                scope.spawn(|| {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let header =
                            self.header(info, file).map(|h| (PathBuf::from(&file.path), h));
                        if header.is_err() {
                            next.store(files.len(), Ordering::Relaxed);
                        }
                        read.lock().unwrap_or_else(PoisonError::into_inner).push(header);
                    }
                });
            }
        });
        let read = read.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut headers = read.into_iter().collect::<HubResult<Vec<_>>>()?;
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(headers)
    }

    /// Header of one file, in one or two requests.
    fn header(&self, info: &RepoInfo, file: &RemoteFile) -> HubResult<Header> {
        let url = self.file_url(info, &file.path);
        let path = PathBuf::from(format!("{}/{}", info.name, file.path));
        let size = file.size_bytes;
        let first = FIRST_REQUEST_BYTES.min(size);
        if first < PREFIX_BYTES {
            return Ok(parse_header(&path, &vec![0; usize::from(first > 0)], size)?);
        }
        let (location, mut bytes) = self.get_range(&url, 0..=first - 1)?;
        let stated = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
        let end = stated.saturating_add(PREFIX_BYTES);
        // The parser rejects an impossible length.
        if stated <= MAX_HEADER_BYTES && end <= size && end > first {
            bytes.append(&mut self.get_range(&location, first..=end - 1)?.1);
        }
        Ok(parse_header(&path, &bytes, size)?)
    }
}
