//! What can go wrong between a model family and the kernels.

use mlxcel_estimator::KvMode;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// MLX or the shim failed, or a host kernel panicked.
    #[error(transparent)]
    Mlx(#[from] mlx_ffi::Error),
    /// A CPU kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] mlxcel_kernels::KernelError),
    /// A configuration that contradicts itself.
    #[error("{what}")]
    Config {
        /// What contradicts what.
        what: String,
    },
    /// An operand does not have the shape that the operation needs.
    #[error("{op}: {operand} has shape {found:?}, {expected} expected")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What was expected, in words or dimensions.
        expected: String,
    },
    /// A KV cache mode that this layer cannot run.
    #[error("KV cache mode {mode} cannot run: {reason}")]
    KvMode {
        /// The mode that was asked for.
        mode: KvMode,
        /// Why it cannot run, and what could.
        reason: String,
    },
    /// A word that is not among the allowed ones.
    #[error("{what} \"{found}\" is not known (known: {known})")]
    UnknownWord {
        /// Which setting.
        what: &'static str,
        /// What was given.
        found: String,
        /// The allowed words.
        known: &'static str,
    },
    /// A cache operation outside what the cache holds.
    #[error("KV cache: {what}")]
    Cache {
        /// What was asked for and why it cannot be.
        what: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
