//! `deepseek_v2` (also V2-Lite) and `deepseek_v3` (also R1, V3.1): latent attention, experts chosen
//! from the best groups, experts that every token passes. Kimi K2 is a `deepseek_v3`, too.

use mlxcel_core::AbsorbedStorage;
use mlxcel_core::experts::{GroupLimit, GroupScore, RouteRule, Scores};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{DecoderConfig, RopeDefaults};
use super::dense::{DecoderBlock, FeedForward, Mlp, Model};
use super::mla::{LatentAttention, LatentSizes};
use super::moe::{Moe, NAMES, swiglu};
use crate::loading::{Bias, ExpertShape, NormKind, Weights};
use crate::{Error, Result};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    latent: LatentSizes,
    num_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    #[serde(default)]
    moe_intermediate_size: usize,
    n_shared_experts: Option<usize>,
    #[serde(default)]
    first_k_dense_replace: usize,
    moe_layer_freq: Option<usize>,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    topk_method: Option<String>,
    scoring_func: Option<String>,
    routed_scaling_factor: Option<f32>,
    norm_topk_prob: Option<bool>,
    rope_scaling: Option<Map<String, Value>>,
}

impl Config {
    /// The number of experts of layer `layer`, where it has any.
    fn experts(&self, layer: usize) -> Option<usize> {
        let sparse = layer >= self.first_k_dense_replace
            && layer.is_multiple_of(self.moe_layer_freq.unwrap_or(1).max(1));
        self.num_experts.filter(|experts| sparse && *experts > 0)
    }

    /// The experts that every token passes, as one, where there are any.
    fn shared_experts(&self, w: &Weights, hidden: usize) -> Result<Option<Mlp>> {
        let Some(shared) = self.n_shared_experts.filter(|shared| *shared > 0) else {
            return Ok(None);
        };
        let inner = self.moe_intermediate_size.saturating_mul(shared);
        Ok(Some(swiglu(&w.at("shared_experts"), hidden, inner)?))
    }

    fn active(&self) -> Result<usize> {
        self.num_experts_per_tok.ok_or_else(|| Error::config("it has no num_experts_per_tok"))
    }

    fn limit(&self, score: GroupScore) -> Option<GroupLimit> {
        let groups = self.n_group.unwrap_or(1);
        let active = self.topk_group.unwrap_or(1);
        (groups > 1).then_some(GroupLimit { groups, active, score })
    }

    /// V2: the highest softmax, over all experts or in the groups with the best one.
    fn rule_v2(&self, experts: usize) -> Result<RouteRule> {
        let limit = match self.topk_method.as_deref() {
            None | Some("greedy") => None,
            Some("group_limited_greedy") => self.limit(GroupScore::Best),
            Some(other) => return Err(unknown("topk_method", other)),
        };
        // Published code scales only weights that it does not normalise.
        let normalise = self.norm_topk_prob.unwrap_or(false) && self.active()? > 1;
        let scale = if normalise { 1.0 } else { self.routed_scaling_factor.unwrap_or(1.0) };
        Ok(RouteRule { limit, scale, ..RouteRule::softmax(experts, self.active()?, normalise) })
    }

    /// V3: the highest sigmoid with a bias, in the groups with the two best ones.
    fn rule_v3(&self, experts: usize) -> Result<RouteRule> {
        if let Some(other) = self.topk_method.as_deref().filter(|method| *method != "noaux_tc") {
            return Err(unknown("topk_method", other));
        }
        if let Some(other) = self.scoring_func.as_deref().filter(|name| *name != "sigmoid") {
            return Err(unknown("scoring_func", other));
        }
        Ok(RouteRule {
            experts,
            active: self.active()?,
            scores: Scores::Sigmoid,
            limit: self.limit(GroupScore::BestTwo),
            normalise: self.norm_topk_prob.unwrap_or(true) && self.active()? > 1,
            scale: self.routed_scaling_factor.unwrap_or(1.0),
        })
    }

    fn scaling_number(&self, key: &str) -> Option<f64> {
        self.rope_scaling.as_ref()?.get(key)?.as_f64()
    }

    /// YaRN's factor on the scores, which comes with a longer context.
    #[expect(clippy::cast_possible_truncation, reason = "a factor near 1")]
    fn temperature(&self) -> f32 {
        let mscale = self.scaling_number("mscale_all_dim").unwrap_or(0.0);
        let factor = self.scaling_number("factor").unwrap_or(1.0);
        let m = if factor > 1.0 { 0.1 * mscale * factor.ln() + 1.0 } else { 1.0 };
        (m * m) as f32
    }
}

fn unknown(key: &str, word: &str) -> Error {
    Error::config(format!("{key} \"{word}\" is not supported"))
}

pub(super) fn load_v2(w: &Weights, decoder: &DecoderConfig, c: &Config) -> Result<Model> {
    load(w, decoder, c, AbsorbedStorage::Float, |w, shape, experts| {
        Moe::load(w, shape, c.rule_v2(experts)?, None)
    })
}

pub(super) fn load_v3(w: &Weights, decoder: &DecoderConfig, c: &Config) -> Result<Model> {
    load(w, decoder, c, AbsorbedStorage::AsStored, |w, shape, experts| {
        Moe::load(w, shape, c.rule_v3(experts)?, Some("gate.e_score_correction_bias"))
    })
}

fn load(
    w: &Weights,
    decoder: &DecoderConfig,
    c: &Config,
    storage: AbsorbedStorage,
    moe: impl Fn(&Weights, ExpertShape, usize) -> Result<Moe>,
) -> Result<Model> {
    let s = &decoder.sizes;
    let hidden = s.hidden_size;
    let norm = s.norm_or(NormKind::Rms, 1e-6);
    let defaults = RopeDefaults { traditional: true, ..RopeDefaults::default() };
    let rope = decoder.rope.build_or(c.latent.qk_rope_head_dim, defaults)?;
    let shape = ExpertShape { hidden, inner: c.moe_intermediate_size, names: NAMES };
    Model::load(w, s, norm, |w, layer| {
        let rope = rope.clone();
        let temperature = c.temperature();
        let attention = LatentAttention::load(
            &w.at("self_attn"),
            hidden,
            &c.latent,
            rope,
            temperature,
            storage,
        )?;
        let mlp = w.at("mlp");
        let feed_forward: Box<dyn FeedForward> = match c.experts(layer) {
            None => Box::new(Mlp::load(&mlp, s, Bias::None)?),
            Some(experts) => Box::new(Moe {
                shared_experts: c.shared_experts(&mlp, hidden)?,
                ..moe(&mlp, shape, experts)?
            }),
        };
        DecoderBlock::pre_norm(w, hidden, norm, attention, feed_forward)
    })
}
