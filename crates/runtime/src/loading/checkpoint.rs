//! The files of one model: its configuration and its tensors, mapped or read.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mlxcel_core::{Array, KernelSet, MappedFile};
use mlxcel_estimator::Dtype as FileDtype;
use mlxcel_estimator::headers::{self, Header, TensorInfo};
use serde_json::Value;

use super::Residence;
use super::fingerprint::Fnv;
use crate::source::ModelSource;
use crate::{Error, FileProblem, Result, TensorProblem, builtin};

/// A range of a matrix's rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) total: usize,
    /// Number of matrices, where the file holds a stack of them.
    pub(super) parts: Option<usize>,
}

impl Rows {
    /// All of `total` rows.
    pub(super) fn all(total: usize) -> Self {
        Self { first: 0, count: total, total, parts: None }
    }

    /// All rows of a stack of `parts` matrices of `rows` rows, one after the other.
    pub(super) fn stack(parts: usize, rows: usize) -> Self {
        Self { parts: Some(parts), ..Self::all(parts * rows) }
    }
}

/// A model's configuration and tensors.
pub struct Checkpoint {
    origin: PathBuf,
    config: Value,
    files: Vec<MappedFile>,
    tensors: HashMap<String, (usize, TensorInfo)>,
}

impl Checkpoint {
    /// Opens a model of the configuration `config`: maps the safetensors files or makes room for
    /// them, checks their headers.
    ///
    /// # Errors
    /// A folder without weights, and damaged weight files.
    pub fn open(
        source: &ModelSource,
        config: Value,
        residence: Residence,
        kernels: KernelSet,
    ) -> Result<Self> {
        match source {
            ModelSource::BuiltIn => Self::embedded(config),
            ModelSource::Folder(dir) => {
                Self::folder(dir, config, |bytes| residence.reads(bytes, kernels))
            }
        }
    }

    fn embedded(config: Value) -> Result<Self> {
        let origin = PathBuf::from("built-in model");
        let length = builtin::WEIGHTS.len() as u64;
        let header = headers::parse_header(&origin, builtin::WEIGHTS, length)?;
        let mut checkpoint = Self { origin, config, files: Vec::new(), tensors: HashMap::new() };
        checkpoint.add(MappedFile::from_static(builtin::WEIGHTS), header);
        Ok(checkpoint)
    }

    fn folder(dir: &Path, config: Value, reads: impl Fn(u64) -> bool) -> Result<Self> {
        let found = headers::Checkpoint::open(dir)?;
        let found = found.ok_or_else(|| Error::invalid_file(dir, FileProblem::NoWeights))?;
        let mut checkpoint =
            Self { origin: dir.to_owned(), config, files: Vec::new(), tensors: HashMap::new() };
        let infos = found.files.iter().flat_map(|(_, header)| header.tensors.iter());
        let sizes = infos.map(|(_, info)| info.file_range.end - info.file_range.start);
        let open = if reads(sizes.sum()) { MappedFile::resident } else { MappedFile::open };
        for (path, header) in found.files {
            checkpoint.add(open(path).map_err(mlxcel_core::Error::from)?, header);
        }
        Ok(checkpoint)
    }

    fn add(&mut self, bytes: MappedFile, header: Header) {
        let file = self.files.len();
        self.files.push(bytes);
        self.tensors.extend(header.tensors.into_iter().map(|(name, info)| (name, (file, info))));
    }

    /// The parsed `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// A whole number of the configuration, where it has one.
    #[must_use]
    pub fn size(&self, key: &str) -> Option<usize> {
        size_of(&self.config, key)
    }

