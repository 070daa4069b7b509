//! Layout of a checkpoint: shards, safetensors headers, the index file.

use super::random::Normal;
use super::{Dtype, Options, Weights, gpt_oss};
use crate::{Result, TestingError};
use mlxcel_estimator::TensorSpec;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A tensor of the model and the stored tensors that carry it.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) rows: u64,
    pub(super) columns: usize,
    pub(super) normal: Normal,
    /// Storage of its rows.
    pub(super) coding: Coding,
    /// The weight, or its codes, scales and (in the affine format) biases.
    pub(super) parts: Vec<StoredTensor>,
}

/// Storage of the rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coding {
    /// Floats.
    Floats,
    /// Integers with a scale and a bias per group.
    Affine(Affine),
    /// 4-bit floats with a scale per group.
    Mxfp4,
}

/// MLX's affine format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine {
    pub(super) bits: u8,
    pub(super) group_size: u16,
}

/// A tensor of a safetensors file.
#[derive(Debug)]
pub(super) struct StoredTensor {
    pub(super) name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    element_bytes: u64,
    pub(super) row_bytes: u64,
    bytes: u64,
    /// Offset in the file; 0 until the shard is laid out.
    pub(super) offset: u64,
}

/// One safetensors file.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) file_name: String,
    pub(super) header: Vec<u8>,
    pub(super) file_bytes: u64,
    pub(super) tensors: Vec<Tensor>,
}

/// Distributes the tensors of `inventory` over shards, in order.
pub(super) fn shards(inventory: &[TensorSpec], options: &Options) -> Result<Vec<Shard>> {
    let mut parts: Vec<Vec<Tensor>> = vec![Vec::new()];
    let mut filled = 0u64;
    let stacked: Vec<TensorSpec> =
        inventory.iter().map(|spec| stacked(spec, options.weights)).collect();
    for spec in &stacked {
        for name in spec.names() {
            let tensor = Tensor::new(name, spec, options.weights)?;
            let bytes = tensor.parts.iter().map(|part| part.bytes).sum::<u64>();
            if filled > 0 && filled.saturating_add(bytes) > options.shard_bytes {
                parts.push(Vec::new());
                filled = 0;
            }
            filled = filled.saturating_add(bytes);
            parts.last_mut().expect("there is a first part").push(tensor);
        }
    }
    let count = parts.len();
    parts.into_iter().enumerate().map(|(at, tensors)| Shard::new(at + 1, count, tensors)).collect()
}

/// Stacks the matrices of all experts into one tensor, if they are quantised: that is how mlx-lm stores
/// them, under the name `switch_mlp`.
fn stacked(spec: &TensorSpec, weights: Weights) -> TensorSpec {
    let mut spec = spec.clone();
    let Some((layer, matrix)) = spec.name.split_once(".experts.{e}.") else { return spec };
    if !matches!(Coding::of(&spec, weights), Coding::Affine(_)) {
        return spec;
    }
    let matrix = match matrix {
        "w1.weight" => "gate_proj.weight",
        "w2.weight" => "down_proj.weight",
        "w3.weight" => "up_proj.weight",
        other => other,
    };
    spec.name = format!("{layer}.switch_mlp.{matrix}");
    spec.shape.insert(0, spec.count);
    spec.count = 1;
    spec
}

/// Contents of `model.safetensors.index.json`.
pub(super) fn index(shards: &[Shard]) -> Value {
    let mut total = 0u64;
    let mut map = Map::new();
    for shard in shards {
        for part in shard.tensors.iter().flat_map(|tensor| &tensor.parts) {
            total += part.bytes;
            map.insert(part.name.clone(), json!(shard.file_name));
        }
    }
    json!({ "metadata": { "total_size": total }, "weight_map": map })
}

