//! Plan of a conversion: the action for each tensor, decided from headers and `config.json` alone.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use mlxcel_core::FloatType;
use mlxcel_core::quantize::Quantizer;
use mlxcel_estimator::headers::{Checkpoint, TensorInfo};
use mlxcel_estimator::{Dtype, ModelSpec, TensorPart, TensorRole, TensorSpec};
use serde_json::{Map, Value, json};

use super::{ConvertError, ConvertOptions, MixedRecipe, WeightFormat};
use crate::error::TensorProblem;
use crate::{Error, Result};

/// Contents of the new checkpoint.
pub(super) struct ConversionPlan {
    /// Tensors, in the order of the architecture's inventory.
    pub(super) tensors: Vec<PlannedTensor>,
    /// New `config.json`.
    pub(super) config: Value,
    /// Number of the model's parameters.
    pub(super) parameters: u64,
    /// Tensors of the source that the model does not use.
    pub(super) dropped: Vec<String>,
}

/// A tensor of the new checkpoint and its sources. A vector counts as one row.
pub(super) struct PlannedTensor {
    pub(super) name: String,
    /// Source tensors to stack: one, or one per expert.
    pub(super) sources: Vec<SourceRange>,
    pub(super) shape: Vec<u64>,
    pub(super) dtype: Dtype,
    pub(super) action: Action,
}

/// Location of a tensor in the source checkpoint.
pub(super) struct SourceRange {
    /// Index of the file in the checkpoint.
    pub(super) file: usize,
    /// Byte range in the file.
    pub(super) bytes: Range<u64>,
}

/// Conversion of one tensor.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Copy the bytes.
    Copy,
    /// Convert between float types.
    Cast { from: FloatType, to: FloatType },
    /// Quantise values of type `from`; scales and biases have the type `to`.
    Quantize { from: FloatType, quantizer: Quantizer, to: FloatType },
}

impl PlannedTensor {
    /// Elements per row: the last dimension.
    pub(super) fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).product()
    }

    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.action, Action::Quantize { .. })
    }
}

impl ConversionPlan {
    /// Plans the conversion of every tensor of the architecture `spec`.
    pub(super) fn new(
        source: &Path,
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        config: &Value,
        options: &ConvertOptions,
    ) -> Result<Self> {
        let inventory = spec.tensors.as_deref().ok_or_else(|| ConvertError::UnknownTensors {
            model_type: config["model_type"].as_str().unwrap_or_default().to_owned(),
        })?;
        let rules = Rules::new(inventory, spec, config, options)?;
        let mut tensors = Vec::new();
        let mut used = BTreeSet::new();
        for entry in inventory {
            tensors.push(rules.tensor(source, checkpoint, entry)?);
            used.extend(entry.names());
        }
        let nothing_quantized = !tensors.iter().any(PlannedTensor::is_quantized);
        if let WeightFormat::Affine { group_size, .. } = options.format
            && nothing_quantized
        {
            return Err(ConvertError::NothingToQuantize { group_size }.into());
        }
        let dropped = checkpoint.iter().filter(|(name, _)| !used.contains(*name));
        Ok(Self {
            config: rules.config(config, &tensors),
            dropped: dropped.map(|(name, _)| name.to_owned()).collect(),
            parameters: spec.parameters()?.unwrap_or(0),
            tensors,
        })
    }
}

/// Conversion options, applied to one model.
struct Rules {
    format: WeightFormat,
    dtype: Option<FloatType>,
    layers: usize,
    experts: Option<&'static ExpertNames>,
}

impl Rules {
    fn new(
        inventory: &[TensorSpec],
        spec: &ModelSpec,
        config: &Value,
        options: &ConvertOptions,
    ) -> Result<Self> {
        if let WeightFormat::Affine { bits, group_size, mixed } = options.format {
            Quantizer::new(bits, group_size, FloatType::F32).map_err(mlxcel_core::Error::from)?;
            let has_down_proj = inventory.iter().any(|tensor| tensor.name.contains("down_proj"));
            if let Some(recipe) = mixed.filter(|_| !has_down_proj) {
                return Err(ConvertError::RecipeNotApplicable { recipe: recipe.name() }.into());
            }
        }
        let experts = ExpertNames::of(config);
        if experts.is_none() {
            check_supported(inventory, config, options.format)?;
        }
        let stated = config["torch_dtype"].as_str().and_then(float_named);
        Ok(Self {
            format: options.format,
            dtype: options.dtype.or(stated),
            layers: spec.layers.as_ref().map_or(0, Vec::len),
            experts,
        })
    }

