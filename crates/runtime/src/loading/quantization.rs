//! The `quantization` block of `config.json`, per-layer overrides included.

use serde_json::{Map, Value};

use crate::{Error, Result, TensorProblem};

/// Quantisation of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// MLX's integers with a scale and a bias per group.
    Affine { group_size: usize, bits: usize },
    /// 4-bit floats in groups of 32.
    Mxfp4,
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
        match block.get("quant_method").and_then(Value::as_str) {
            None | Some("mxfp4") => {}
            Some("affine") if block.contains_key("bits") => {}
            Some(method) => {
                return Err(Error::unsupported_value(
                    "quantization.quant_method",
                    format!("\"{method}\""),
                    "MLX's affine format, mxfp4",
                ));
            }
        }
        mode(block)?;
        Ok(Self { block: Some(block.clone()) })
    }

    /// The scheme of the layer at `path` (whose scales were found in the files).
    pub(super) fn scheme(&self, path: &str) -> Result<Scheme> {
        let Some(block) = &self.block else {
            return Err(Error::tensor(&format!("{path}.scales"), TensorProblem::NoQuantization));
        };
        let layer = block.get(path).and_then(Value::as_object);
        // A layer with a block of its own has MLX's default mode there, not that of the others.
        if mode(layer.unwrap_or(block))? == "mxfp4" {
            return Ok(Scheme::Mxfp4);
        }
        let [group_size, bits] = ["group_size", "bits"].map(|key| {
            let value = layer.and_then(|l| l.get(key)).or_else(|| block.get(key));
            let key = format!("quantization.{key}");
            let Some(value) = value else { return Err(Error::missing_key(key)) };
            let number = value.as_u64().and_then(|v| usize::try_from(v).ok());
            number.ok_or_else(|| {
                Error::invalid_value(key, value, format!("a whole number for {path}"))
            })
        });
        Ok(Scheme::Affine { group_size: group_size?, bits: bits? })
    }
}

/// The mode that a block states, MLX's default where it does not.
fn mode(block: &Map<String, Value>) -> Result<&str> {
    match block.get("mode").and_then(Value::as_str) {
        None => Ok("affine"),
        Some(mode @ ("affine" | "mxfp4")) => Ok(mode),
        Some(other) => Err(Error::unsupported_value(
            "quantization.mode",
            format!("\"{other}\""),
            "affine, mxfp4",
        )),
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
            Scheme::Affine { group_size: 32, bits: 6 }
        );
        assert_eq!(
            q.scheme("model.layers.1.mlp.down_proj").unwrap(),
            Scheme::Affine { group_size: 64, bits: 4 }
        );
    }

    #[test]
    fn a_layer_override_without_a_mode_is_affine() {
        let config = json!({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": {"bits": 8, "group_size": 64}}});
        let q = Quantization::from_config(&config).unwrap();
        assert_eq!(q.scheme("model.layers.0.mlp.experts.up_proj").unwrap(), Scheme::Mxfp4);
        assert_eq!(q.scheme("lm_head").unwrap(), Scheme::Affine { group_size: 64, bits: 8 });
        let other = json!({"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}});
        let error = Quantization::from_config(&other).unwrap_err().to_string();
        assert!(
            error.contains("mode is \"nvfp4\", which is not supported (supported: affine, mxfp4)"),
            "{error}"
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
