//! (being written)
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod bytes;
mod config;
mod dtype;
mod error;
mod family;
pub mod headers;
mod json;
mod kv;
mod quantization;
mod spec;
mod tensors;

pub use bytes::{GIB, KIB, MIB, TIB, format_bytes, parse_bytes};
pub use dtype::Dtype;
pub use error::EstimatorError;
pub use kv::{
    CacheType, KV_BLOCK_TOKENS, KvBytes, KvCacheParams, KvChoice, KvMode, SCALE_BYTES, block_bytes,
    kv_cache_bytes, kv_cache_bytes_from_params, round_up_to_block, vector_bytes,
};
pub use quantization::{QuantFormat, QuantScope, Quantization};
pub use spec::{Architecture, Kept, LayerSpec, ModelSpec, SequenceTokens, VisionSpec, Widths};
pub use tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec, tensors};
