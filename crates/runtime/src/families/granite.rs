//! `granite`: the dense Granite 3 models: Llama's layout with a factor on embeddings, scores,
//! residuals and logits.

use mlxcel_core::Map;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias};
use crate::loading::{Bias, NormKind, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct GraniteConfig {
    #[serde(flatten)]
    factors: GraniteMultipliers,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// Factors, 1 where they are not stated.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub(super) struct GraniteMultipliers {
    pub(super) embedding_multiplier: f32,
    pub(super) attention_multiplier: f32,
    pub(super) residual_multiplier: f32,
    /// The logits are divided by it.
    pub(super) logits_scaling: f32,
}

impl Default for GraniteMultipliers {
    fn default() -> Self {
        Self {
            embedding_multiplier: 1.0,
            attention_multiplier: 1.0,
            residual_multiplier: 1.0,
            logits_scaling: 1.0,
        }
    }
}

impl GraniteMultipliers {
    /// Refuses logits that cannot be divided.
    pub(super) fn check(&self) -> Result<()> {
        if self.logits_scaling.is_finite() && self.logits_scaling > 0.0 {
            return Ok(());
        }
        Err(Error::invalid_value("logits_scaling", self.logits_scaling, "a positive number"))
    }
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &GraniteConfig) -> Result<Model> {
    let factors = c.factors;
    factors.check()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = d.rope.build(d.head_dim()?)?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let hidden = d.sizes.hidden_size;
    let model = Model::load(w, &d.sizes, norm, |w, layer| {
        let rope = Some(rope.clone());
        let plain = Attention::load(&w.at("self_attn"), hidden, d.heads(layer)?, bias, rope)?;
        let spec = plain.spec.with_scale(factors.attention_multiplier);
        let attention = Attention { spec, ..plain };
        let mlp = Mlp::load(&w.at("mlp"), hidden, d.inner(layer)?, Bias::when(c.mlp_bias))?;
        let mut block = DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)?;
        block.mixer_residual.scale = Some(factors.residual_multiplier);
        block.mlp_residual.scale = Some(factors.residual_multiplier);
        Ok(block)
    })?;
    Ok(Model {
        embed_scale: Some(factors.embedding_multiplier),
        logits: Some(Map::Scale(factors.logits_scaling.recip())),
        ..model
    })
}
