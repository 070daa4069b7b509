//! Which tensor becomes what, decided from headers and `config.json` alone.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use mlxcel_core::FloatType;
use mlxcel_core::quantize::Quantizer;
use mlxcel_estimator::headers::{Checkpoint, TensorInfo};
use mlxcel_estimator::{Dtype, ModelSpec, TensorPart, TensorRole, TensorSpec};
use serde_json::{Map, Value, json};

use super::{ConvertError, Mixed, Options, Target};
use crate::{Error, Result};

/// Everything that is to be written.
pub(super) struct Plan {
    /// In the order of the model's inventory.
    pub(super) tensors: Vec<Planned>,
    /// The new `config.json`.
    pub(super) config: Value,
    /// Parameters of the model.
    pub(super) parameters: u64,
    /// Tensors of the source that the model does not use.
    pub(super) dropped: Vec<String>,
}

/// One new tensor and where it comes from. A vector is one row.
pub(super) struct Planned {
    pub(super) name: String,
    /// What is stacked: one tensor, or one of every expert.
    pub(super) sources: Vec<Stored>,
    pub(super) shape: Vec<u64>,
    pub(super) dtype: Dtype,
    pub(super) action: Action,
}

/// Where a tensor of the source lies.
pub(super) struct Stored {
    /// Position of the file in the checkpoint.
    pub(super) file: usize,
    /// Bytes in that file.
    pub(super) range: Range<u64>,
}

/// What becomes of a tensor.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Its bytes stay.
    Copy,
    /// From one float type to another.
    Cast(FloatType, FloatType),
    /// Codes, scales and biases; floats are read as the first type.
    Quantize(FloatType, Quantizer, FloatType),
}

impl Planned {
    /// Elements of a row: the last dimension.
    pub(super) fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> u64 {
        self.shape.iter().rev().skip(1).product()
    }

    pub(super) fn is_quantized(&self) -> bool {
        matches!(self.action, Action::Quantize(..))
    }
}

