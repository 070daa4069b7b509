//! The error type of this crate.
//!
//! Every kernel checks the shapes of its arguments before it touches memory, so that a wrong
//! call is an error that names the argument and never undefined behaviour.

use crate::isa::Isa;

/// Result of a kernel call.
pub type Result<T> = std::result::Result<T, KernelError>;

/// Errors of a kernel call and of the machine it runs on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// `MLXCEL_ISA` holds a word that names no instruction set.
    #[error("MLXCEL_ISA={word:?} is not an instruction set; use scalar, avx2, avx512 or neon")]
    UnknownIsa {
        /// The word that was found.
        word: String,
    },
    /// An instruction set was asked for that this processor does not have.
    #[error("this processor does not support {isa}; unset MLXCEL_ISA to use {best}")]
    MissingIsa {
        /// The instruction set that was asked for.
        isa: Isa,
        /// The best that the processor has.
        best: Isa,
    },
    /// A pool of zero threads, or of more than [`crate::pool::MAX_THREADS`].
    #[error("a thread pool needs 1 to {max} threads, not {threads}")]
    ThreadCount {
        /// The number that was asked for.
        threads: usize,
        /// The largest number allowed.
        max: usize,
    },
    /// The operating system refused to start a worker thread.
    #[error("cannot start a worker thread")]
    Spawn(#[source] std::io::Error),
    /// Memory for a buffer could not be allocated.
    #[error("cannot allocate {bytes} bytes")]
    OutOfMemory {
        /// The size that was asked for.
        bytes: usize,
    },
    /// A buffer would exceed the limit of [`crate::allowance`].
    #[error(
        "{bytes} more bytes would pass the memory limit: caches and scratch hold {held} of {most} bytes \
         that it leaves after the weights"
    )]
    OverLimit {
        /// The size that was asked for.
        bytes: usize,
        /// Bytes that buffers hold already.
        held: usize,
        /// The most that they may.
        most: usize,
    },
    /// A slice has the wrong number of elements for the shape it stands for.
    #[error("{what}: expected {expected} elements, got {actual}")]
    Length {
        /// The argument.
        what: &'static str,
        /// Elements that the other arguments imply.
        expected: usize,
        /// Elements found.
        actual: usize,
    },
    /// A dimension is zero, not a multiple of what the kernel needs, or overflows.
    #[error("{what} is {value}, but it must be {rule}")]
    Dimension {
        /// The dimension.
        what: &'static str,
        /// Its value.
        value: usize,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// An index (token, expert, position) lies outside of its table.
    #[error("{what} {index} is out of range for {len}")]
    Index {
        /// Name of the table's entries.
        what: &'static str,
        /// The index.
        index: i64,
        /// Number of entries.
        len: usize,
    },
}

/// The [`KernelError::Dimension`] of `what`.
pub(crate) fn wrong_dimension(what: &'static str, value: usize, rule: &'static str) -> Result<()> {
    Err(KernelError::Dimension { what, value, rule })
}

/// Returns an error unless `actual == expected`; `what` names the argument.
pub fn check_len(what: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(KernelError::Length { what, expected, actual }) }
}
