//! Errors of this crate.

use std::path::PathBuf;

use crate::Dtype;

/// A failed call into MLX, or one that was refused before it was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// MLX refused an operation, or an evaluation failed.
    #[error("MLX {op}: {message}")]
    Mlx {
        /// The operation, or `eval`.
        op: &'static str,
        /// MLX's message.
        message: String,
    },
    /// The elements were requested as a type that differs from the array's.
    #[error("the elements are {found}, not {expected}")]
    WrongDtype {
        /// Requested type.
        expected: Dtype,
        /// Type of the array.
        found: Dtype,
    },
    /// The size of the data does not match shape and type.
    #[error("shape {shape:?} of {dtype} does not describe {nbytes} bytes")]
    WrongSize {
        /// The dimensions.
        shape: Vec<i32>,
        /// The element type.
        dtype: Dtype,
        /// Size of the data in bytes.
        nbytes: usize,
    },
    /// A tensor's byte range exceeds its file.
    #[error("bytes {start}..{end} are outside the file's {len} bytes")]
    OutOfFile {
        /// First byte of the tensor.
        start: usize,
        /// One past its last byte.
        end: usize,
        /// Size of the file in bytes.
        len: usize,
    },
    /// A file could not be mapped.
    #[error("cannot map {}: {source}", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The function of a host call panicked.
    #[error("`{name}` panicked: {message}")]
    Panicked {
        /// Name of the call.
        name: &'static str,
        /// Message of the panic.
        message: String,
    },
    /// A host call has no such buffer, or has already taken it.
    #[error("there is no {side} {index} to take")]
    NoBuffer {
        /// `input` or `output`.
        side: &'static str,
        /// Requested index.
        index: usize,
    },
    /// An input's memory is not aligned for its element type.
    #[error("the {dtype} elements of input {index} are not aligned")]
    Misaligned {
        /// Index of the input.
        index: usize,
        /// Its element type.
        dtype: Dtype,
    },
    /// An axis does not exist.
    #[error("MLX {op}: no axis {axis} in shape {shape:?}")]
    NoAxis {
        /// The operation.
        op: &'static str,
        /// Requested axis; negative ones count from the end.
        axis: i32,
        /// Shape of the array.
        shape: Vec<i32>,
    },
    /// A list that needs one entry per axis has a different length.
    #[error("MLX {op}: {found} entries for the {axes} axes of the array")]
    AxisCount {
        /// The operation.
        op: &'static str,
        /// Length of the list.
        found: usize,
        /// Axes of the array.
        axes: usize,
    },
    /// Indices into an axis of size 0, or indices that are not integers.
    #[error("MLX {op}: {dtype} indices cannot select from an axis of size {len}")]
    BadIndices {
        /// The operation.
        op: &'static str,
        /// Type of the indices.
        dtype: Dtype,
        /// Size of the axis.
        len: i32,
    },
    /// A numeric argument is outside its domain.
    #[error("MLX {op}: `{argument}` is {value}")]
    BadArgument {
        /// The operation.
        op: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// Its value.
        value: f64,
    },
}

/// Result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;