    /// Returns true if a tensor of this name exists.
    #[must_use]
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A checksum (FNV-1a) of every tensor's name, type, shape and current bytes, which a forward pass
    /// must not change.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn checksum(&self) -> Result<u64> {
        let mut names: Vec<_> = self.tensors.iter().collect();
        names.sort_by_key(|(name, _)| *name);
        let mut hash = Fnv::default();
        for (name, (file, info)) in names {
            let bytes = row_range(info, Rows::all(1));
            let bytes = self.files[*file].bytes(bytes).map_err(mlxcel_core::Error::from)?;
            hash.tensor(name, info, bytes);
        }
        Ok(hash.0)
    }

    /// The rows `rows` of the tensor `name`, which must have the shape `expected` as a whole; a
    /// stack of matrices has one dimension more in the file.
    pub(super) fn tensor(&self, name: &str, expected: &[usize], rows: Rows) -> Result<Array> {
        let (file, info) = self.tensors.get(name).ok_or_else(|| {
            Error::tensor(name, TensorProblem::Missing { dir: self.origin.clone() })
        })?;
        let found: Vec<usize> =
            info.shape.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
        let mut stored = expected.to_vec();
        if let Some(parts) = rows.parts {
            stored[0] /= parts.max(1);
            stored.insert(0, parts);
        }
        if found != stored {
            return Err(Error::tensor(name, TensorProblem::Shape { found, expected: stored }));
        }
        let dtype = array_dtype(name, info.dtype)?;
        let range = row_range(info, rows);
        let mut shape: Vec<i32> = expected
            .iter()
            .map(|d| i32::try_from(*d))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| {
                Error::tensor(name, TensorProblem::TooLarge { shape: expected.to_vec() })
            })?;
        shape[0] = i32::try_from(rows.count).expect("a range of rows is not larger than all rows");
        let mapped =
            self.files[*file].array(range, &shape, dtype).map_err(mlxcel_core::Error::from)?;
        Ok(mapped.array)
    }
}

/// The bytes of a row range; the header was checked, so the tensor lies within the file.
fn row_range(info: &TensorInfo, rows: Rows) -> Range<usize> {
    let Range { start, end } = info.file_range;
    let [start, end] = [start, end].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let row_bytes = (end - start) / rows.total.max(1);
    start + rows.first * row_bytes..start + (rows.first + rows.count) * row_bytes
}

/// Reads a model's `config.json`, its language part flat and with its class's sizes
/// ([`mlxcel_estimator::resolved_config`]). Whether a family runs it is not checked here.
///
/// `Infinity` and `NaN`, which Python's tools write, are read as strings.
///
/// # Errors
/// A folder without `config.json`, text that is no JSON object, sizes that contradict each other.
pub(crate) fn read_config(source: &ModelSource) -> Result<Value> {
    let (path, bytes) = match source {
        ModelSource::BuiltIn => (PathBuf::from("built-in/config.json"), builtin::CONFIG.to_vec()),
        ModelSource::Folder(dir) => {
            let path = dir.join("config.json");
            match std::fs::read(&path) {
                Ok(bytes) => (path, bytes),
                Err(source) => return Err(Error::Io { path, source }),
            }
        }
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        Error::invalid_file(&path, FileProblem::NotUtf8 { byte: error.valid_up_to() })
    })?;
    let config = mlxcel_estimator::parse_object(text, &path.display().to_string())?;
    Ok(Value::Object(mlxcel_estimator::resolved_config(&config)?))
}

/// A whole number of a configuration, where it has one.
pub(crate) fn size_of(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

fn array_dtype(name: &str, dtype: FileDtype) -> Result<mlxcel_core::Dtype> {
    Ok(match dtype {
        FileDtype::F32 => mlxcel_core::Dtype::Float32,
        FileDtype::F16 => mlxcel_core::Dtype::Float16,
        FileDtype::BF16 => mlxcel_core::Dtype::Bfloat16,
        FileDtype::U32 => mlxcel_core::Dtype::Uint32,
        FileDtype::U8 => mlxcel_core::Dtype::Uint8,
        other => {
            let problem = TensorProblem::Dtype {
                found: other.name().to_owned(),
                expected: "F32, F16, BF16 or MLX-quantised U32",
            };
            return Err(Error::tensor(name, problem));
        }
    })
}
