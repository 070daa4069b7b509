//! Fingerprint of a model, which identifies the model of a measurement or a saved cache.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mlxcel_estimator::headers::{self, TensorInfo};

use crate::source::ModelSource;
use crate::{Error, Result, builtin};

/// Bytes of every tensor that are hashed.
const SAMPLE_BYTES: u64 = 64;

/// A 64-bit hash (FNV-1a) of `config.json`, of every tensor's name, dtype and shape, in the order
/// of names, and of 64 bytes from the middle of each, so that a fine-tuned model of the same shape
/// is another model. Cheap: a page per tensor. Not collision-resistant against an adversary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The fingerprint of a model.
    ///
    /// # Errors
    /// Files that are missing, unreadable or broken.
    pub fn of(source: &ModelSource) -> Result<Self> {
        match source {
            ModelSource::BuiltIn => Self::built_in(),
            ModelSource::Folder(dir) => Self::folder(dir),
        }
    }

    fn built_in() -> Result<Self> {
        let name = PathBuf::from("built-in model");
        let header = headers::parse_header(&name, builtin::WEIGHTS, builtin::WEIGHTS.len() as u64)?;
        let mut hash = Fnv::default();
        hash.field(builtin::CONFIG);
        for (name, info) in &header.tensors {
            let (start, len) = sample(info);
            let end = start.saturating_add(len);
            let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            let bytes = range.and_then(|(start, end)| builtin::WEIGHTS.get(start..end));
            hash.tensor(name, info, bytes.unwrap_or_default());
        }
        Ok(Self(hash.0))
    }

    fn folder(dir: &Path) -> Result<Self> {
        let config = dir.join("config.json");
        let bytes =
            std::fs::read(&config).map_err(|source| Error::Io { path: config.clone(), source })?;
        let found = headers::Checkpoint::open(dir)?;
        let found =
            found.ok_or_else(|| Error::invalid_file(dir, crate::error::FileProblem::NoWeights))?;
        let mut hash = Fnv::default();
        hash.field(&bytes);
        let mut files: Vec<Option<File>> = found.files.iter().map(|_| None).collect();
        let tensors = found.files.iter().enumerate().flat_map(|(index, (path, header))| {
            header.tensors.iter().map(move |(name, info)| (name, (index, path, info)))
        });
        for (name, (index, path, info)) in tensors.collect::<BTreeMap<_, _>>() {
            let failed = |source| Error::Io { path: path.clone(), source };
            let file = match &mut files[index] {
                Some(file) => file,
                slot => slot.insert(File::open(path).map_err(failed)?),
            };
            let (start, len) = sample(info);
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            file.take(len).read_to_end(&mut bytes).map_err(failed)?;
            hash.tensor(name, info, &bytes);
        }
        Ok(Self(hash.0))
    }
}

/// Sixteen hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Start and length, within its file, of the hashed bytes of a tensor.
fn sample(info: &TensorInfo) -> (u64, u64) {
    let len = info.size_bytes().min(SAMPLE_BYTES);
    (info.file_range.start + (info.size_bytes() - len) / 2, len)
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo).
pub(super) struct Fnv(pub(super) u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Hashes a length and bytes, so that no two lists of fields run together.
    fn field(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }

    pub(super) fn tensor(&mut self, name: &str, info: &TensorInfo, sample: &[u8]) {
        self.field(name.as_bytes());
        self.field(info.dtype.name().as_bytes());
        let shape: Vec<u8> = info.shape.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        self.field(&shape);
        self.field(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_of_published_vectors() {
        let hash = |text: &str| {
            let mut hash = Fnv::default();
            hash.bytes(text.as_bytes());
            hash.0
        };
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_folder_is_identified_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let of = || Fingerprint::of(&ModelSource::Folder(dir.path().to_owned())).unwrap();
        put("config.json", builtin::CONFIG);
        put("model.safetensors", builtin::WEIGHTS);
        let same = of();
        assert_eq!(same, Fingerprint::of(&ModelSource::BuiltIn).unwrap());
        assert_eq!(same.to_string().len(), 16);
        put("config.json", &[builtin::CONFIG, b"\n"].concat());
        assert_ne!(of(), same);
        put("config.json", builtin::CONFIG);
        // All weights changed, shapes kept: a fine-tuned model.
        let header = 8 + u64::from_le_bytes(builtin::WEIGHTS[..8].try_into().unwrap());
        let mut other = builtin::WEIGHTS.to_vec();
        other[usize::try_from(header).unwrap()..].iter_mut().for_each(|byte| *byte ^= 1);
        put("model.safetensors", &other);
        assert_ne!(of(), same);
    }
}
