//! Experts of gpt-oss, whose storage differs between tools.
//!
//! The published files hold MXFP4: `gate_up_proj_blocks` and `_scales`, with alternating rows of gate
//! and up. Those of mlx-lm hold separate `gate_proj.weight` and `up_proj.weight`, in MXFP4, in another
//! quantised format or as floats.

use super::Weights;
use super::layout::{Coding, StoredTensor};
use crate::Result;
use mlxcel_estimator::TensorSpec;
use serde_json::{Value, json};

/// Suffixes of matrices in MXFP4 within this module, in place of the stored ones.
const PUBLISHED: &str = "_mxfp4";
const CONVERTED: &str = ".mxfp4";
/// Weights that share a scale.
const GROUP: u64 = 32;

/// Storage of the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Experts {
    /// Published storage.
    Published,
    /// Storage of mlx-lm for published MXFP4.
    Converted,
    /// Storage of mlx-lm for floats, quantised or not.
    Plain,
}

impl Experts {
    /// Storage for a configuration; `None` for other architectures. A configuration that states MXFP4
    /// gets it, in the published form if the other weights are floats.
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

    /// Replaces the tensors of experts by their stored form.
    pub(super) fn convert(self, inventory: Vec<TensorSpec>) -> Vec<TensorSpec> {
        inventory.into_iter().flat_map(|spec| self.stored(spec)).collect()
    }

    fn stored(self, spec: TensorSpec) -> Vec<TensorSpec> {
        let Some((layer, tensor)) = spec.name.split_once(".mlp.experts.") else {
            return vec![spec];
        };
        let expert = ExpertTensor { layer, spec: &spec };
        let suffix = if self == Self::Converted { CONVERTED } else { ".weight" };
        match (self, tensor, &spec.shape[..]) {
            (Self::Published, "gate_up_proj" | "down_proj", &[experts, cols, rows]) => {
                vec![expert.stored(&format!("{tensor}{PUBLISHED}"), &[experts, rows, cols])]
            }
            (_, "gate_up_proj", &[experts, cols, rows]) if self != Self::Published => {
                ["gate_proj", "up_proj"]
                    .map(|name| {
                        expert.stored(&format!("{name}{suffix}"), &[experts, rows / 2, cols])
                    })
                    .into()
            }
            (_, "down_proj", &[experts, cols, rows]) if self != Self::Published => {
                vec![expert.stored(&format!("down_proj{suffix}"), &[experts, rows, cols])]
            }
            (_, "gate_up_proj_bias", &[experts, rows]) if self != Self::Published => {
                ["gate_proj.bias", "up_proj.bias"]
                    .map(|name| expert.stored(name, &[experts, rows / 2]))
                    .into()
            }
            (_, "down_proj_bias", shape) if self != Self::Published => {
                vec![expert.stored("down_proj.bias", shape)]
            }
            _ => vec![spec],
        }
    }

    /// Adds the storage to `config.json`: MXFP4 for the experts, another format for other tensors by
    /// name.
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

/// A tensor of the experts of a layer.
struct ExpertTensor<'a> {
    layer: &'a str,
    spec: &'a TensorSpec,
}

impl ExpertTensor<'_> {
    /// The tensor under another name and shape.
    fn stored(&self, name: &str, shape: &[u64]) -> TensorSpec {
        TensorSpec {
            name: format!("{}.mlp.experts.{name}", self.layer),
            shape: shape.to_vec(),
            ..self.spec.clone()
        }
    }
}

/// Returns true if the tensor of this name is stored in MXFP4.
pub(super) fn is_mxfp4(name: &str) -> bool {
    name.ends_with(PUBLISHED) || name.ends_with(CONVERTED)
}

/// Stored tensors of a matrix in MXFP4: codes and scales.
pub(super) fn mxfp4_parts(name: &str, shape: &[u64], columns: u64) -> Result<Vec<StoredTensor>> {
    let groups = columns / GROUP;
    if let Some(base) = name.strip_suffix(CONVERTED) {
        return Ok(vec![
            StoredTensor::new(format!("{base}.weight"), "U32", 4, shape, columns / 8)?,
            StoredTensor::new(format!("{base}.scales"), "U8", 1, shape, groups)?,
        ]);
    }
    let base = name.trim_end_matches(PUBLISHED);
    let mut blocks = shape.to_vec();
    if let Some(last) = blocks.last_mut() {
        *last = groups;
    }
    blocks.push(GROUP / 2);
    let codes = StoredTensor::new(format!("{base}_blocks"), "U8", 1, &blocks, GROUP / 2)?;
    Ok(vec![
        codes.with_row_bytes(columns / 2),
        StoredTensor::new(format!("{base}_scales"), "U8", 1, shape, groups)?,
    ])
}
