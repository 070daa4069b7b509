//! (being written)
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod config;
mod dtype;
mod error;
mod family;
pub mod headers;
mod json;
mod tensors;

pub use dtype::Dtype;
pub use error::EstimatorError;
pub use tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec, tensors};
