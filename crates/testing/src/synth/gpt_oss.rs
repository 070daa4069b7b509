//! The experts of gpt-oss, which no two tools store alike.
//!
//! Its published files hold MXFP4: `gate_up_proj_blocks` and `_scales`, the rows of gate and up taking
//! turns. mlx-lm's hold `gate_proj.weight` and `up_proj.weight` apart, in MXFP4, quantised otherwise
//! or as floats.

use super::Weights;
use super::layout::{Coding, Stored};
use anyhow::Result;
use mlxcel_estimator::TensorSpec;
use serde_json::{Value, json};

/// What the name of a matrix in MXFP4 ends with here, in place of the stored suffixes.
const PUBLISHED: &str = "_mxfp4";
const CONVERTED: &str = ".mxfp4";
/// Weights that share a scale.
const GROUP: u64 = 32;

/// How the experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Experts {
    /// As published.
    Published,
    /// As mlx-lm converts what was published.
    Converted,
    /// As mlx-lm stores floats, or quantises them.
    Plain,
}

impl Experts {
    /// `None` for any other architecture. A configuration that states MXFP4 gets that, as published
    /// where the other weights are floats.
    pub(super) fn of(config: &Value, weights: Weights) -> Option<Self> {
        if config["model_type"] != "gpt_oss" {
            return None;
        }
        let mxfp4 = config["quantization_config"]["quant_method"] == "mxfp4";
        Some(match (mxfp4, weights) {
            (false, _) => Self::Plain,
            (true, Weights::Plain(_)) => Self::Published,
            (true, Weights::Affine { .. }) => Self::Converted,
        })
    }

    /// The inventory with the experts' tensors as they are stored.
    pub(super) fn convert(self, inventory: Vec<TensorSpec>) -> Vec<TensorSpec> {
        inventory.into_iter().flat_map(|spec| self.stored(spec)).collect()
    }

    fn stored(self, spec: TensorSpec) -> Vec<TensorSpec> {
        let Some((layer, tensor)) = spec.name.split_once(".mlp.experts.") else {
            return vec![spec];
        };
        let with = |name: &str, shape: &[u64]| TensorSpec {
            name: format!("{layer}.mlp.experts.{name}"),
            shape: shape.to_vec(),
            ..spec.clone()
        };
        let suffix = if self == Self::Converted { CONVERTED } else { ".weight" };
        match (self, tensor, &spec.shape[..]) {
            (Self::Published, "gate_up_proj" | "down_proj", &[experts, cols, rows]) => {
                vec![with(&format!("{tensor}{PUBLISHED}"), &[experts, rows, cols])]
            }
            (Self::Published, ..) => vec![spec],
            (_, "gate_up_proj", &[experts, cols, rows]) => ["gate_proj", "up_proj"]
                .map(|name| with(&format!("{name}{suffix}"), &[experts, rows / 2, cols]))
                .into(),
            (_, "down_proj", &[experts, cols, rows]) => {
                vec![with(&format!("down_proj{suffix}"), &[experts, rows, cols])]
            }
            (_, "gate_up_proj_bias", &[experts, rows]) => ["gate_proj.bias", "up_proj.bias"]
                .map(|name| with(name, &[experts, rows / 2]))
                .into(),
            (_, "down_proj_bias", shape) => vec![with("down_proj.bias", shape)],
            _ => vec![spec],
        }
    }

    /// Adds what `config.json` says of the storage: MXFP4 for the experts, another format for the
    /// others by name.
    pub(super) fn state(
        self,
        config: &Value,
        inventory: &[TensorSpec],
        weights: Weights,
        stored: &mut Value,
    ) {
        match self {
            Self::Plain => {}
            Self::Published => {
                stored["quantization_config"] = config["quantization_config"].clone()
            }
            Self::Converted => {
                let mut block = json!({ "group_size": GROUP, "bits": 4, "mode": "mxfp4" });
                for spec in inventory {
                    if let Coding::Affine(affine) = Coding::of(spec, weights) {
                        let module = spec.name.trim_end_matches(".weight");
                        block[module] =
                            json!({ "group_size": affine.group_size, "bits": affine.bits });
                    }
                }
                stored["quantization"] = block.clone();
                stored["quantization_config"] = block;
            }
        }
    }
}

/// Whether the tensor of this name is stored in MXFP4.
pub(super) fn is_mxfp4(name: &str) -> bool {
    name.ends_with(PUBLISHED) || name.ends_with(CONVERTED)
}

/// Codes and scales of a matrix in MXFP4.
pub(super) fn mxfp4_parts(name: &str, shape: &[u64], columns: u64) -> Result<Vec<Stored>> {
    let groups = columns / GROUP;
    if let Some(base) = name.strip_suffix(CONVERTED) {
        return Ok(vec![
            Stored::new(format!("{base}.weight"), "U32", 4, shape, columns / 8)?,
            Stored::new(format!("{base}.scales"), "U8", 1, shape, groups)?,
        ]);
    }
    let base = name.trim_end_matches(PUBLISHED);
    let mut blocks = shape.to_vec();
    if let Some(last) = blocks.last_mut() {
        *last = groups;
    }
    blocks.push(GROUP / 2);
    let codes = Stored::new(format!("{base}_blocks"), "U8", 1, &blocks, GROUP / 2)?;
    Ok(vec![
        codes.with_row_bytes(columns / 2),
        Stored::new(format!("{base}_scales"), "U8", 1, shape, groups)?,
    ])
}
