//! The `quantization` block of `config.json`, per-layer overrides included.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// How a layer is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) group_size: usize,
    pub(super) bits: usize,
}

/// The quantisation of a checkpoint: a default and overrides by layer path.
#[derive(Debug, Default)]
pub(super) struct Quantization {
    block: Option<Map<String, Value>>,
}

impl Quantization {
    /// Reads the block; MLX writes it as `quantization`, and again as `quantization_config`.
    pub(super) fn from_config(config: &Value) -> Result<Self> {
        let block = config.get("quantization").or_else(|| config.get("quantization_config"));
        let Some(block) = block.and_then(Value::as_object) else { return Ok(Self::default()) };
        let foreign = |method: &&str| *method != "affine" || !block.contains_key("bits");
        if let Some(method) = block.get("quant_method").and_then(Value::as_str).filter(foreign) {
            return Err(Error::config(format!(
                "quantisation \"{method}\" is not supported (supported: MLX's affine format)"
            )));
        }
        if let Some(mode) =
            block.get("mode").and_then(Value::as_str).filter(|mode| *mode != "affine")
        {
            return Err(Error::config(format!(
                "quantisation mode \"{mode}\" is not supported (supported: affine)"
            )));
        }
        Ok(Self { block: Some(block.clone()) })
    }

    /// The scheme of the layer at `path` (whose scales were found in the files).
    pub(super) fn scheme(&self, path: &str) -> Result<Scheme> {
        let Some(block) = &self.block else {
            return Err(Error::config(format!(
                "it has no \"quantization\" block, but {path} has scales"
            )));
        };
        let layer = block.get(path).and_then(Value::as_object);
        let number = |key: &str| {
            let value = layer.and_then(|l| l.get(key)).or_else(|| block.get(key));
            let value = value.and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
            value.ok_or_else(|| {
                Error::config(format!("quantization.{key} of {path} is not a whole number"))
            })
        };
        Ok(Scheme { group_size: number("group_size")?, bits: number("bits")? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn overrides_beat_the_default() {
        let config = json!({"quantization": {"group_size": 64, "bits": 4, "model.layers.0.mlp.down_proj": {"bits": 6, "group_size": 32}}});
        let q = Quantization::from_config(&config).unwrap();
        assert_eq!(
            q.scheme("model.layers.0.mlp.down_proj").unwrap(),
            Scheme { group_size: 32, bits: 6 }
        );
        assert_eq!(
            q.scheme("model.layers.1.mlp.down_proj").unwrap(),
            Scheme { group_size: 64, bits: 4 }
        );
    }

    #[test]
    fn foreign_formats_are_named() {
        let config =
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}});
        let error = Quantization::from_config(&config).unwrap_err().to_string();
        assert!(error.contains("gptq"), "{error}");
    }

    #[test]
    fn a_fractional_bit_width_is_an_error() {
        let q =
            Quantization::from_config(&json!({"quantization": {"group_size": 64, "bits": 4.5}}))
                .unwrap();
        assert!(q.scheme("lm_head").is_err());
    }
}
