//! `qwen3_5` and `qwen3_5_moe`, their language models: Qwen3-Next's layers with the projections of
//! the delta nets apart; the dense sizes have an MLP where the others have experts.

use super::config::DecoderConfig;
use super::delta::Projections;
use super::dense::Model;
use super::qwen3_next::{Qwen3NextConfig, load_with};
use crate::Result;
use crate::loading::Weights;

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Qwen3NextConfig) -> Result<Model> {
    load_with(w, d, c, Projections::Apart)
}
