//! `olmoe`: OLMoE: norms over whole queries and keys, experts in every layer.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let s = &c.decoder.sizes;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = c.decoder.rope.build(heads.head_dim)?;
    let norm = s.norm_or(NormKind::Rms, 1e-5);
    let hidden = s.hidden_size;
    let inner = s.intermediate_size;
    let shape = ExpertShape { hidden, inner, names: NAMES };
    let rule = RouteRule::softmax(c.num_experts, c.num_experts_per_tok, c.norm_topk_prob);
    Model::load(w, s, norm, |w, _| {
        let own = w.at("self_attn");
        let plain = Attention::load(&own, hidden, heads, bias, Some(rope.clone()))?;
        let norms = (
            own.rms_norm("q_norm", heads.query_size(), norm)?,
            own.rms_norm("k_norm", heads.kv_size(), norm)?,
        );
        let attention = Attention { qk_norm: Some(norms), ..plain };
        let moe = Moe::load(&w.at("mlp"), shape, rule, None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, moe)
    })
}
