//! What can go wrong between Rust and MLX.

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
        /// MLX's own words.
        message: String,
    },
    /// Elements were asked for as another type than the array holds.
    #[error("the elements are {found}, not {expected}")]
    WrongDtype {
        /// What the caller asked for.
        expected: Dtype,
        /// What the array holds.
        found: Dtype,
    },
    /// Data and shape do not belong together.
    #[error("shape {shape:?} of {dtype} does not describe {nbytes} bytes")]
    WrongSize {
        /// The dimensions.
        shape: Vec<i32>,
        /// The element type.
        dtype: Dtype,
        /// The size of the data.
        nbytes: usize,
    },
    /// A tensor lies (partly) outside of its file.
    #[error("bytes {start}..{end} are outside of {len} mapped bytes")]
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
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The function of a host call panicked.
    #[error("`{name}` panicked: {message}")]
    Panicked {
        /// The call.
        name: &'static str,
        /// What the panic said.
        message: String,
    },
    /// A host call asked for a buffer that it does not have, or took one twice.
    #[error("there is no {side} {index} to take")]
    NoBuffer {
        /// `input` or `output`.
        side: &'static str,
        /// The index asked for.
        index: usize,
    },
    /// A host call asked for elements whose memory is not aligned for their type.
    #[error("the {dtype} elements of input {index} are not aligned")]
    Misaligned {
        /// The input.
        index: usize,
        /// Its element type.
        dtype: Dtype,
    },
}

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
