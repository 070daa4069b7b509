//! A decoder's sizes as families use them: views of a [`ModelSpec`] in `usize`, with the fields of
//! `config.json` that sizing does not need and several families share (norm epsilon, rotary embedding).

use mlxcel_core::{Activation, AttentionSpec};
use mlxcel_estimator::{ExpertsShape, LayerSpec, Mixer, ModelSpec};
use serde::Deserialize;
use serde_json::Value;

pub(super) use super::rope::{RopeConfig, RopeDefaults};
use crate::loading::{NormKind, NormRule};
use crate::{ConfigProblem, Error, Result};

/// Largest value that any size in a configuration may have; products of two stay within `usize`.
const MAX_SIZE: usize = 1 << 28;

/// A size of the estimator. Checked configurations have none beyond `usize`; if one is there, no tensor
/// has its shape.
pub(super) fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The decoder of a checked configuration.
#[derive(Debug)]
pub(super) struct DecoderConfig {
    pub(super) sizes: Sizes,
    pub(super) rope: RopeConfig,
    layers: Vec<LayerSpec>,
}

/// Sizes of the whole decoder.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) vocab_size: usize,
    /// Ties the head to the embedding; the files decide if the configuration is silent.
    pub(super) tie_word_embeddings: Option<bool>,
    norm_eps: Option<f32>,
}

/// Names of the epsilon of the decoder's norms.
const NORM_EPS: [&str; 5] =
    ["rms_norm_eps", "norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"];

/// The epsilon of the decoder's norms; several names may state the same one.
fn norm_eps(config: &Value) -> Result<Option<f32>> {
    let mut stated: Option<(&'static str, f64)> = None;
    for name in NORM_EPS {
        let Some(value) = config.get(name).filter(|value| !value.is_null()) else { continue };
        let eps = value.as_f64();
        let eps = eps.ok_or_else(|| Error::invalid_value(name, value, "a number"))?;
        let differing = stated.filter(|(_, stated)| stated.to_bits() != eps.to_bits());
        if let Some((other, stated)) = differing {
            let found = eps.to_string();
            let stated = stated.to_string();
            let problem = ConfigProblem::Contradicts { found, other, stated };
            return Err(Error::invalid_config(name, problem));
        }
        stated = Some((name, eps));
    }
    #[expect(clippy::cast_possible_truncation, reason = "norms compute in fp32")]
    Ok(stated.map(|(_, eps)| eps as f32))
}

impl DecoderConfig {
    /// The decoder of `spec`, with the rest of its fields from `config`.
    pub(super) fn new(spec: &ModelSpec, config: &Value) -> Result<Self> {
        let layers = spec.layers.clone().ok_or_else(|| {
            let assumption = spec.assumptions.first().cloned().unwrap_or_default();
            Error::invalid_config("num_hidden_layers", ConfigProblem::UnknownLayers { assumption })
        })?;
        let rope = RopeConfig::deserialize(config).map_err(Error::config_json)?;
        let sizes = Sizes {
            hidden_size: size(spec.hidden_size),
            num_hidden_layers: layers.len(),
            vocab_size: size(spec.vocab_size),
            tie_word_embeddings: spec.tied_head,
            norm_eps: norm_eps(config)?,
        };
        Ok(Self { sizes, rope, layers })
    }

    /// Tokens for which there are learned positions.
    pub(super) fn positions(&self) -> Result<usize> {
        let stated = self.rope.max_position_embeddings;
        stated
            .map(|tokens| tokens as usize)
            .ok_or_else(|| Error::missing_key("max_position_embeddings (n_positions)"))
    }

    /// The sizes of layer `layer`.
    pub(super) fn layer(&self, layer: usize) -> Result<&LayerSpec> {
        self.layers.get(layer).ok_or_else(|| self.lacks(layer, "sizes"))
    }

    /// The token mixer of layer `layer`, in models with one mixer per layer.
    pub(super) fn mixer(&self, layer: usize) -> Result<Mixer> {
        self.layer(layer)?.mixers.first().copied().ok_or_else(|| self.lacks(layer, "mixer"))
    }

    /// The heads of layer `layer`, which attends to the text.
    pub(super) fn heads(&self, layer: usize) -> Result<HeadShape> {
        let shape = self.layer(layer)?.attention();
        let shape = shape.ok_or_else(|| self.lacks(layer, "attention"))?;
        Ok(HeadShape {
            query_heads: size(shape.query_heads),
            kv_heads: size(shape.kv_heads),
            head_dim: size(shape.key_dim),
            window: shape.window.map(size),
        })
    }

    /// Elements of a head, in families whose attention layers share one size.
    pub(super) fn head_dim(&self) -> Result<usize> {
        let shape = self.layers.iter().find_map(LayerSpec::attention);
        shape.map(|shape| size(shape.key_dim)).ok_or_else(|| self.lacks(0, "attention"))
    }

    /// Elements between the matrices of the dense MLP of layer `layer`.
    pub(super) fn inner(&self, layer: usize) -> Result<usize> {
        let shape = self.layer(layer)?.dense();
        shape.map(|shape| size(shape.width)).ok_or_else(|| self.lacks(layer, "dense MLP"))
    }

    /// The experts of layer `layer`, if it has any.
    pub(super) fn experts(&self, layer: usize) -> Result<Option<Mixture>> {
        let Some(shape) = self.layer(layer)?.experts() else { return Ok(None) };
        Mixture::new(shape).map(Some)
    }

    /// The experts of layer `layer`, in models where every layer has some.
    pub(super) fn mixture(&self, layer: usize) -> Result<Mixture> {
        self.experts(layer)?.ok_or_else(|| self.lacks(layer, "experts"))
    }

    /// The error of layer `layer` without `part`.
    pub(super) fn lacks(&self, layer: usize, part: &'static str) -> Error {
        let layers = self.layers.len();
        Error::invalid_config("layer_types", ConfigProblem::LayerLacks { layer, layers, part })
    }
}

impl Sizes {
    /// The rule of the decoder's norms; the configuration must state their epsilon.
    pub(super) fn norm(&self, kind: NormKind) -> Result<NormRule> {
        let eps = self
            .norm_eps
            .ok_or_else(|| Error::missing_key("rms_norm_eps (norm_epsilon, layer_norm_eps)"))?;
        Ok(NormRule { kind, eps })
    }

    /// The rule of the decoder's norms, with the epsilon of the family's class if none is stated.
    pub(super) fn norm_or(&self, kind: NormKind, eps: f32) -> NormRule {
        NormRule { kind, eps: self.norm_eps.unwrap_or(eps) }
    }
}

/// The heads of a layer with grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HeadShape {
    pub(super) query_heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Sliding window, in tokens.
    pub(super) window: Option<usize>,
}

