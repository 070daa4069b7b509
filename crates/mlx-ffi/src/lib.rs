//! Apple's MLX from Rust: a safe, thin layer over its C++ API.
//!
//! Owns finding, building against and linking MLX (`build/`), a C++ shim with a C ABI (`shim/`),
//! arrays and their operations ([`Array`], [`ops`], [`fast`]), Rust functions over their memory
//! ([`host`]), tensors that are used where a file is mapped ([`mapped`]), and MLX's memory counters
//! ([`memory`]). It knows nothing of language models.
//!
//! Invariants:
//! - `unsafe` is only here and in the kernels; no panic and no exception crosses the C ABI.
//! - MLX's streams belong to the thread that made them, so an [`Array`] never leaves its thread
//!   (it is `!Send`), and a program does well to have one thread that owns MLX.
//! - Operations build a graph and compute nothing; [`eval`] and whatever reads elements compute, as do the
//!   calls of [`host`].
//!   An operation fails at once when shapes or types do not fit, an evaluation when a node fails.

#![expect(unsafe_code, reason = "the C ABI of the shim is called here, and nowhere else")]

mod array;
#[expect(
    non_camel_case_types,
    unreachable_pub,
    reason = "generated from shim/mlxcel_shim.h, where everything is documented"
)]
mod bindings;
mod call;
pub mod device;
mod dtype;
mod error;
pub mod fast;
pub mod host;
pub mod mapped;
pub mod memory;
pub mod ops;
mod resident;

pub use array::{Array, async_eval, eval};
pub use dtype::{Dtype, Element};
pub use error::{Error, Result};
pub use mapped::MappedFile;

// The static MLX of macOS is linked by this crate, which must be named to be linked itself.
#[cfg(mlxcel_mlx_sys)]
extern crate mlx_sys as _;