    fn tensor(
        &self,
        source: &Path,
        checkpoint: &Checkpoint,
        spec: &TensorSpec,
    ) -> Result<PlannedTensor> {
        let mut sources = Vec::new();
        let mut dtype = None;
        for name in spec.names() {
            let (Some((_, info)), Some(file)) = (checkpoint.get(&name), checkpoint.file_of(&name))
            else {
                let dir = source.to_owned();
                return Err(Error::tensor(&name, TensorProblem::Missing { dir }));
            };
            check_shape(&name, info, spec)?;
            if *dtype.get_or_insert(info.dtype) != info.dtype {
                return Err(ConvertError::MixedTypes { name }.into());
            }
            sources.push(SourceRange { file, bytes: info.file_range.clone() });
        }
        let dtype = dtype.ok_or_else(|| ConvertError::NoExperts { name: spec.name.clone() })?;
        let mut name = spec.name.clone();
        let mut shape = spec.shape.clone();
        if let (2.., Some(experts)) = (spec.count, self.experts) {
            name = experts.stacked(&name);
            shape.insert(0, spec.count);
        }
        Ok(PlannedTensor { action: self.action(&name, dtype, spec)?, name, sources, shape, dtype })
    }

    fn action(&self, name: &str, dtype: Dtype, spec: &TensorSpec) -> Result<Action> {
        let Some(from) = float(dtype) else {
            if is_integer(dtype) {
                return Ok(Action::Copy);
            }
            let found = dtype.name().to_owned();
            let problem = TensorProblem::Dtype { found, expected: "F32, F16 or BF16" };
            return Err(Error::tensor(name, problem));
        };
        let to = self.dtype.unwrap_or(from);
        let as_float = if from == to { Action::Copy } else { Action::Cast { from, to } };
        let WeightFormat::Affine { bits, group_size, mixed } = self.format else {
            return Ok(as_float);
        };
        let whole_groups = spec.shape.last().is_some_and(|n| n % u64::from(group_size) == 0);
        if !whole_groups || !is_quantizable(spec) {
            return Ok(as_float);
        }
        let (bits, group_size) = match (mixed, self.router(module(name))) {
            (Some(recipe), _) => (recipe.bits(module(name), self.layers), group_size),
            (None, Some(router)) => router,
            (None, None) => (bits, group_size),
        };
        let quantizer = Quantizer::new(bits, group_size, to).map_err(mlxcel_core::Error::from)?;
        Ok(Action::Quantize { from, quantizer, to })
    }

    /// Bits and group size of `module`, if it is a router with its own.
    fn router(&self, module: &str) -> Option<(u8, u16)> {
        self.experts?.router.filter(|_| module.ends_with(".mlp.gate"))
    }

    /// `config.json` of the new checkpoint, with sorted keys like mlx-lm's.
    fn config(&self, old: &Value, tensors: &[PlannedTensor]) -> Value {
        let mut fields: Map<String, Value> = old.as_object().cloned().unwrap_or_default();
        fields.remove("_name_or_path");
        if let Some(dtype) = self.dtype {
            let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            fields.insert(key.to_owned(), json!(float_name(dtype)));
            if fields.contains_key("torch_dtype") {
                fields.insert("torch_dtype".to_owned(), json!(float_name(dtype)));
            }
        }
        if let WeightFormat::Affine { bits, group_size, mixed } = self.format {
            let mut block = json!({ "group_size": group_size, "bits": bits, "mode": "affine" });
            self.add_modules(&mut block, mixed, tensors);
            fields.insert("quantization".to_owned(), block.clone());
            fields.insert("quantization_config".to_owned(), block);
        }
        fields.sort_keys();
        Value::Object(fields)
    }

    /// Adds entries for single modules to the `quantization` block: with a recipe for each module,
    /// otherwise for each router that differs.
    fn add_modules(
        &self,
        block: &mut Value,
        mixed: Option<MixedRecipe>,
        tensors: &[PlannedTensor],
    ) {
        for tensor in tensors {
            let Action::Quantize { quantizer, .. } = tensor.action else { continue };
            let module = module(&tensor.name);
            let mut entry =
                json!({ "group_size": quantizer.group_size(), "bits": quantizer.bits() });
            if mixed.is_some() {
                entry["mode"] = "affine".into();
            } else if self.router(module).is_none() {
                continue;
            }
            block[module] = entry;
        }
    }
}

