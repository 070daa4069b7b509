//! The rotary part of `config.json`.

use mlxcel_core::{Rope, RopeScaling};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Error, Result};

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

/// Defaults of a family's class.
#[derive(Clone, Copy, Debug)]
pub(super) struct RopeDefaults {
    pub(super) theta: f64,
    /// True if neighbours are paired, rather than halves.
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
    pub(super) max_position_embeddings: Option<u32>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_traditional: Option<bool>,
}

impl RopeConfig {
    /// The parameters of layers of type `kind` (transformers 5).
    pub(super) fn of_layer_type(&self, kind: &str) -> Option<Self> {
        let parameters = self.rope_parameters.as_ref()?.get(kind)?.as_object()?.clone();
        Some(Self { rope_parameters: Some(parameters), ..Self::default() })
    }

    /// The rotary embedding of heads of `head_dim` dimensions.
    pub(super) fn build(&self, head_dim: usize) -> Result<Rope> {
        self.build_or(head_dim, RopeDefaults::default())
    }

    /// The rotary embedding of heads of `head_dim` dimensions, with a family's own defaults.
    pub(super) fn build_or(&self, head_dim: usize, defaults: RopeDefaults) -> Result<Rope> {
        let theta = self.rope_theta.or_else(|| self.parameter("rope_theta"));
        let theta = theta.unwrap_or(defaults.theta);
        let share = self.partial_rotary_factor.or_else(|| self.parameter("partial_rotary_factor"));
        let dims = partial(head_dim, share.unwrap_or(defaults.partial));
        let traditional = self.rope_traditional.unwrap_or(defaults.traditional);
        Ok(Rope::new(dims, theta, traditional, &self.scaling()?)?)
    }

    /// A number of `rope_parameters`.
    fn parameter(&self, key: &str) -> Option<f64> {
        self.rope_parameters.as_ref()?.get(key)?.as_f64()
    }

    /// Numbers of frequencies that rotate by time, height and width (M-RoPE), where they are stated.
    pub(super) fn sections(&self) -> Option<Vec<usize>> {
        let map = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref())?;
        let sections = map.get("mrope_section")?.as_array()?;
        sections.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect()
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let (block, map) = match (&self.rope_scaling, &self.rope_parameters) {
            (Some(map), _) => ("rope_scaling", map),
            (None, Some(map)) => ("rope_parameters", map),
            (None, None) => return Ok(RopeScaling::None),
        };
        let kind = map
            .get("type")
            .or_else(|| map.get("rope_type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let keys = ScalingKeys { block, map };
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
                truncate: map.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            }),
            "longrope" | "su" => self.longrope(&keys),
            other => Err(Error::unsupported_value(
                format!("{block}.type"),
                format!("\"{other}\""),
                "default, linear, llama3, yarn, longrope",
            )),
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
    /// Name of the block in the configuration.
    block: &'static str,
    map: &'a Map<String, Value>,
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
        value.ok_or_else(|| self.unusable(key, "a positive number"))
    }

    fn list(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.map.get(key).and_then(Value::as_array);
        let numbers = list.and_then(|l| l.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.ok_or_else(|| self.unusable(key, "a list of numbers"))
    }

    /// The error of a key that is missing or has another value than `expected`.
    fn unusable(&self, key: &str, expected: &'static str) -> Error {
        let name = format!("{}.{key}", self.block);
        match self.map.get(key) {
            Some(found) => Error::invalid_value(name, found, expected),
            None => Error::missing_key(name),
        }
    }
}
