//! `qwen3`: the dense Qwen 3 models: llama's layout with RMS norms over each query and key head.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Qwen3Config {
    #[serde(default)]
    attention_bias: bool,
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Qwen3Config) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = d.rope.build(d.head_dim()?)?;
    Model::pre_norm(
        w,
        d,
        |w, layer| attention(w, d, d.heads(layer)?, bias, &rope),
        |w, layer| Mlp::load(w, d.sizes.hidden_size, d.inner(layer)?, Bias::None),
    )
}

/// Attention with norms over each query and key head; also Qwen 3's with experts.
pub(super) fn attention(
    w: &Weights,
    d: &DecoderConfig,
    heads: HeadShape,
    bias: ProjectionBias,
    rope: &Rope,
) -> Result<Attention> {
    let norm = d.sizes.norm(NormKind::Rms)?;
    let q_norm = w.rms_norm("q_norm", heads.head_dim, norm)?;
    let k_norm = w.rms_norm("k_norm", heads.head_dim, norm)?;
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, Some(rope.clone()))?;
    Ok(Attention { qk_norm: Some((q_norm, k_norm)), ..plain })
}
