//! CPU kernels of mlxcel: quantised and dense matrix products, attention, Walsh–Hadamard,
//! norms, rope, element-wise functions and the quantisation of weights, with the thread pool that
//! they run on.
//!
//! Every kernel is safe to call: it checks shapes first, and picks one of several
//! instruction-set paths by the [`Cpu`] of its [`Pool`]. The paths of one kernel agree with an
//! f64 oracle within a stated tolerance; their results may differ from each other in the last
//! bits. Activations are `f32` between kernels; weights and caches keep their storage types.
//!
//! This crate depends on no other crate of the workspace and knows neither MLX nor models.
#![expect(
    unsafe_code,
    reason = "SIMD intrinsics and the thread pool; each block argues its safety"
)]

pub mod aligned;
pub mod allowance;
pub mod attention;
pub mod elementwise;
pub mod error;
#[cfg(target_os = "linux")]
#[cfg(test)]
mod guarded;
pub mod isa;
pub mod kv;
mod math;
pub mod matmul;
pub mod norm;
pub mod order;
pub mod pool;
pub mod probe;
pub mod quantize;
pub mod recurrent;
pub mod rope;
pub mod route;
mod scratch;
mod simd;
pub mod slab;
#[cfg(test)]
mod testing;
pub mod turbo;
pub mod weights;

pub use aligned::AlignedBuf;
pub use error::{KernelError, Result};
pub use isa::{Cpu, Isa};
pub use order::Order;
pub use pool::Pool;
pub use weights::{Affine, FloatType, WeightMatrix};
