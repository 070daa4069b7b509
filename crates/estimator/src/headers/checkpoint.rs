//! All safetensors files of a model folder as one set of tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::{Header, TensorInfo, read_header};
use crate::error::{EstimatorError, shortened};

/// The name of a sharded checkpoint's index.
const INDEX: &str = "model.safetensors.index.json";

/// Fewest headers that are worth a thread.
const FILES_PER_THREAD: usize = 8;

/// The headers of a model folder: every tensor once, and the file that holds it.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The files, each with its header, in the order of their names.
    pub files: Vec<(PathBuf, Header)>,
    /// The index's `metadata.total_size`, where there is an index that states one.
    pub index_total_bytes: Option<u64>,
    /// Position in `files` of the file that holds a tensor. If an index agrees with the files, the map is
    /// built on first use: sizing looks only quantised tensors up.
    tensors: OnceLock<HashMap<String, usize>>,
}

impl Checkpoint {
    /// Reads the headers of `dir`: the shards that its index names, or every `*.safetensors`
    /// file where there is no index. `Ok(None)` where the folder holds neither.
    ///
    /// # Errors
    /// A header that is malformed, a shard that the index names and the folder lacks, a tensor
    /// that two files hold or that the index promises and no file holds.
    pub fn open(dir: &Path) -> Result<Option<Self>, EstimatorError> {
        match index_text(dir)? {
            Some(text) => Self::indexed(dir, &Index::parse(&text, &index_name(dir))?).map(Some),
            None => Self::unindexed(dir),
        }
    }

    /// Like [`Self::open`], but for sizing: an index none of whose shards is there counts as no
    /// checkpoint, so that a folder with only the small files of a model can be sized.
    ///
    /// # Errors
    /// Same as [`Self::open`]; one missing shard among others stays an error.
    pub fn find(dir: &Path) -> Result<Option<Self>, EstimatorError> {
        let Some(text) = index_text(dir)? else { return Self::unindexed(dir) };
        let index = Index::parse(&text, &index_name(dir))?;
        let any = index.shards.iter().any(|name| dir.join(name).is_file());
        if any { Self::indexed(dir, &index).map(Some) } else { Ok(None) }
    }

    fn indexed(dir: &Path, index: &Index<'_>) -> Result<Self, EstimatorError> {
        let names = index.shards_by_name();
        if let Some(lost) = names.iter().find(|name| !dir.join(name).is_file()) {
            let lost = shortened(lost);
            return Err(problem(dir, format!("{INDEX} names `{lost}`, which is missing")));
        }
        Self::of(dir, read_headers(dir, &names)?, Some(index))
    }

    fn unindexed(dir: &Path) -> Result<Option<Self>, EstimatorError> {
        let names = safetensors_files(dir)?;
        if names.is_empty() {
            return Ok(None);
        }
        Self::of(dir, read_headers(dir, &names)?, None).map(Some)
    }

    /// Checks that every tensor is in one file, and those of the index are there.
    fn of(
        dir: &Path,
        files: Vec<(PathBuf, Header)>,
        index: Option<&Index<'_>>,
    ) -> Result<Self, EstimatorError> {
        let index_total_bytes = index.and_then(|index| index.total_bytes);
        if index.is_some_and(|index| index.describes(&files)) {
            return Ok(Self { files, index_total_bytes, tensors: OnceLock::new() });
        }
        let tensors = merge(dir, &files)?;
        if let Some(index) = index {
            index.check(dir, &tensors)?;
        }
        Ok(Self { files, index_total_bytes, tensors: OnceLock::from(tensors) })
    }

    /// Reads the header of one file as a checkpoint of its own.
    ///
    /// # Errors
    /// Errors of [`read_header`].
    pub fn open_file(path: &Path) -> Result<Self, EstimatorError> {
        Self::of(path, vec![(path.to_owned(), read_header(path)?)], None)
    }