impl Tensor {
    fn new(name: String, spec: &TensorSpec, weights: Weights) -> Result<Self> {
        let normal = Normal::of_tensor(spec.role, &spec.shape);
        let shape = &spec.shape;
        let columns = shape.last().copied().unwrap_or(1);
        let rows = elements(&name, &shape[..shape.len().saturating_sub(1)])?;
        let coding = Coding::of(spec, weights);
        let dtype = weights.dtype();
        let parts = match coding {
            Coding::Floats => vec![StoredTensor::floats(name.clone(), dtype, shape, columns)?],
            Coding::Mxfp4 => gpt_oss::mxfp4_parts(&name, shape, columns)?,
            Coding::Affine(Affine { bits, group_size }) => {
                let base = name.strip_suffix(".weight").unwrap_or(&name);
                let groups = columns / u64::from(group_size);
                let words = columns * u64::from(bits) / 32;
                vec![
                    StoredTensor::new(name.clone(), "U32", 4, shape, words)?,
                    StoredTensor::floats(format!("{base}.scales"), dtype, shape, groups)?,
                    StoredTensor::floats(format!("{base}.biases"), dtype, shape, groups)?,
                ]
            }
        };
        let columns = usize::try_from(columns).map_err(|_| TestingError::too_large(&name))?;
        Ok(Self { name, rows, columns, normal, coding, parts })
    }
}

impl Coding {
    /// Storage that mlx-lm chooses for a tensor.
    pub(super) fn of(spec: &TensorSpec, weights: Weights) -> Self {
        if gpt_oss::is_mxfp4(&spec.name) {
            return Self::Mxfp4;
        }
        let Weights::Affine { bits, group_size, .. } = weights else { return Self::Floats };
        let columns = spec.shape.last().copied().unwrap_or(1);
        if columns.is_multiple_of(u64::from(group_size)) && spec.is_quantisable() {
            return Self::Affine(Affine { bits, group_size });
        }
        Self::Floats
    }
}

impl StoredTensor {
    fn floats(name: String, dtype: Dtype, shape: &[u64], columns: u64) -> Result<Self> {
        let (label, bytes) = match dtype {
            Dtype::Bf16 => ("BF16", 2),
            Dtype::F16 => ("F16", 2),
            Dtype::F32 => ("F32", 4),
        };
        Self::new(name, label, bytes, shape, columns)
    }

    /// `shape` with its last dimension replaced by `columns`.
    pub(super) fn new(
        name: String,
        dtype: &'static str,
        element_bytes: u64,
        shape: &[u64],
        columns: u64,
    ) -> Result<Self> {
        let mut shape = shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        let bytes = elements(&name, &shape)?
            .checked_mul(element_bytes)
            .ok_or_else(|| TestingError::too_large(&name))?;
        let row_bytes = columns * element_bytes;
        Ok(Self { name, dtype, shape, element_bytes, row_bytes, bytes, offset: 0 })
    }

    /// Sets the size of a row, where it spans several dimensions of the shape.
    pub(super) fn with_row_bytes(self, row_bytes: u64) -> Self {
        Self { row_bytes, ..self }
    }

    /// Entry of the header for a tensor from `self.offset` to `end`.
    fn entry(&self, end: u64) -> String {
        let name = json!(self.name);
        let shape = json!(self.shape);
        let Self { dtype, offset, .. } = self;
        format!(r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{offset},{end}]}}"#)
    }
}

impl Shard {
    /// Lays out `tensors` as file `number` of `count`: wide elements first, then by name, so
    /// that every tensor is aligned to its elements.
    fn new(number: usize, count: usize, mut tensors: Vec<Tensor>) -> Result<Self> {
        let mut parts: Vec<&mut StoredTensor> =
            tensors.iter_mut().flat_map(|tensor| &mut tensor.parts).collect();
        parts.sort_by(|a, b| (b.element_bytes, &a.name).cmp(&(a.element_bytes, &b.name)));
        let mut end = 0u64;
        let mut names = BTreeSet::new();
        // Written by hand: the order of a JSON map depends on how serde_json was built.
        let mut json = String::from(r#"{"__metadata__":{"format":"mlx"}"#);
        for part in &mut parts {
            if !names.insert(part.name.clone()) {
                return Err(TestingError::DuplicateTensor { name: part.name.clone() });
            }
            part.offset = end;
            end =
                end.checked_add(part.bytes).ok_or_else(|| TestingError::too_large("the shard"))?;
            json.push_str(&part.entry(end));
        }
        json.push('}');
        let padded = json.len().next_multiple_of(8);
        let mut header = (padded as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        header.resize(8 + padded, b' ');
        let header_bytes = header.len() as u64;
        for part in parts {
            part.offset += header_bytes;
        }
        let file_name = match count {
            1 => "model.safetensors".into(),
            _ => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        Ok(Self { file_name, header, file_bytes: header_bytes + end, tensors })
    }
}

fn elements(name: &str, shape: &[u64]) -> Result<u64> {
    let product = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    product.ok_or_else(|| TestingError::too_large(name))
}
