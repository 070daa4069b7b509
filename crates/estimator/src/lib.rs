//! (being written)
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
pub use dtype::Dtype;
pub use error::EstimatorError;
pub use estimate::{
    KvSource, MemoryEstimate, Term, UNKNOWN_CACHE_BYTES, estimate_dir, estimate_total_memory,
    read_dir,
};
pub use headroom::{
    CALIBRATION_SCHEMA, Calibration, CalibrationEntry, DEFAULT_ERROR_BAND, DEFAULT_HEADROOM_FACTOR,
    HEADROOM_VARIABLE, Headroom, HeadroomSource,
};
pub use kv::{
    CacheType, KV_BLOCK_TOKENS, KvBytes, KvCacheParams, KvChoice, KvMode, SCALE_BYTES, block_bytes,
    kv_cache_bytes, kv_cache_bytes_from_params, round_up_to_block, vector_bytes,
};
pub use machine::{AvailableSource, Backend, KernelSet, Machine, MlxVersion};
pub use quantization::{QuantFormat, QuantScope, Quantization};
pub use scratch::{
    AttentionKernel, Phase, Scratch, Step, attention_kernel, scratch, takes_decode_kernel,
};
pub use solve::{ModeOutcome, Solution, Solver};
pub use spec::{Architecture, Kept, LayerSpec, ModelSpec, SequenceTokens, VisionSpec, Widths};
pub use tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec, tensors};
pub use verdict::{DEFAULT_VISION_THRESHOLD, VisionRule, verdict, vision_rule};
pub use weights::{FALLBACK_PARAMETERS, WeightFootprint, WeightQuant, WeightSource};
pub use workload::{DEFAULT_CONTEXT_TOKENS, DEFAULT_PREFILL_CHUNK_TOKENS, Sequence, Workload};
