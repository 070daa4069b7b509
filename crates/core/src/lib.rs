//! What a language model is made of: operations with one dispatch each, layers, KV caches, attention.
//!
//! Owns the choice between the *host* kernel set (`mlxcel-kernels` over the memory of MLX's arrays)
//! and the *mlx* kernel set (MLX's own operations, on any device), and everything whose layout
//! depends on that choice. Leaves files and model families to `mlxcel-runtime`, sizes to
//! `mlxcel-estimator`.

pub mod attention;
mod batch;
mod cache;
mod cross;
mod error;
pub mod experts;
mod images;
pub mod layers;
pub mod ops;
pub mod recurrent;
mod rope;
mod shape;

pub use attention::{AttentionSpec, LayerLayout};
pub use batch::{Batch, SequenceRun, Span};
pub use cache::{SavedCache, SavedLayer, SequenceCache};
pub use cross::CrossImage;
pub use error::{Error, Result};
pub use images::{ImagePositions, ImageRows, Sight};
pub use mlx_ffi::{Array, Dtype, MappedFile, device, memory};
pub use mlxcel_kernels::weights::FloatType;
pub use mlxcel_kernels::{Pool, allowance, quantize};
pub use ops::{
    Absorbed, Activation, ComputeDtype, FEW_TOKENS, KernelSet, Map, Ops, OpsConfig, Precision,
};
pub use rope::{Rope, RopeScaling};
