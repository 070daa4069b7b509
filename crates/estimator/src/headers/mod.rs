//! safetensors headers: the tensors of a checkpoint, without reading a single weight.
//!
//! A file is eight bytes of header length (little endian), that much JSON, then the data. Only
//! the first two parts are read. Nothing in them is trusted: a length beyond the file, ranges
//! that overlap or leave holes, a shape that contradicts its range, a duplicate name. Every such file is
//! refused with one sentence that names the file and the tensor.
//!
//! [`parse_header`] is pure, for fuzzing and for headers fetched by other means;
//! [`read_header`] and [`Checkpoint::open`] use `std::fs`. The runtime maps tensors by the same
//! [`TensorInfo`], so that the loaded bytes are the sized ones.

mod checkpoint;
mod parse;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use checkpoint::Checkpoint;
pub use parse::parse_header;

use crate::dtype::Dtype;
use crate::error::EstimatorError;

/// The longest header that is read: the limit of the format's own library.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes before the JSON: its length.
pub(crate) const PREFIX_BYTES: u64 = 8;

/// One tensor as a header states it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Range of the data, in bytes from the start of the *file*.
    pub file_range: Range<u64>,
}

impl TensorInfo {
    /// Bytes of data.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.file_range.end.saturating_sub(self.file_range.start)
    }

    /// Number of elements as stored: a packed tensor counts its words.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, dim| n.saturating_mul(*dim))
    }
}

/// A whole header, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The `__metadata__` strings.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().fold(0, |sum, t| sum.saturating_add(t.size_bytes()))
    }
}

/// Reads and checks the header of one safetensors file: its first bytes only.
///
/// # Errors
/// [`EstimatorError::Io`], or what [`parse_header`] finds.
pub fn read_header(path: &Path) -> Result<Header, EstimatorError> {
    let file = File::open(path).map_err(|source| EstimatorError::io(path, source))?;
    let metadata = file.metadata().map_err(|source| EstimatorError::io(path, source))?;
    if !metadata.is_file() {
        return Err(refuse(path, "it is not a regular file"));
    }
    let mut start = Vec::new();
    (&file)
        .take(PREFIX_BYTES)
        .read_to_end(&mut start)
        .map_err(|source| EstimatorError::io(path, source))?;
    let left = metadata.len().saturating_sub(PREFIX_BYTES);
    // What is longer than the file, or than any header, is refused by its stated length alone.
    let stated =
        parse::stated_length(&start).filter(|stated| *stated <= left.min(MAX_HEADER_BYTES));
    if let Some(json_bytes) = stated.and_then(|stated| usize::try_from(stated).ok()) {
        let prefix_bytes = start.len();
        start.resize(prefix_bytes.saturating_add(json_bytes), 0);
        let json = start.get_mut(prefix_bytes..).unwrap_or_default();
        (&file).read_exact(json).map_err(|source| EstimatorError::io(path, source))?;
    }
    parse_header(path, &start, metadata.len())
}

/// An error about a header as a whole.
fn refuse(file: &Path, reason: impl Into<String>) -> EstimatorError {
    EstimatorError::Header { file: PathBuf::from(file), reason: reason.into() }
}
