//! `gemma2`, and the parts that later Gemmas share: four norms a layer whose files hold the weight
//! minus 1, a GELU-gated MLP, scaled embeddings. Gemma 2 alone has soft caps on scores and logits, and
//! a window over every other layer.

use mlxcel_core::{Activation, Map};
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Gemma2Config {
    query_pre_attn_scalar: Option<f32>,
    #[serde(default = "score_cap")]
    attn_logit_softcapping: Option<f32>,
    #[serde(default = "logit_cap")]
    final_logit_softcapping: Option<f32>,
}

#[expect(clippy::unnecessary_wraps, reason = "a default for serde, where null means none")]
fn score_cap() -> Option<f32> {
    Some(50.0)
}

#[expect(clippy::unnecessary_wraps, reason = "a default for serde, where null means none")]
fn logit_cap() -> Option<f32> {
    Some(30.0)
}

/// Gemma's norms.
pub(super) fn norm(c: &DecoderConfig) -> NormRule {
    c.sizes.norm_or(NormKind::RmsPlusOne, 1e-6)
}

/// `1/√scalar`, the factor on Gemma's scores.
pub(super) fn score_scale(scalar: Option<f32>) -> Result<f32> {
    let scalar = scalar.unwrap_or(256.0);
    if scalar > 0.0 && scalar.is_finite() {
        return Ok(scalar.sqrt().recip());
    }
    Err(Error::invalid_value("query_pre_attn_scalar", scalar, "a positive number"))
}

/// `√hidden`, the factor on Gemma's embeddings.
#[expect(clippy::cast_precision_loss, reason = "hidden sizes are below 2^24")]
pub(super) fn embed_scale(c: &DecoderConfig) -> f32 {
    (c.sizes.hidden_size as f32).sqrt()
}

/// Layer `layer` of Gemma 2 or 3 around `attention`.
pub(super) fn block(
    w: &Weights,
    d: &DecoderConfig,
    layer: usize,
    attention: Attention,
) -> Result<DecoderBlock> {
    let hidden = d.sizes.hidden_size;
    let norm = norm(d);
    let mlp = Mlp::load(&w.at("mlp"), hidden, d.inner(layer)?, Bias::None)?;
    let mlp = Mlp { activation: Activation::GeluTanh, ..mlp };
    let mut block = DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)?;
    block.mixer_residual.after = block.mlp_residual.before.take();
    block.mlp_residual.before = Some(w.norm("pre_feedforward_layernorm", hidden, norm)?);
    block.mlp_residual.after = Some(w.norm("post_feedforward_layernorm", hidden, norm)?);
    Ok(block)
}

fn attention(
    w: &Weights,
    d: &DecoderConfig,
    c: &Gemma2Config,
    heads: HeadShape,
) -> Result<Attention> {
    let bias = ProjectionBias::all(Bias::None);
    let rope = d.rope.build(heads.head_dim)?;
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, Some(rope))?;
    let spec = plain.spec.with_scale(score_scale(c.query_pre_attn_scalar)?);
    let spec = spec.with_softcap(c.attn_logit_softcapping)?;
    Ok(Attention { spec, ..plain })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Gemma2Config) -> Result<Model> {
    let cap = c.final_logit_softcapping;
    if let Some(cap) = cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
        return Err(Error::invalid_value("final_logit_softcapping", cap, "a positive number"));
    }
    Ok(Model {
        embed_scale: Some(embed_scale(d)),
        logits: cap.map(Map::Softcap),
        ..Model::load(w, &d.sizes, norm(d), |w, layer| {
            let attention = attention(&w.at("self_attn"), d, c, d.heads(layer)?)?;
            block(w, d, layer, attention)
        })?
    })
}