    /// Builds a checkpoint from headers that were read by other means, with the text of their index if
    /// they have one, like [`Self::open`] on a folder that holds them. `name` stands for that folder in errors.
    ///
    /// # Errors
    /// A tensor that two files hold, or that the index promises and no file holds.
    pub fn assemble(
        name: &Path,
        files: Vec<(PathBuf, Header)>,
        index: Option<&str>,
    ) -> Result<Self, EstimatorError> {
        let index = index.map(|text| Index::parse(text, INDEX)).transpose()?;
        Self::of(name, files, index.as_ref())
    }

    /// The files that the text of an index names, sorted.
    ///
    /// # Errors
    /// Text that is no index.
    pub fn shard_names(index: &str) -> Result<Vec<String>, EstimatorError> {
        Ok(Index::parse(index, INDEX)?.shards_by_name())
    }

    /// A tensor and the file that holds it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&Path, &TensorInfo)> {
        let (path, header) = self.files.get(self.file_of(name)?)?;
        header.tensors.get(name).map(|info| (path.as_path(), info))
    }

    /// The position in `files` of the file that holds a tensor.
    #[must_use]
    pub fn file_of(&self, name: &str) -> Option<usize> {
        self.tensors.get_or_init(|| positions(&self.files)).get(name).copied()
    }

    /// Every tensor with its name, in the order of the files and of the names in each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let tensors = self.files.iter().flat_map(|(_, header)| &header.tensors);
        tensors.map(|(name, info)| (name.as_str(), info))
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, (_, header)| sum.saturating_add(header.total_bytes()))
    }
}

/// The file of each tensor, of files that share none.
fn positions(files: &[(PathBuf, Header)]) -> HashMap<String, usize> {
    let names = files.iter().enumerate();
    let names = names.flat_map(|(file, (_, header))| header.tensors.keys().map(move |n| (n, file)));
    names.map(|(name, file)| (name.clone(), file)).collect()
}

/// Like [`positions`], refusing a tensor that two files hold.
fn merge(
    dir: &Path,
    files: &[(PathBuf, Header)],
) -> Result<HashMap<String, usize>, EstimatorError> {
    let all = files.iter().fold(0_usize, |n, (_, h)| n.saturating_add(h.tensors.len()));
    let mut tensors = HashMap::with_capacity(all);
    for (position, (path, header)) in files.iter().enumerate() {
        for name in header.tensors.keys() {
            if let Some(first) = tensors.insert(name.clone(), position) {
                let first = files.get(first).map(|(path, _)| file_name(path)).unwrap_or_default();
                let name = shortened(name);
                let second = file_name(path);
                return Err(problem(dir, format!("tensor `{name}` is in {first} and in {second}")));
            }
        }
    }
    Ok(tensors)
}

/// The names of all safetensors files in `dir`, sorted.
fn safetensors_files(dir: &Path) -> Result<Vec<String>, EstimatorError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|source| EstimatorError::io(dir, source))? {
        let name = entry.map_err(|source| EstimatorError::io(dir, source))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(".safetensors")) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Reads the headers on all cores: for a hundred shards they are most of the time of sizing. If no
/// thread can be started, the calling thread reads that share.
fn read_headers(dir: &Path, names: &[String]) -> Result<Vec<(PathBuf, Header)>, EstimatorError> {
    let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = paths.len().div_ceil(threads).max(FILES_PER_THREAD);
    let mut shares = paths.chunks(share);
    let first = shares.next().unwrap_or_default();
    let headers = std::thread::scope(|scope| {
        let mut others = Vec::new();
        for share in shares {
            let builder = std::thread::Builder::new();
            others.push((share, builder.spawn_scoped(scope, || read_share(share)).ok()));
        }
        let mut headers = read_share(first)?;
        for (share, thread) in others {
            let more =
                thread.map_or_else(|| Ok(read_share(share)), std::thread::ScopedJoinHandle::join);
            headers.extend(more.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(headers)
    });
    headers.map(|headers| paths.into_iter().zip(headers).collect())
}

fn read_share(paths: &[PathBuf]) -> Result<Vec<Header>, EstimatorError> {
    paths.iter().map(|path| read_header(path)).collect()
}

/// A parsed index. It borrows the names from its text.
struct Index<'a> {
    /// Each tensor and its file's position in `shards`, sorted by the tensor's name.
    weight_map: Vec<(Cow<'a, str>, usize)>,
    shards: Vec<String>,
    total_bytes: Option<u64>,
}

#[derive(Deserialize)]
struct RawIndex<'a> {
    #[serde(borrow)]
    weight_map: WeightMap<'a>,
    #[serde(default)]
    metadata: Value,
}

/// Name of a tensor or a file, borrowed if the text has no escape in it.
#[derive(Deserialize)]
struct BorrowedName<'a>(#[serde(borrow)] Cow<'a, str>);

