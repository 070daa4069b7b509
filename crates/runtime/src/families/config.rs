//! What several families read from `config.json`: sizes, heads, rotary embeddings, windows per
//! layer. [`DecoderConfig`] is all of it.

use mlxcel_core::{Activation, AttentionSpec, Rope, RopeScaling};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::loading::{NormKind, NormRule};
use crate::{Error, Result};

/// Largest value that any size in a configuration may have; products of two stay within `usize`.
pub(super) const MAX_SIZE: usize = 1 << 28;

/// What the configuration of every decoder with attention states.
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
    #[serde(alias = "norm_epsilon", alias = "layer_norm_eps", alias = "layer_norm_epsilon")]
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

    /// The same with the epsilon that the family's class takes where none is stated.
    pub(super) fn norm_or(&self, kind: NormKind, eps: f32) -> NormRule {
        NormRule { kind, eps: self.rms_norm_eps.unwrap_or(eps) }
    }
}

/// The head counts of grouped-query attention as a configuration states them.
#[derive(Debug, Deserialize)]
struct Heads {
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
    fn shape(&self, hidden_size: usize) -> Result<HeadShape> {
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

/// `dims · factor`, truncated as the reference implementations do.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "head dimensions are small"
)]
fn partial(dims: usize, factor: f64) -> usize {
    (dims as f64 * factor) as usize
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

/// What a family's class takes where the configuration does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeDefaults {
    pub(super) theta: f64,
    /// Whether neighbours are paired, rather than halves.
    pub(super) traditional: bool,
    /// Share of a head that is rotated.
    pub(super) partial: f64,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, traditional: false, partial: 1.0 }
    }
}

/// The rotary keys of a configuration, in transformers 4 (`rope_theta`, `rope_scaling`) or 5
/// (`rope_parameters`) spelling.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RopeConfig {
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    max_position_embeddings: Option<u32>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_traditional: Option<bool>,
}

impl RopeConfig {
    /// What is stated for layers of the type `kind` alone (transformers 5).
    pub(super) fn of_layer_type(&self, kind: &str) -> Option<Self> {
        let parameters = self.rope_parameters.as_ref()?.get(kind)?.as_object()?.clone();
        Some(Self { rope_parameters: Some(parameters), ..Self::default() })
    }

    /// The rotary embedding of heads of `head_dim` dimensions.
    pub(super) fn build(&self, head_dim: usize) -> Result<Rope> {
        self.build_or(head_dim, RopeDefaults::default())
    }

    /// The same with a family's own defaults.
    pub(super) fn build_or(&self, head_dim: usize, defaults: RopeDefaults) -> Result<Rope> {
        let nested = |key: &str| self.rope_parameters.as_ref().and_then(|p| p.get(key)?.as_f64());
        let theta = self.rope_theta.or_else(|| nested("rope_theta")).unwrap_or(defaults.theta);
        let share = self.partial_rotary_factor.or_else(|| nested("partial_rotary_factor"));
        let dims = partial(head_dim, share.unwrap_or(defaults.partial));
        let traditional = self.rope_traditional.unwrap_or(defaults.traditional);
        Ok(Rope::new(dims, theta, traditional, &self.scaling()?)?)
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let Some(map) = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref()) else {
            return Ok(RopeScaling::None);
        };
        let kind = map
            .get("type")
            .or_else(|| map.get("rope_type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let keys = ScalingKeys { map, kind };
        match kind {
            "default" | "mrope" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: keys.required("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: keys.required("factor")?,
                low_freq_factor: keys.or("low_freq_factor", 1.0),
                high_freq_factor: keys.or("high_freq_factor", 4.0),
                original_context: keys.or("original_max_position_embeddings", 8192.0),
            }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor: keys.required("factor")?,
                original_context: keys.or("original_max_position_embeddings", 4096.0),
                beta_fast: keys.or("beta_fast", 32.0),
                beta_slow: keys.or("beta_slow", 1.0),
                mscale: keys.or("mscale", 1.0),
                mscale_all_dim: keys.or("mscale_all_dim", 0.0),
            }),
            "longrope" | "su" => self.longrope(&keys),
            other => Err(Error::config(format!(
                "rope scaling \"{other}\" is not supported (supported: default, linear, llama3, yarn, longrope)"
            ))),
        }
    }

    fn longrope(&self, keys: &ScalingKeys<'_>) -> Result<RopeScaling> {
        let original = keys
            .number("original_max_position_embeddings")
            .or(self.original_max_position_embeddings);
        Ok(RopeScaling::LongRope {
            long_factor: keys.list("long_factor")?,
            max_context: self.max_position_embeddings.map_or(131_072.0, f64::from),
            original_context: original.unwrap_or(4096.0),
        })
    }
}

struct ScalingKeys<'a> {
    map: &'a Map<String, Value>,
    kind: &'a str,
}

impl ScalingKeys<'_> {
    fn number(&self, key: &str) -> Option<f64> {
        self.map.get(key).and_then(Value::as_f64)
    }

    fn or(&self, key: &str, default: f64) -> f64 {
        self.number(key).unwrap_or(default)
    }

    fn required(&self, key: &str) -> Result<f64> {
        let value = self.number(key).filter(|v| *v > 0.0);
        value.ok_or_else(|| {
            Error::config(format!("rope scaling \"{}\" needs a positive \"{key}\"", self.kind))
        })
    }

    fn list(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.map.get(key).and_then(Value::as_array);
        let numbers = list.and_then(|l| l.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.ok_or_else(|| {
            Error::config(format!(
                "rope scaling \"{}\" needs a list of numbers \"{key}\"",
                self.kind
            ))
        })
    }
}

/// Which layers attend to a sliding window.
///
/// `layer_types` says it for each layer where it is given; without it Mistral slides everywhere,
/// and Qwen and SmolLM from `max_window_layers` on, but only with `use_sliding_window`.
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
        if !self.use_sliding_window.unwrap_or(false) {
            return Ok(None);
        }
        self.of(layer, layer >= self.max_window_layers.unwrap_or(0))
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
