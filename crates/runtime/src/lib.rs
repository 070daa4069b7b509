//! Loading, tokenising, model families, sampling and generation.
//!
//! Owns everything between a model's folder and the text that it generates. Leaves tensors and
//! caches to `mlxcel-core`, size formulas to `mlxcel-estimator`, and arguments and terminals to
//! `cli`.

pub mod bench;
mod builtin;
pub mod cache_file;
pub mod conversation;
pub mod convert;
mod disk;
pub mod engine;
mod error;
pub mod eval;
pub mod families;
pub mod loading;
pub mod memory;
pub mod preflight;
mod processor;
mod progress;
pub mod sampling;
mod source;
pub mod text;
pub mod vision;

pub use error::{ConfigProblem, Error, FileProblem, Result, TensorProblem};
pub use mlxcel_core::{
    ComputeDtype, FloatType, KernelSet, OpsConfig, Precision, SequenceCache, SequenceRun,
};
pub use processor::{EncodedPrompt, Processor, PromptInput};