impl Plan {
    /// Looks every tensor of the architecture up in `checkpoint`.
    pub(super) fn new(
        source: &Path,
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        config: &Value,
        options: &Options,
    ) -> Result<Self> {
        let unknown = || Error::config("the tensors of this architecture are not known");
        let inventory = spec.tensors.as_deref().ok_or_else(unknown)?;
        let rules = Rules::new(inventory, spec, config, options)?;
        let (mut tensors, mut used) = (Vec::new(), BTreeSet::new());
        for entry in inventory {
            tensors.push(rules.tensor(source, checkpoint, entry)?);
            used.extend(entry.names());
        }
        if let (Target::Affine { group_size, .. }, false) =
            (options.target, tensors.iter().any(Planned::is_quantized))
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

/// The options, applied to one model.
struct Rules {
    target: Target,
    dtype: Option<FloatType>,
    layers: usize,
    experts: Option<&'static Experts>,
}

impl Rules {
    fn new(
        inventory: &[TensorSpec],
        spec: &ModelSpec,
        config: &Value,
        options: &Options,
    ) -> Result<Self> {
        if let Target::Affine { bits, group_size, mixed } = options.target {
            Quantizer::new(bits, group_size, FloatType::F32).map_err(mlxcel_core::Error::from)?;
            let has = |part| inventory.iter().any(|tensor| tensor.name.contains(part));
            if let Some(recipe) = mixed.filter(|_| !has("down_proj")) {
                return Err(ConvertError::NoRecipe { recipe: recipe.name() }.into());
            }
        }
        let stated = config["torch_dtype"].as_str().and_then(float_named);
        let layers = spec.layers.as_ref().map_or(0, Vec::len);
        let experts = Experts::of(config);
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let unknown = |entry: &TensorSpec| unsupported(entry, model_type, options.target);
        let unknown = inventory.iter().find_map(|entry| Some((entry, unknown(entry)?)));
        if let (Some((entry, kind)), None) = (unknown, experts) {
            let (model_type, name) = (model_type.to_owned(), entry.name.clone());
            return Err(ConvertError::Unsupported { model_type, name, kind }.into());
        }
        Ok(Self { target: options.target, dtype: options.dtype.or(stated), layers, experts })
    }

    fn tensor(&self, source: &Path, checkpoint: &Checkpoint, spec: &TensorSpec) -> Result<Planned> {
        let mut sources = Vec::new();
        let mut dtype = None;
        for name in spec.names() {
            let missing = || Error::MissingTensor { name: name.clone(), dir: source.to_owned() };
            let (_, info) = checkpoint.get(&name).ok_or_else(missing)?;
            let file = checkpoint.file_of(&name).ok_or_else(missing)?;
            check_shape(&name, info, spec)?;
            if *dtype.get_or_insert(info.dtype) != info.dtype {
                return Err(ConvertError::MixedTypes { name }.into());
            }
            sources.push(Stored { file, range: info.file_range.clone() });
        }
        let dtype = dtype.ok_or_else(|| Error::config("a stack of no experts"))?;
        let (mut name, mut shape) = (spec.name.clone(), spec.shape.clone());
        if let (2.., Some(experts)) = (spec.count, self.experts) {
            name = experts.stacked(&name);
            shape.insert(0, spec.count);
        }
        Ok(Planned { action: self.action(&name, dtype, spec)?, name, sources, shape, dtype })
    }

    fn action(&self, name: &str, dtype: Dtype, spec: &TensorSpec) -> Result<Action> {
        let Some(from) = float(dtype) else {
            if is_integer(dtype) {
                return Ok(Action::Copy);
            }
            let (name, found) = (name.to_owned(), dtype.name().to_owned());
            return Err(Error::TensorDtype { name, found, expected: "F32, F16 or BF16" });
        };
        let to = self.dtype.unwrap_or(from);
        let plain = if from == to { Action::Copy } else { Action::Cast(from, to) };
        let Target::Affine { bits, group_size, mixed } = self.target else { return Ok(plain) };
        let whole_groups = spec.shape.last().is_some_and(|n| n % u64::from(group_size) == 0);
        if !whole_groups || !is_matrix(spec) {
            return Ok(plain);
        }
        let (bits, group_size) = match (mixed, self.router(module(name))) {
            (Some(mixed), _) => (mixed.bits(module(name), self.layers), group_size),
            (None, Some(router)) => router,
            (None, None) => (bits, group_size),
        };
        let quantizer = Quantizer::new(bits, group_size, to).map_err(mlxcel_core::Error::from)?;
        Ok(Action::Quantize(from, quantizer, to))
    }

    /// Bits and group of `module`, where it is a router with its own.
    fn router(&self, module: &str) -> Option<(u8, u16)> {
        self.experts?.router.filter(|_| module.ends_with(".mlp.gate"))
    }

    /// The configuration of the new checkpoint, keys sorted as mlx-lm sorts them.
    fn config(&self, old: &Value, tensors: &[Planned]) -> Value {
        let mut fields: Map<String, Value> = old.as_object().cloned().unwrap_or_default();
        fields.remove("_name_or_path");
        if let Some(dtype) = self.dtype {
            let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
            fields.insert(key.to_owned(), json!(float_name(dtype)));
            if fields.contains_key("torch_dtype") {
                fields.insert("torch_dtype".to_owned(), json!(float_name(dtype)));
            }
        }
        if let Target::Affine { bits, group_size, mixed } = self.target {
            let block = self.quantization(bits, group_size, mixed, tensors);
            fields.insert("quantization".to_owned(), block.clone());
            fields.insert("quantization_config".to_owned(), block);
        }
        fields.sort_keys();
        Value::Object(fields)
    }

    /// The `quantization` block; with a recipe it has an entry per module, else one per router
    /// that differs.
    fn quantization(
        &self,
        bits: u8,
        group_size: u16,
        mixed: Option<Mixed>,
        tensors: &[Planned],
    ) -> Value {
        let mut block = json!({ "group_size": group_size, "bits": bits, "mode": "affine" });
        for tensor in tensors {
            let Action::Quantize(_, quantizer, _) = tensor.action else { continue };
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
        block
    }
}

/// What a tensor is, where it is something that is not converted in a family without [`Experts`].
fn unsupported(entry: &TensorSpec, model_type: &str, target: Target) -> Option<&'static str> {
    let turned = || model_type == "gpt2" && entry.name.contains(".c_") && is_matrix(entry);
    match target {
        _ if entry.count != 1 => {
            Some("of experts, which are converted for mixtral, olmoe and qwen3_moe only")
        }
        _ if entry.shape.len() > 2 && entry.role == TensorRole::Linear => {
            Some("a stack of experts, which is not taken apart")
        }
        _ if entry.shape.len() > 2 => Some("a convolution, which mlx-lm stores in another order"),
        Target::Affine { .. } if turned() => {
            Some("stored with its rows for columns, so that its groups would lie across")
        }
        _ => None,
    }
}

/// How a family's experts are stored once they are converted: each matrix of all experts in one
/// tensor, under the names of mlx-lm.
struct Experts {
    model_type: &'static str,
    /// The expert's matrices as published, and as mlx-lm calls them.
    matrices: [(&'static str, &'static str); 3],
    /// Bits and group of the router, where they are not those of everything else.
    router: Option<(u8, u16)>,
}

const GATED: [(&str, &str); 3] =
    [("gate_proj", "gate_proj"), ("up_proj", "up_proj"), ("down_proj", "down_proj")];
const NUMBERED: [(&str, &str); 3] = [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")];

const EXPERTS: [Experts; 3] = [
    Experts { model_type: "mixtral", matrices: NUMBERED, router: None },
    Experts { model_type: "olmoe", matrices: GATED, router: None },
    Experts { model_type: "qwen3_moe", matrices: GATED, router: Some((8, 64)) },
];

impl Experts {
    fn of(config: &Value) -> Option<&'static Self> {
        let model_type = config["model_type"].as_str()?;
        EXPERTS.iter().find(|experts| experts.model_type == model_type)
    }

    /// `mlp.experts.{e}.up_proj.weight` → `mlp.switch_mlp.up_proj.weight`.
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
    let size = |dim: &u64| usize::try_from(*dim).unwrap_or(usize::MAX);
    let sizes = |shape: &[u64]| shape.iter().map(size).collect();
    let (found, expected) = (sizes(&info.shape), sizes(&spec.shape));
    Err(Error::TensorShape { name: name.to_owned(), found, expected })
}

/// What mlx-lm's `to_quantized` applies to: linear layers and embeddings of the language model.
fn is_matrix(spec: &TensorSpec) -> bool {
    let role = matches!(spec.role, TensorRole::Embedding | TensorRole::Head | TensorRole::Linear);
    role && spec.part == TensorPart::Text && spec.shape.len() == 2 && spec.name.ends_with(".weight")
}

/// The name of the module that holds the weight `name`.
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
