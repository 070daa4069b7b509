//! (being written)
#![forbid(unsafe_code)]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

mod config;
mod error;
mod family;
mod json;
mod tensors;

pub use error::EstimatorError;
pub use tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec, tensors};