/// Tensors, each with a position in the list of files.
struct WeightMap<'a> {
    tensors: Vec<(Cow<'a, str>, usize)>,
    shards: Vec<String>,
}

impl<'de: 'a, 'a> Deserialize<'de> for WeightMap<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a file name for each tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut positions: HashMap<Cow<'de, str>, usize> = HashMap::new();
        while let Some((BorrowedName(tensor), BorrowedName(file))) = entries.next_entry()? {
            let next = positions.len();
            tensors.push((tensor, *positions.entry(file).or_insert(next)));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        if tensors.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
            return Err(A::Error::custom("a tensor is given twice"));
        }
        let mut shards: Vec<_> = positions.into_iter().collect();
        shards.sort_by_key(|(_, position)| *position);
        let shards = shards.into_iter().map(|(name, _)| name.into_owned()).collect();
        Ok(WeightMap { tensors, shards })
    }
}

impl<'a> Index<'a> {
    /// `document` names the text in errors.
    fn parse(text: &'a str, document: &str) -> Result<Self, EstimatorError> {
        Self::read(text)
            .map_err(|reason| EstimatorError::Json { document: document.to_owned(), reason })
    }

    fn read(text: &'a str) -> Result<Self, String> {
        let raw: RawIndex<'a> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let total = raw.metadata.get("total_size");
        let total_bytes = total.and_then(|t| t.as_u64().or_else(|| t.as_f64().and_then(whole)));
        let WeightMap { tensors, shards } = raw.weight_map;
        if !shards.iter().all(|name| is_file_name(name)) {
            return Err("a `weight_map` entry leaves the folder".to_owned());
        }
        Ok(Self { weight_map: tensors, shards, total_bytes })
    }

    fn shards_by_name(&self) -> Vec<String> {
        let mut names = self.shards.clone();
        names.sort_unstable();
        names
    }

    /// Reports whether the files hold exactly the tensors of the index, each in its file; then no two
    /// files hold the same tensor. Both are sorted by name.
    fn describes(&self, files: &[(PathBuf, Header)]) -> bool {
        let headers: HashMap<_, _> = files.iter().map(|(path, h)| (file_name(path), h)).collect();
        let held = self.shards.iter().map(|shard| Some(headers.get(shard)?.tensors.keys()));
        let Some(mut held) = held.collect::<Option<Vec<_>>>() else { return false };
        let mut next = |shard: usize| held.get_mut(shard).and_then(Iterator::next);
        files.len() == self.shards.len()
            && self.weight_map.iter().all(|(name, shard)| next(*shard).is_some_and(|n| n == name))
            && held.iter_mut().all(|rest| rest.next().is_none())
    }

    /// Every tensor that the index promises must be in a file.
    fn check(&self, dir: &Path, tensors: &HashMap<String, usize>) -> Result<(), EstimatorError> {
        let lost = self.weight_map.iter().find(|(name, _)| !tensors.contains_key(name.as_ref()));
        let Some((name, shard)) = lost else { return Ok(()) };
        let name = shortened(name);
        let file = self.shards.get(*shard).map_or("?", String::as_str);
        Err(problem(dir, format!("{INDEX} promises tensor `{name}` in {file}, which lacks it")))
    }
}

/// Reports whether `name` names a file of the same folder.
fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
}

/// The text of `dir`'s index, if it has one.
fn index_text(dir: &Path) -> Result<Option<String>, EstimatorError> {
    let path = dir.join(INDEX);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path);
    text.map(Some).map_err(|source| EstimatorError::Io { path, source })
}

fn index_name(dir: &Path) -> String {
    dir.join(INDEX).display().to_string()
}

