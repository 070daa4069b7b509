//! Estimates, before anything is loaded, whether a language model, its context and its batch fit in
//! memory.
//!
//! From `config.json` and safetensors headers alone (no tensor is read, nothing is downloaded, no C
//! compiler is needed) this crate computes the bytes of the weights, of the KV cache with its scales,
//! of recurrent state and of a prefill step's transient memory, whether they fit, and what would: the
//! longest context, the largest batch, the cache modes.
//!
//! ```no_run
//! use mlxcel_estimator::{AvailableSource, Backend, Machine, Workload, estimate_dir, verdict};
//!
//! fn main() -> Result<(), mlxcel_estimator::EstimatorError> {
//!     let machine = Machine::new(Backend::Metal).with_available(24 << 30, AvailableSource::WhatIf);
//!     let workload = Workload::uniform(32_768, 1); // tokens of context, sequences
//!     let estimate = estimate_dir("models/Qwen3-8B".as_ref(), &workload, &machine)?;
//!     println!("{}", verdict(&estimate)); // DOES NOT FIT: 622.4 MiB over budget
//!     Ok(())
//! }
//! ```
//!
//! Without a folder:
//!
//! ```
//! use mlxcel_estimator::*;
//!
//! let config = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
//!     "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
//!     "vocab_size": 151936, "tie_word_embeddings": true}"#;
//! let spec = ModelSpec::from_config(config)?;
//! let weights = WeightFootprint::analytical(&spec)?;
//! let machine = Machine::new(Backend::Cpu).with_available(512 << 20, AvailableSource::WhatIf);
//! let estimate = estimate_total_memory(&spec, &weights, &Workload::uniform(14, 1), &machine)?;
//! assert_eq!(verdict(&estimate), "DOES NOT FIT: 622.4 MiB over budget");
//! # Ok::<(), EstimatorError>(())
//! ```
//!
//! # Where to look
//!
//! | question | here |
//! |---|---|
//! | what a model consists of and weighs | [`ModelSpec`], [`LayerSpec`], [`tensors()`], [`WeightFootprint`] |
//! | what is in the files | [`headers`] |
//! | how many bytes a cache takes | [`kv_cache_bytes`], [`block_bytes`], [`KvMode`] |
//! | whether it fits | [`estimate_total_memory`], [`estimate_dir`], [`verdict()`] |
//! | what would fit | [`Solver`] |
//! | a printable report | [`report::Report`] |
//!
//! # Promises
//!
//! Nothing panics, whatever the input. Sizes are added up with checked or saturating arithmetic (a
//! saturated size fits nowhere). A size that cannot be known is `None` with a reason, never zero. An
//! estimate grows with context, batch and bits. Model families are described as text in `families/`; a
//! new one is a new file there.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod bytes;
mod cache;
mod config;
mod dtype;
mod error;
mod estimate;
mod family;
pub mod headers;
mod headroom;
mod json;
mod kv;
mod machine;
mod quantization;
pub mod report;
mod scratch;
mod solve;
mod spec;
mod tensors;
mod verdict;
mod weights;
mod workload;

pub use bytes::{GIB, KIB, MIB, TIB, format_bytes, parse_bytes};
pub use cache::{CacheBytes, cache_bytes, kv_bytes_per_token};
pub use config::{check_config, resolved_config};
pub use dtype::Dtype;
pub use error::EstimatorError;
pub use estimate::{
    KvSource, MemoryEstimate, Term, UNKNOWN_CACHE_BYTES, estimate_dir, estimate_total_memory,
    read_dir,
};
pub use headroom::{
    CALIBRATION_SCHEMA, Calibration, CalibrationEntry, DEFAULT_ERROR_BAND, DEFAULT_HEADROOM_FACTOR,
    HEADROOM_VARIABLE, Headroom, HeadroomSource, calibration_path,
};
pub use json::parse_object;
pub use kv::{
    CacheType, ComputeDtype, KV_BLOCK_TOKENS, KvBytes, KvCacheParams, KvChoice, KvMode, KvStorage,
    SCALE_BYTES, block_bytes, kv_cache_bytes, kv_cache_bytes_from_params, round_up_to_block,
    vector_bytes,
};
pub use machine::{AvailableSource, Backend, KernelSet, Machine, MlxVersion};
pub use quantization::{QuantFormat, QuantScope, Quantization};
pub use scratch::{
    AttentionKernel, LayerCopies, Phase, Scratch, Step, attention_kernel, scratch,
    takes_decode_kernel,
};
pub use solve::{ModeOutcome, Solution, Solver};
pub use spec::{
    Architecture, AttentionShape, CompressedShape, CrossShape, DenseShape, ExpertsShape,
    FeedForward, GatedDeltaShape, IndexerShape, LatentShape, LayerSpec, LayerState, Mamba2Shape,
    MambaShape, Mixer, ModelSpec, RecurrentShape, SequenceTokens, ShortConvShape, VisionSpec,
    Widths,
};
pub use tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec, tensors};
pub use verdict::{DEFAULT_VISION_THRESHOLD, VisionRule, verdict, vision_rule};
pub use weights::{FALLBACK_PARAMETERS, WeightFootprint, WeightQuant, WeightSource};
pub use workload::{DEFAULT_CONTEXT_TOKENS, DEFAULT_PREFILL_CHUNK_TOKENS, Sequence, Workload};