impl HeadShape {
    /// Width of the query projection.
    pub(super) fn query_size(&self) -> usize {
        self.query_heads * self.head_dim
    }

    /// Width of the key and of the value projection.
    pub(super) fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Causal attention over these heads, scores scaled by `1/√head_dim`.
    pub(super) fn attention(&self) -> Result<AttentionSpec> {
        let spec = AttentionSpec::causal(self.query_heads, self.kv_heads, self.head_dim);
        Ok(spec.with_window(self.window)?)
    }
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mixture {
    /// Routed experts.
    pub(super) experts: usize,
    /// Routed experts that a token passes.
    pub(super) active: usize,
    /// Elements between the matrices of one expert.
    pub(super) inner: usize,
    /// Elements between the matrices of all shared experts together; 0 where there are none.
    pub(super) shared_inner: usize,
}

impl Mixture {
    fn new(shape: &ExpertsShape) -> Result<Self> {
        let active = shape.active.ok_or_else(|| Error::missing_key("num_experts_per_tok"))?;
        Ok(Self {
            experts: size(shape.count),
            active: size(active),
            inner: size(shape.width),
            shared_inner: size(shape.shared_width),
        })
    }
}

/// Refuses a size of 0, or one that is larger than any model's.
pub(super) fn positive(sizes: &[(&'static str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((name, size)) => Err(Error::invalid_value(*name, size, format!("1 to {MAX_SIZE}"))),
        None => Ok(()),
    }
}

/// The activation of this name in `config.json`.
pub(super) fn activation(name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(Error::unsupported_value(
            "hidden_act",
            format!("\"{other}\""),
            "silu, gelu, gelu_new, gelu_pytorch_tanh",
        )),
    }
}
