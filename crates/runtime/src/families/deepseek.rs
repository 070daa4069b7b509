//! `deepseek_v2` (also V2-Lite) and `deepseek_v3` (also R1, V3.1): latent attention, experts chosen
//! from the best groups, experts that every token passes. Kimi K2 is a `deepseek_v3`, too.

use mlxcel_core::AbsorbedStorage;
use mlxcel_core::experts::{GroupLimit, GroupScore, RouteRule, Scores};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{DecoderConfig, Mixture, RopeDefaults};
use super::dense::{DecoderBlock, FeedForward, Mlp, Model};
use super::mla::{LatentAttention, LatentRope, LatentSizes};
use super::moe::{Moe, NAMES};
use crate::loading::{Bias, ExpertShape, NormKind, Weights};
use crate::{Error, Result};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct DeepseekConfig {
    #[serde(default)]
    attention_bias: bool,
    n_group: Option<usize>,
    topk_group: Option<usize>,
    topk_method: Option<String>,
    scoring_func: Option<String>,
    routed_scaling_factor: Option<f32>,
    norm_topk_prob: Option<bool>,
    rope_scaling: Option<Map<String, Value>>,
}

impl DeepseekConfig {
    fn limit(&self, score: GroupScore) -> Option<GroupLimit> {
        let groups = self.n_group.unwrap_or(1);
        let active = self.topk_group.unwrap_or(1);
        (groups > 1).then_some(GroupLimit { groups, active, score })
    }

    /// V2: the highest softmax, over all experts or in the groups with the best one.
    fn rule_v2(&self, mixture: Mixture) -> Result<RouteRule> {
        let limit = match self.topk_method.as_deref() {
            None | Some("greedy") => None,
            Some("group_limited_greedy") => self.limit(GroupScore::Best),
            Some(other) => {
                return Err(unknown("topk_method", other, "greedy, group_limited_greedy"));
            }
        };
        // Published code scales what it does not normalise.
        let normalise = self.norm_topk_prob.unwrap_or(false) && mixture.active > 1;
        let scale = if normalise { 1.0 } else { self.routed_scaling_factor.unwrap_or(1.0) };
        let softmax = RouteRule::softmax(mixture.experts, mixture.active, normalise);
        Ok(RouteRule { limit, scale, ..softmax })
    }

    /// V3: the highest sigmoid with a bias, in the groups with the two best ones.
    fn rule_v3(&self, mixture: Mixture) -> Result<RouteRule> {
        if let Some(other) = self.topk_method.as_deref().filter(|method| *method != "noaux_tc") {
            return Err(unknown("topk_method", other, "noaux_tc"));
        }
        if let Some(other) = self.scoring_func.as_deref().filter(|name| *name != "sigmoid") {
            return Err(unknown("scoring_func", other, "sigmoid"));
        }
        Ok(RouteRule {
            experts: mixture.experts,
            active: mixture.active,
            scores: Scores::Sigmoid,
            limit: self.limit(GroupScore::BestTwo),
            normalise: self.norm_topk_prob.unwrap_or(true) && mixture.active > 1,
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

fn unknown(key: &'static str, word: &str, supported: &'static str) -> Error {
    Error::unsupported_value(key, format!("\"{word}\""), supported)
}

pub(super) fn load_v2(w: &Weights, decoder: &DecoderConfig, c: &DeepseekConfig) -> Result<Model> {
    load(w, decoder, c, AbsorbedStorage::Float, |w, shape, mixture| {
        Moe::load(w, shape, c.rule_v2(mixture)?, None)
    })
}

pub(super) fn load_v3(w: &Weights, decoder: &DecoderConfig, c: &DeepseekConfig) -> Result<Model> {
    load(w, decoder, c, AbsorbedStorage::AsStored, |w, shape, mixture| {
        Moe::load(w, shape, c.rule_v3(mixture)?, Some("gate.e_score_correction_bias"))
    })
}

fn load(
    w: &Weights,
    d: &DecoderConfig,
    c: &DeepseekConfig,
    storage: AbsorbedStorage,
    moe: impl Fn(&Weights, ExpertShape, Mixture) -> Result<Moe>,
) -> Result<Model> {
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm_or(NormKind::Rms, 1e-6);
    let bias = Bias::when(c.attention_bias);
    let defaults = RopeDefaults { traditional: true, ..RopeDefaults::default() };
    let rope = d.rope.build_or(LatentSizes::new(d, 0)?.rotary, defaults)?;
    let rotation = LatentRope { rope, temperature: c.temperature() };
    Model::load(w, &d.sizes, norm, |w, layer| {
        let sizes = LatentSizes::new(d, layer)?;
        let rotation = rotation.clone();
        let own = w.at("self_attn");
        let attention = LatentAttention::load(&own, hidden, sizes, rotation, bias, storage)?;
        let mlp = feed_forward(&w.at("mlp"), d, layer, &moe)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)
    })
}

/// The experts of layer `layer`, which `moe` reads, or its MLP.
fn feed_forward(
    w: &Weights,
    d: &DecoderConfig,
    layer: usize,
    moe: impl Fn(&Weights, ExpertShape, Mixture) -> Result<Moe>,
) -> Result<Box<dyn FeedForward>> {
    let hidden = d.sizes.hidden_size;
    let Some(mixture) = d.experts(layer)? else {
        return Ok(Box::new(Mlp::load(w, hidden, d.inner(layer)?, Bias::None)?));
    };
    let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
    let mut moe = moe(w, shape, mixture)?;
    if mixture.shared_inner > 0 {
        let shared = w.at("shared_experts");
        moe.shared_experts = Some(Mlp::load(&shared, hidden, mixture.shared_inner, Bias::None)?);
    }
    Ok(Box::new(moe))
}
