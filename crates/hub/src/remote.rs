//! Sizing a model that is not here: its `config.json`, its index, and of each safetensors file the
//! header, by range requests: kilobytes instead of gigabytes.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlxcel_estimator::headers::{Checkpoint, Header, MAX_HEADER_BYTES, parse_header};
use mlxcel_estimator::{ModelSpec, WeightFootprint};

use super::HubError;
use super::client::Hub;
use super::error::HubResult;
use super::info::{RemoteFile, RepoInfo};

/// Read at first: most headers are shorter, and those that are longer need one request more.
const FIRST_BYTES: u64 = 64 << 10;
/// Bytes before a header's JSON.
const PREFIX_BYTES: u64 = 8;
const MAX_CONFIG_BYTES: u64 = 16 << 20;
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Headers that are read at once.
const AT_ONCE: usize = 8;
const INDEX: &str = "model.safetensors.index.json";

impl Hub {
    /// The model `name` at `revision` as the estimator sees it, equal to what it sees after a
    /// download.
    ///
    /// # Errors
    /// What the hub says, and files that are broken or contradict each other.
    pub fn sized(&self, name: &str, revision: &str) -> HubResult<(ModelSpec, WeightFootprint)> {
        self.sized_from(&self.info(name, revision)?)
    }

    /// [`Self::sized`] of a repository whose files are known.
    ///
    /// # Errors
    /// As [`Self::sized`].
    pub fn sized_from(&self, info: &RepoInfo) -> HubResult<(ModelSpec, WeightFootprint)> {
        let nothing = |wanted: &str| HubError::NothingToDownload {
            name: info.name.clone(),
            wanted: wanted.to_owned(),
        };
        let config = self.text(info, "config.json", MAX_CONFIG_BYTES)?;
        let config = config.ok_or_else(|| nothing("config.json"))?;
        let spec = ModelSpec::from_config(&config)?;
        let index = self.text(info, INDEX, MAX_INDEX_BYTES)?;
        let names = match &index {
            Some(index) => Checkpoint::shard_names(index)?,
            None => top_level(info),
        };
        if names.is_empty() {
            return Err(nothing("safetensors files"));
        }
        let files = names.iter().map(|name| {
            info.file(name).ok_or_else(|| nothing(&format!("{name}, which its index names")))
        });
        let files = files.collect::<HubResult<Vec<_>>>()?;
        let headers = self.headers(info, &files)?;
        let checkpoint =
            Checkpoint::assemble(&PathBuf::from(&info.name), headers, index.as_deref())?;
        let weights = WeightFootprint::from_headers(&checkpoint, &spec);
        Ok((spec, weights))
    }

    fn text(&self, info: &RepoInfo, path: &str, limit: u64) -> HubResult<Option<String>> {
        if info.file(path).is_none() {
            return Ok(None);
        }
        let url = self.file_url(info, path);
        let bytes = self.get(&url, limit)?;
        let what = "the file is not UTF-8 text".to_owned();
        String::from_utf8(bytes).map(Some).map_err(|_| HubError::NotAHub { url, what })
    }

    /// The headers of `files`, a few at once, in order.
    fn headers(&self, info: &RepoInfo, files: &[&RemoteFile]) -> HubResult<Vec<(PathBuf, Header)>> {
        let next = AtomicUsize::new(0);
        let read = Mutex::new(Vec::with_capacity(files.len()));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(files.len()) {
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

    /// The header of one file: one request, or two.
    fn header(&self, info: &RepoInfo, file: &RemoteFile) -> HubResult<Header> {
        let url = self.file_url(info, &file.path);
        let path = PathBuf::from(format!("{}/{}", info.name, file.path));
        let size = file.size_bytes;
        let first = FIRST_BYTES.min(size);
        if first < PREFIX_BYTES {
            return Ok(parse_header(&path, &vec![0; usize::from(first > 0)], size)?);
        }
        let (place, mut bytes) = self.get_range(&url, 0..=first - 1)?;
        let stated = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
        let end = stated.saturating_add(PREFIX_BYTES);
        // A length that cannot be is left to the parser, which says what is wrong with it.
        if stated <= MAX_HEADER_BYTES && end <= size && end > first {
            bytes.append(&mut self.get_range(&place, first..=end - 1)?.1);
        }
        Ok(parse_header(&path, &bytes, size)?)
    }
}

fn top_level(info: &RepoInfo) -> Vec<String> {
    let is_weights = |path: &&str| path.ends_with(".safetensors") && !path.contains('/');
    let all = || info.files.iter().map(|file| file.path.as_str()).filter(is_weights);
    let model: Vec<String> = all().filter(|p| p.starts_with("model")).map(str::to_owned).collect();
    if model.is_empty() { all().map(str::to_owned).collect() } else { model }
}
