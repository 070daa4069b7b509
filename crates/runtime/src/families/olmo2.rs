//! `olmo2`: OLMo 2: Llama's parts with a norm after each instead of before, and norms over whole
//! queries and keys.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias, Residual};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Olmo2Config {
    #[serde(default)]
    attention_bias: bool,
}

fn attention(
    w: &Weights,
    d: &DecoderConfig,
    c: &Olmo2Config,
    heads: HeadShape,
    rope: Rope,
) -> Result<Attention> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let norm = d.sizes.norm(NormKind::Rms)?;
    let q_norm = w.rms_norm("q_norm", heads.query_size(), norm)?;
    let k_norm = w.rms_norm("k_norm", heads.kv_size(), norm)?;
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, Some(rope))?;
    Ok(Attention { qk_norm: Some((q_norm, k_norm)), ..plain })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Olmo2Config) -> Result<Model> {
    let rope = d.rope.build(d.head_dim()?)?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let hidden = d.sizes.hidden_size;
    Model::load(w, &d.sizes, norm, |w, layer| {
        let attention = attention(&w.at("self_attn"), d, c, d.heads(layer)?, rope.clone())?;
        let mlp = Mlp::load(&w.at("mlp"), hidden, d.inner(layer)?, Bias::None)?;
        Ok(DecoderBlock {
            mixer: Box::new(attention),
            mlp: Box::new(mlp),
            mixer_residual: Residual::after(w, "post_attention_layernorm", hidden, norm)?,
            mlp_residual: Residual::after(w, "post_feedforward_layernorm", hidden, norm)?,
        })
    })
}