/// Some writers state the total as `988097824.0`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range and the wholeness are checked"
)]
fn whole(x: f64) -> Option<u64> {
    ((0.0..9e15).contains(&x) && x.fract() == 0.0).then_some(x as u64)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn problem(dir: &Path, reason: String) -> EstimatorError {
    EstimatorError::Checkpoint { dir: dir.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, tensors: &[(&str, u64)]) {
        let mut at = 0_u64;
        let entries: Vec<_> = tensors
            .iter()
            .map(|(name, bytes)| {
                let begin = at;
                at += bytes;
                format!(
                    r#""{name}":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{begin},{at}]}}"#
                )
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + usize::try_from(at).unwrap(), 0);
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    fn index(dir: &Path, map: &str) {
        let text = format!(r#"{{"metadata":{{"total_size":7}},"weight_map":{map}}}"#);
        std::fs::write(dir.join(INDEX), text).unwrap();
    }

    fn check_error(dir: &Path, expected: &str) {
        let error = Checkpoint::open(dir).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_sharded_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.safetensors", &[("x", 3)]);
        write(dir.path(), "b.safetensors", &[("y", 4)]);
        write(dir.path(), "stray.safetensors", &[("z", 100)]);
        index(dir.path(), r#"{"x":"a.safetensors","y":"b.safetensors"}"#);
        let checkpoint = Checkpoint::open(dir.path()).unwrap().unwrap();
        assert_eq!(checkpoint.total_bytes(), 7);
        assert_eq!(checkpoint.index_total_bytes, Some(7));
        let (path, info) = checkpoint.get("y").unwrap();
        assert_eq!(
            (path.file_name().unwrap().to_str(), info.size_bytes()),
            (Some("b.safetensors"), 4)
        );
        assert_eq!(checkpoint.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn positions_are_the_same_with_and_without_an_index() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.safetensors", &[("x", 3), ("z", 1)]);
        write(dir.path(), "b.safetensors", &[("y", 4)]);
        let found = || {
            let checkpoint = Checkpoint::open(dir.path()).unwrap().unwrap();
            ["x", "y", "z", "q"].map(|name| checkpoint.file_of(name))
        };
        let plain = found();
        assert_eq!(plain, [Some(0), Some(1), Some(0), None]);
        let all = r#"{"x":"a.safetensors","y":"b.safetensors","z":"a.safetensors"}"#;
        // An index that knows less than the files, or another file than the tensor's, is no lie.
        let less = r#"{"x":"a.safetensors","y":"b.safetensors"}"#;
        let elsewhere = r#"{"x":"b.safetensors","y":"b.safetensors","z":"a.safetensors"}"#;
        for map in [all, less, elsewhere] {
            index(dir.path(), map);
            assert_eq!(found(), plain, "{map}");
        }
        write(dir.path(), "b.safetensors", &[("y", 4), ("z", 1)]);
        index(dir.path(), all);
        check_error(dir.path(), "tensor `z` is in a.safetensors and in b.safetensors");
    }

    #[test]
    fn an_index_that_lies() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.safetensors", &[("x", 3)]);
        index(dir.path(), r#"{"x":"a.safetensors","y":"b.safetensors"}"#);
        check_error(dir.path(), "names `b.safetensors`, which is missing");
        index(dir.path(), r#"{"x":"a.safetensors","y":"a.safetensors"}"#);
        check_error(dir.path(), "promises tensor `y` in a.safetensors, which lacks it");
        index(dir.path(), r#"{"x":"../a.safetensors"}"#);
        check_error(dir.path(), "leaves the folder");
        write(dir.path(), "b.safetensors", &[("x", 3)]);
        index(dir.path(), r#"{"x":"a.safetensors","y":"b.safetensors"}"#);
        check_error(dir.path(), "tensor `x` is in a.safetensors and in b.safetensors");
        index(dir.path(), r#"[]"#);
        check_error(dir.path(), "expected a file name for each tensor");
        index(dir.path(), r#"{"x":"a.safetensors","x":"a.safetensors"}"#);
        check_error(dir.path(), "a tensor is given twice");
    }

    #[test]
    fn an_empty_folder_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Checkpoint::open(dir.path()).unwrap().is_none());
    }
}
