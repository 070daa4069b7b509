//! `phi`: Phi 1, 1.5 and 2: attention and MLP in parallel after one layer norm, a part of each
//! head rotated, biases everywhere, the head's too.

use mlxcel_core::layers::Norm;
use mlxcel_core::{Array, Pass, Rope};
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, RopeDefaults, activation};
use super::dense::{Attention, DecoderLayer, FeedForward, Mixer, Model, PlainMlp};
use super::layer_state::{LayerState, StateIndex};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

/// Defaults of the family's class.
const ROPE: RopeDefaults = RopeDefaults { theta: 10_000.0, traditional: false, partial: 0.5 };

#[derive(Debug, Deserialize)]
pub(super) struct PhiConfig {
    #[serde(default)]
    qk_layernorm: bool,
    hidden_act: Option<String>,
}

fn attention(w: &Weights, hidden: usize, heads: HeadShape, rope: Rope) -> Result<Attention> {
    let dense = w.linear("dense", heads.query_size(), hidden, Bias::Required)?;
    Attention::with_output(w, heads, Bias::Required, dense, Some(rope))
}

fn mlp(w: &Weights, c: &PhiConfig, hidden: usize, inner: usize) -> Result<PlainMlp> {
    Ok(PlainMlp {
        input: w.linear("fc1", hidden, inner, Bias::Required)?,
        output: w.linear("fc2", inner, hidden, Bias::Required)?,
        activation: activation(c.hidden_act.as_deref().unwrap_or("gelu_new"))?,
    })
}

/// `x + attention(norm(x)) + mlp(norm(x))`.
struct PhiBlock {
    self_attn: Attention,
    mlp: PlainMlp,
    input_layernorm: Norm,
}

impl PhiBlock {
    fn load(
        w: &Weights,
        d: &DecoderConfig,
        c: &PhiConfig,
        layer: usize,
        rope: Rope,
    ) -> Result<Self> {
        let hidden = d.sizes.hidden_size;
        Ok(Self {
            self_attn: attention(&w.at("self_attn"), hidden, d.heads(layer)?, rope)?,
            mlp: mlp(&w.at("mlp"), c, hidden, d.inner(layer)?)?,
            input_layernorm: w.norm("input_layernorm", hidden, norm(d))?,
        })
    }
}

impl DecoderLayer for PhiBlock {
    fn layer_state(&self) -> LayerState {
        self.self_attn.layer_state()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let normed = pass.ops().norm(x, &self.input_layernorm)?;
        let attended = self.self_attn.forward(pass, index, &normed)?;
        let sum = pass.ops().add(&attended, &self.mlp.forward(pass, &normed)?)?;
        Ok(pass.ops().add(&sum, x)?)
    }
}

fn norm(d: &DecoderConfig) -> NormRule {
    d.sizes.norm_or(NormKind::Layer, 1e-5)
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &PhiConfig) -> Result<Model> {
    if c.qk_layernorm {
        return Err(Error::unsupported_value("qk_layernorm", true, "false"));
    }
    let s = &d.sizes;
    let rope = d.rope.build_or(d.head_dim()?, ROPE)?;
    let model = w.at("model");
    let layers = model.layers("layers", s.num_hidden_layers, |w, layer| {
        let block = PhiBlock::load(w, d, c, layer, rope.clone())?;
        Ok(Box::new(block) as Box<dyn DecoderLayer>)
    })?;
    Ok(Model {
        embed_tokens: model.embedding("embed_tokens", s.vocab_size, s.hidden_size)?,
        positions: None,
        embed_scale: None,
        layers,
        norm: model.norm("final_layernorm", s.hidden_size, norm(d))?,
        lm_head: Some(w.linear("lm_head", s.hidden_size, s.vocab_size, Bias::Required)?),
        logits: None,
    })
}
