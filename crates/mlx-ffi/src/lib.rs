//! Apple's MLX from Rust: a safe, thin layer over its C++ API.
//!
//! Owns finding, building against and linking MLX (`build/`), a C++ shim with a C ABI (`shim/`),
//! arrays and their operations ([`Array`], [`ops`], [`fast`]), Rust functions over their memory
//! ([`host`]), tensors used in place in a mapped file ([`mapped`]), and MLX's memory counters
//! ([`memory`]). It knows nothing of language models.
//!
//! Invariants:
//! - `unsafe` is confined to this crate and the kernels; no panic and no exception crosses the C ABI.
//! - Every safe function is sound for all arguments. The one assumption that this crate cannot check
//!   is that nobody modifies a file while it is mapped (see [`MappedFile::open`]).
//! - MLX's streams belong to the thread that created them, so an [`Array`] never leaves its thread
//!   (it is `!Send`). A program should dedicate one thread to MLX.
//! - Operations build a graph and compute nothing; [`eval`], reading elements, and the calls of
//!   [`host`] compute. An operation fails immediately when shapes or types do not match, an evaluation
//!   when one of its nodes fails.

#![expect(unsafe_code, reason = "this crate wraps the C ABI of the shim")]

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

// Links MLX statically on macOS; an unused dependency would be dropped by the linker.
#[cfg(mlxcel_mlx_sys)]
extern crate mlx_sys as _;
