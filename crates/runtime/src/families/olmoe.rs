//! `olmoe`: OLMoE: norms over whole queries and keys, experts in every layer.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct OlmoeConfig {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    norm_topk_prob: bool,
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &OlmoeConfig) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = d.rope.build(d.head_dim()?)?;
    let norm = d.sizes.norm_or(NormKind::Rms, 1e-5);
    let hidden = d.sizes.hidden_size;
    Model::load(w, &d.sizes, norm, |w, layer| {
        let own = w.at("self_attn");
        let heads = d.heads(layer)?;
        let plain = Attention::load(&own, hidden, heads, bias, Some(rope.clone()))?;
        let q_norm = own.rms_norm("q_norm", heads.query_size(), norm)?;
        let k_norm = own.rms_norm("k_norm", heads.kv_size(), norm)?;
        let attention = Attention { qk_norm: Some((q_norm, k_norm)), ..plain };
        let mixture = d.mixture(layer)?;
        let rule = RouteRule::softmax(mixture.experts, mixture.active, c.norm_topk_prob);
        let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
        let moe = Moe::load(&w.at("mlp"), shape, rule, None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, moe)
    })
}
