//! Loading, tokenising, model families, sampling and generation.
//!
//! Owns everything between a model's folder and its text. Leaves tensors and caches to
//! `mlxcel-core`, every size formula to `mlxcel-estimator`, and arguments and terminals to `cli`.

pub mod bench;
mod builtin;
pub mod cache_file;
pub mod conversation;
pub mod convert;
pub mod disk;
pub mod engine;
mod error;
pub mod eval;
pub mod families;
pub mod loading;
pub mod memory;
mod model_text;
pub mod preflight;
mod progress;
pub mod sampling;
mod source;
pub mod text;
pub mod vision;

pub use error::{Error, Result};
pub use mlxcel_core::{
    ComputeDtype, FloatType, KernelSet, OpsConfig, Precision, SequenceCache, SequenceRun,
};
pub use model_text::{ImagePrompt, ModelText, Unexpanded};