/// Rejects tensors that cannot be converted in a family without [`ExpertNames`].
fn check_supported(inventory: &[TensorSpec], config: &Value, format: WeightFormat) -> Result<()> {
    let model_type = config["model_type"].as_str().unwrap_or_default();
    for entry in inventory {
        if let Some(kind) = unsupported_kind(entry, model_type, format) {
            let model_type = model_type.to_owned();
            let name = entry.name.clone();
            return Err(ConvertError::UnsupportedTensor { model_type, name, kind }.into());
        }
    }
    Ok(())
}

/// Description of a tensor that cannot be converted; `None` for all others.
fn unsupported_kind(
    entry: &TensorSpec,
    model_type: &str,
    format: WeightFormat,
) -> Option<&'static str> {
    if entry.count != 1 {
        return Some("of experts, which are converted for mixtral, olmoe and qwen3_moe only");
    }
    if entry.shape.len() > 2 {
        return Some(match entry.role {
            TensorRole::Linear => "a stack of experts, which cannot be split",
            _ => "a convolution, which mlx-lm stores in another order",
        });
    }
    let transposed = model_type == "gpt2" && entry.name.contains(".c_") && is_quantizable(entry);
    let quantized = matches!(format, WeightFormat::Affine { .. });
    (quantized && transposed).then_some("stored transposed, so that its groups would be columns")
}

/// Names of a family's expert tensors after conversion, which stacks each matrix of all experts under
/// the name that mlx-lm uses.
struct ExpertNames {
    model_type: &'static str,
    /// Published name and mlx-lm's name of each expert matrix.
    matrices: [(&'static str, &'static str); 3],
    /// Bits and group size of the router, if they differ from the rest.
    router: Option<(u8, u16)>,
}

const GATED: [(&str, &str); 3] =
    [("gate_proj", "gate_proj"), ("up_proj", "up_proj"), ("down_proj", "down_proj")];
const NUMBERED: [(&str, &str); 3] = [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")];

const EXPERTS: [ExpertNames; 3] = [
    ExpertNames { model_type: "mixtral", matrices: NUMBERED, router: None },
    ExpertNames { model_type: "olmoe", matrices: GATED, router: None },
    ExpertNames { model_type: "qwen3_moe", matrices: GATED, router: Some((8, 64)) },
];

impl ExpertNames {
    fn of(config: &Value) -> Option<&'static Self> {
        let model_type = config["model_type"].as_str()?;
        EXPERTS.iter().find(|experts| experts.model_type == model_type)
    }

    /// Maps `mlp.experts.{e}.up_proj.weight` to `mlp.switch_mlp.up_proj.weight`.
    fn stacked(&self, name: &str) -> String {
        let Some((block, matrix)) = name.split_once(".experts.{e}.") else {
            return name.to_owned();
        };
        let known = self.matrices.iter().find_map(|(published, new)| {
            let rest = matrix.strip_prefix(published)?.strip_prefix('.')?;
            Some(format!("{block}.switch_mlp.{new}.{rest}"))
        });
        known.unwrap_or_else(|| name.to_owned())
    }
}

fn check_shape(name: &str, info: &TensorInfo, spec: &TensorSpec) -> Result<()> {
    if info.shape == spec.shape {
        return Ok(());
    }
    let found = saturate(&info.shape);
    let expected = saturate(&spec.shape);
    Err(Error::tensor(name, TensorProblem::Shape { found, expected }))
}

/// Dimensions as `usize`, for an error message.
fn saturate(shape: &[u64]) -> Vec<usize> {
    shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX)).collect()
}

/// Returns `true` for the tensors that mlx-lm's `to_quantized` applies to: linear layers and
/// embeddings of the language model.
fn is_quantizable(spec: &TensorSpec) -> bool {
    let role = matches!(spec.role, TensorRole::Embedding | TensorRole::Head | TensorRole::Linear);
    role && spec.part == TensorPart::Text && spec.shape.len() == 2 && spec.name.ends_with(".weight")
}

/// Name of the module that owns the weight `name`.
pub(super) fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn float(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::Bf16),
        _ => None,
    }
}

fn is_integer(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::Bool
            | Dtype::U8
            | Dtype::I8
            | Dtype::I16
            | Dtype::U16
            | Dtype::I32
            | Dtype::U32
            | Dtype::I64
            | Dtype::U64
    )
}

const FLOATS: [(FloatType, &str); 3] =
    [(FloatType::F16, "float16"), (FloatType::Bf16, "bfloat16"), (FloatType::F32, "float32")];

fn float_named(text: &str) -> Option<FloatType> {
    FLOATS.iter().find(|(_, name)| *name == text).map(|(float, _)| *float)
}

fn float_name(float: FloatType) -> &'static str {
    FLOATS.iter().find(|(known, _)| *known == float).map_or("", |(_, name)| name)
}
