//! Parts of `config.json` that several families read: sizes, heads, rotary embeddings, windows per
//! layer. [`DecoderConfig`] is all of them.

use mlxcel_core::{Activation, AttentionSpec};
use serde::Deserialize;

pub(super) use super::rope::{RopeConfig, RopeDefaults};
use crate::loading::{NormKind, NormRule};
use crate::{Error, Result};

/// Largest value that any size in a configuration may have; products of two stay within `usize`.
pub(super) const MAX_SIZE: usize = 1 << 28;

/// Configuration of every decoder with attention.
#[derive(Debug, Deserialize)]
pub(super) struct DecoderConfig {
    #[serde(flatten)]
    pub(super) sizes: Sizes,
    #[serde(flatten)]
    heads: Heads,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
    #[serde(flatten)]
    pub(super) windows: LayerWindows,
}

impl DecoderConfig {
    /// Tokens for which there are learned positions.
    pub(super) fn positions(&self) -> Result<usize> {
        let stated = self.rope.max_position_embeddings;
        stated
            .map(|tokens| tokens as usize)
            .ok_or_else(|| Error::config("it has no max_position_embeddings (n_positions)"))
    }

    /// The head counts, which fit together.
    pub(super) fn heads(&self) -> Result<HeadShape> {
        self.heads.shape(self.sizes.hidden_size)
    }
}

/// The sizes that most decoders state under the same names.
#[derive(Debug, Deserialize)]
pub(super) struct Sizes {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) intermediate_size: usize,
    #[serde(
        alias = "norm_epsilon",
        alias = "layer_norm_eps",
        alias = "layer_norm_epsilon",
        alias = "norm_eps"
    )]
    rms_norm_eps: Option<f32>,
    pub(super) vocab_size: usize,
    pub(super) tie_word_embeddings: Option<bool>,
}

impl Sizes {
    /// The rule of the decoder's norms; the configuration must state their epsilon.
    pub(super) fn norm(&self, kind: NormKind) -> Result<NormRule> {
        let eps = self.rms_norm_eps.ok_or_else(|| {
            Error::config("it has no rms_norm_eps (norm_epsilon, layer_norm_eps)")
        })?;
        Ok(NormRule { kind, eps })
    }

    /// The rule of the decoder's norms, with the default epsilon of the family's class.
    pub(super) fn norm_or(&self, kind: NormKind, eps: f32) -> NormRule {
        NormRule { kind, eps: self.rms_norm_eps.unwrap_or(eps) }
    }
}

/// The head counts of grouped-query attention as a configuration states them.
#[derive(Debug, Deserialize)]
pub(super) struct Heads {
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
}

/// Head counts that fit together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HeadShape {
    pub(super) query_heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Heads {
    /// Checks the counts against each other; `head_dim` defaults to `hidden_size / heads`.
    pub(super) fn shape(&self, hidden_size: usize) -> Result<HeadShape> {
        let query_heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(query_heads);
        let sizes = [
            ("num_attention_heads", query_heads),
            ("num_key_value_heads", kv_heads),
            ("hidden_size", hidden_size),
        ];
        for (name, value) in sizes {
            if value == 0 || value > MAX_SIZE {
                return Err(Error::config(format!("{name} is {value}")));
            }
        }
        if !query_heads.is_multiple_of(kv_heads) {
            return Err(Error::config(format!(
                "num_attention_heads ({query_heads}) is not a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        let head_dim = match self.head_dim {
            Some(0) => return Err(Error::config("head_dim is 0")),
            Some(dim) if dim > MAX_SIZE => return Err(Error::config(format!("head_dim is {dim}"))),
            Some(dim) => dim,
            None if hidden_size.is_multiple_of(query_heads) => hidden_size / query_heads,
            None => {
                return Err(Error::config(format!(
                    "hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({query_heads}) and there is no head_dim"
                )));
            }
        };
        Ok(HeadShape { query_heads, kv_heads, head_dim })
    }
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
    pub(super) fn attention(&self) -> AttentionSpec {
        AttentionSpec::causal(self.query_heads, self.kv_heads, self.head_dim)
    }
}

/// Refuses a size of 0, or one that is larger than any model's.
pub(super) fn positive(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((name, size)) => Err(Error::config(format!("{name} is {size}"))),
        None => Ok(()),
    }
}

/// The activation of this name in `config.json`.
pub(super) fn activation(name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::GeluErf),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(Error::config(format!(
            "activation \"{other}\" is not supported (supported: silu, gelu, gelu_new, gelu_pytorch_tanh)"
        ))),
    }
}

/// Sliding windows of layers.
///
/// `layer_types` decides for each layer where it is given; without it all layers of Mistral have a
/// window, and those of Qwen and SmolLM from `max_window_layers` on, but only with
/// `use_sliding_window`.
#[derive(Debug, Deserialize)]
pub(super) struct LayerWindows {
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl LayerWindows {
    /// The window of a family whose layers all have it, in tokens.
    pub(super) fn everywhere(&self) -> Option<usize> {
        self.sliding_window
    }

    /// The window of layer `layer`, in tokens, where `use_sliding_window` decides.
    pub(super) fn opt_in(&self, layer: usize) -> Result<Option<usize>> {
        self.opt_in_where(layer, layer >= self.max_window_layers.unwrap_or(0))
    }

    /// The window of layer `layer` where `use_sliding_window` decides; without `layer_types` it has one
    /// if `by_default`.
    pub(super) fn opt_in_where(&self, layer: usize, by_default: bool) -> Result<Option<usize>> {
        if !self.use_sliding_window.unwrap_or(false) {
            return Ok(None);
        }
        self.of(layer, by_default)
    }

    /// The window of layer `layer`; without `layer_types` it has one if `by_default`.
    pub(super) fn of(&self, layer: usize, by_default: bool) -> Result<Option<usize>> {
        let slides = match self.layer_types.as_ref().map(|types| types.get(layer)) {
            None => by_default,
            Some(Some(kind)) => match kind.as_str() {
                "sliding_attention" => true,
                "full_attention" => false,
                other => {
                    return Err(Error::config(format!(
                        "layer_types says \"{other}\" of layer {layer} (known: full_attention, sliding_attention)"
                    )));
                }
            },
            Some(None) => {
                return Err(Error::config(format!("layer_types has no entry for layer {layer}")));
            }
        };
        Ok(self.sliding_window.filter(|_| slides))
    }
}
