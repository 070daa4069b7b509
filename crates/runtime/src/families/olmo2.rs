//! `olmo2`: OLMo 2: Llama's parts with a norm after each instead of before, and norms over whole
//! queries and keys.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias, Residual};
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
}

fn attention(w: &Weights, c: &Config, heads: HeadShape, rope: Rope) -> Result<Attention> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    let q_norm = w.rms_norm("q_norm", heads.query_size(), norm)?;
    let k_norm = w.rms_norm("k_norm", heads.kv_size(), norm)?;
    let plain = Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope))?;
    Ok(Attention { qk_norm: Some((q_norm, k_norm)), ..plain })
}

fn block(w: &Weights, c: &Config, norm: NormRule, attention: Attention) -> Result<DecoderBlock> {
    let hidden = c.decoder.sizes.hidden_size;
    Ok(DecoderBlock {
        mixer: Box::new(attention),
        mlp: Box::new(Mlp::load(&w.at("mlp"), &c.decoder.sizes, Bias::None)?),
        mixer_residual: Residual::after(w, "post_attention_layernorm", hidden, norm)?,
        mlp_residual: Residual::after(w, "post_feedforward_layernorm", hidden, norm)?,
    })
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let rope = c.decoder.rope.build(heads.head_dim)?;
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    Model::load(w, &c.decoder.sizes, norm, |w, _| {
        block(w, c, norm, attention(&w.at("self_attn"), c, heads, rope.clone())?)
    })
}
