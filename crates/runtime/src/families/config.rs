//! What several families read from `config.json`: heads, rotary embeddings, windows per layer.

use mlxcel_core::{AttentionSpec, Rope, RopeScaling};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest value that any size in a configuration may have; products of two stay within `usize`.
pub(super) const MAX_SIZE: usize = 1 << 28;

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

/// `dims · factor`, truncated as the reference implementations do; the whole head without a factor.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "head dimensions are small"
)]
pub(super) fn partial(dims: usize, factor: Option<f64>) -> usize {
    factor.map_or(dims, |f| (dims as f64 * f) as usize)
}

/// The rotary keys of a configuration, in transformers 4 (`rope_theta`, `rope_scaling`) or 5
/// (`rope_parameters`) spelling.
#[derive(Debug, Deserialize)]
pub(super) struct RopeConfig {
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    max_position_embeddings: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    #[serde(default)]
    rope_traditional: bool,
}

impl RopeConfig {
    /// The rotary embedding over `dims` dimensions of a head.
    pub(super) fn build(&self, dims: usize) -> Result<Rope> {
        let nested =
            self.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
        let theta = self.rope_theta.or(nested).unwrap_or(10_000.0);
        Ok(Rope::new(dims, theta, self.rope_traditional, &self.scaling()?)?)
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
            max_context: self.max_position_embeddings.unwrap_or(131_072.0),
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
            Some(Some(kind)) => kind == "sliding_attention",
            Some(None) => {
                return Err(Error::config(format!("layer_types has no entry for layer {layer}")));
            }
        };
        Ok(self.sliding_window.filter(|_| slides))
    }
}
