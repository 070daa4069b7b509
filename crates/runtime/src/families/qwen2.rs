//! `qwen2`: Qwen 1.5, 2 and 2.5: llama's layout with biases on q, k and v.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

/// Nothing: sizes say everything.
#[derive(Debug, Deserialize)]
pub(super) struct Qwen2Config {}

pub(super) fn load(w: &Weights, d: &DecoderConfig, _: &Qwen2Config) -> Result<Model> {
    let rope = d.rope.build(d.head_dim()?)?;
    load_at([&w.at("model"), w], d, &rope)
}

/// Reads the model from other places, below `model` and beside `lm_head`, with another rotation.
pub(super) fn load_at(places: [&Weights; 2], d: &DecoderConfig, rope: &Rope) -> Result<Model> {
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let bias = ProjectionBias { qkv: Bias::Required, output: Bias::None };
    Model::load_with(places, &d.sizes, "norm", norm, |w, layer| {
        let rope = Some(rope.clone());
        let attention = Attention::load(&w.at("self_attn"), hidden, d.heads(layer)?, bias, rope)?;
        let mlp = Mlp::load(&w.at("mlp"), hidden, d.inner(layer)?, Bias::None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)
    })
}
