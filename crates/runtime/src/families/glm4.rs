//! `glm4`: GLM-4 0414: norms before and after each part, neighbours rotated in the first half of
//! each head, a fused gate and up projection.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::{DecoderConfig, RopeDefaults};
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

/// Defaults of the family's class.
const ROPE: RopeDefaults = RopeDefaults { theta: 10_000.0, traditional: true, partial: 0.5 };

#[derive(Debug, Deserialize)]
pub(super) struct Glm4Config {
    attention_bias: Option<bool>,
}

fn block(
    w: &Weights,
    d: &DecoderConfig,
    c: &Glm4Config,
    layer: usize,
    rope: Rope,
) -> Result<DecoderBlock> {
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let qkv = Bias::when(c.attention_bias.unwrap_or(true));
    let bias = ProjectionBias { qkv, output: Bias::None };
    let attention = Attention::load(&w.at("self_attn"), hidden, d.heads(layer)?, bias, Some(rope))?;
    let mlp = Mlp::load_fused(&w.at("mlp"), hidden, d.inner(layer)?)?;
    let mut block = DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)?;
    block.mixer_residual.after = Some(w.norm("post_self_attn_layernorm", hidden, norm)?);
    block.mlp_residual.after = Some(w.norm("post_mlp_layernorm", hidden, norm)?);
    Ok(block)
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Glm4Config) -> Result<Model> {
    let rope = d.rope.build_or(d.head_dim()?, ROPE)?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    Model::load(w, &d.sizes, norm, |w, layer| block(w, d, c, layer, rope.clone()))
}
