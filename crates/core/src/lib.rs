//! Building blocks of language models: operations on two kernel sets, layers, KV caches, attention.
//!
//! Owns the choice between the *host* kernel set (`mlxcel-kernels` over the memory of MLX's arrays)
//! and the *mlx* kernel set (MLX's own operations, on any device), and everything whose layout
//! depends on that choice. Leaves files and model families to `mlxcel-runtime`, sizes to
//! `mlxcel-estimator`.
//!
//! Modules import in one direction: parameters of layers and the plain [`Batch`]; `cache`, which owns
//! the memory of a sequence; `kernels`, one trait with an implementation per kernel set; [`Ops`], which
//! checks shapes in front of it; `prepare`, the work at load time; [`Pass`], which joins operations,
//! batch and caches.

pub mod attention;
mod batch;
mod cache;
mod config;
mod cross;
mod error;
pub mod experts;
mod images;
mod kernels;
pub mod layers;
mod ops;
mod pass;
mod prepare;
mod quantized;
pub mod recurrent;
mod rope;
mod shape;

pub use attention::{AttentionSpec, LayerLayout};
pub use batch::{Batch, RunTokens, Span};
pub use cache::{SavedCache, SavedLayer, SequenceCache};
pub use config::{ComputeDtype, KernelSet, OpsConfig, Precision};
pub use cross::CrossImage;
pub use error::{Error, ImageProblem, Result, SavedCacheProblem, TrimLimit};
pub use images::{ImageAttention, ImagePositions, ImageRows};
pub use mlx_ffi::{Array, Dtype, MappedFile, device, memory};
pub use mlxcel_kernels::weights::FloatType;
pub use mlxcel_kernels::{Pool, allowance, quantize};
pub use ops::{Activation, FEW_TOKENS, Map, Ops};
pub use pass::{Pass, SequenceRun};
pub use prepare::AbsorbedStorage;
pub use rope::{Rope, RopeScaling};
