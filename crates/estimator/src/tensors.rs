//! The inventory of an architecture's tensors: names, shapes and roles.
//!
//! The analytical parameter count is the sum of this list, weight re-sizing goes over it, and
//! `xtask synth-model` writes random checkpoints from it. Names are those of the published
//! Hugging Face checkpoints; shapes are `[out, in]` for a linear layer (GPT-2 alone stores
//! `[in, out]`). A tied output head and extra prediction layers are not in it.

use crate::EstimatorError;
use crate::config::Fields;
use crate::family::eval::Scope;
use crate::family::{Family, Row, Section, SectionPlace, registry};

/// MLX's default quantisation group: the last dimension of a quantised tensor is a multiple.
pub const QUANT_GROUP_ELEMS: u64 = 64;

/// Most layers of a model; a configuration with more is refused.
pub(crate) const MAX_LAYERS: u64 = 4096;

/// Role of a tensor, which decides its initialisation and quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TensorRole {
    /// Rows looked up by token.
    Embedding,
    /// The output head, where it is not the embedding.
    Head,
    /// A matrix that multiplies activations (or a stack of them, one per expert).
    Linear,
    /// A scale of a normalisation, initialised to one.
    Norm,
    /// A vector that is added.
    Bias,
    /// A convolution's kernel.
    Convolution,
    /// Stored with the parameters, but set rather than learnt: not counted as a parameter.
    Buffer,
    /// Anything else: decay rates, gates, positions, sinks.
    Plain,
}

/// Part of a checkpoint that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorPart {
    /// The language model.
    Text,
    /// The image encoder and its projector.
    Vision,
}

/// One tensor of a checkpoint, or `count` tensors of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The checkpoint's name; with `count` above one, `{e}` stands for 0, 1, ….
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Number of tensors of this shape that the entry stands for.
    pub count: u64,
    /// Role.
    pub role: TensorRole,
    /// Part of the checkpoint.
    pub part: TensorPart,
}

impl TensorSpec {
    /// Elements of all `count` tensors together.
    ///
    /// # Errors
    /// [`EstimatorError::Overflow`] where the product exceeds 64 bits.
    pub fn elements(&self) -> Result<u64, EstimatorError> {
        let product = self.shape.iter().try_fold(self.count, |n, dim| n.checked_mul(*dim));
        product.ok_or_else(|| EstimatorError::Overflow {
            quantity: format!("the size of `{}`", self.name),
        })
    }

    /// Elements that count as parameters: none of a buffer's.
    ///
    /// # Errors
    /// Same as [`Self::elements`].
    pub fn parameters(&self) -> Result<u64, EstimatorError> {
        if self.role == TensorRole::Buffer { Ok(0) } else { self.elements() }
    }

    /// Reports whether MLX's affine quantisation applies: to a matrix or embedding of the language model
    /// whose rows divide into groups. Image encoders, convolutions and vectors stay as they are.
    #[must_use]
    pub fn is_quantisable(&self) -> bool {
        let matrix =
            matches!(self.role, TensorRole::Embedding | TensorRole::Head | TensorRole::Linear);
        let row = self.shape.last().copied().unwrap_or(0);
        matrix
            && self.part == TensorPart::Text
            && self.shape.len() >= 2
            && row.checked_rem(QUANT_GROUP_ELEMS) == Some(0)
    }

    /// The names of all `count` tensors.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|e| self.name.replace("{e}", &e.to_string()))
    }
}

/// The tensors of the architecture that a `config.json` describes.
///
/// # Errors
/// A configuration that is no JSON, a missing or impossible field, or a model type whose inventory is
/// not known ([`EstimatorError::MissingField`] of `model_type`).
///
/// ```
/// let config = r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
///     "vocab_size": 1000, "tie_word_embeddings": true}"#;
/// let tensors = mlxcel_estimator::tensors(config)?;
/// assert_eq!(tensors[0].name, "model.embed_tokens.weight");
/// assert_eq!(tensors[0].shape, [1000, 64]);
/// # Ok::<(), mlxcel_estimator::EstimatorError>(())
/// ```
pub fn tensors(config_json: &str) -> Result<Vec<TensorSpec>, EstimatorError> {
    let fields = Fields::parse(config_json)?;
    let families = registry::select(&fields)?.ok_or_else(|| EstimatorError::MissingField {
        field: "model_type".to_owned(),
        model_type: fields.text_type().map(crate::error::shortened).unwrap_or_default(),
    })?;
    inventory(&fields, &families)
}

/// The inventory of a configuration whose families are chosen.
pub(crate) fn inventory(
    fields: &Fields,
    families: &registry::SelectedFamilies,
) -> Result<Vec<TensorSpec>, EstimatorError> {
    let mut list = Vec::new();
    let text = Scope::new(fields, &families.text);
    emit(&text, SectionPlace::Once, &mut list)?;
    for layer in 0..layers(&text)? {
        emit(&text.at_layer(layer), SectionPlace::Layer, &mut list)?;
    }
    if let Some(wrapper) = &families.wrapper {
        list.iter_mut().for_each(|tensor| rename(tensor, wrapper));
        emit(&Scope::new(fields, wrapper).over(&families.text), SectionPlace::Vision, &mut list)?;
    }
    emit(&text, SectionPlace::Vision, &mut list)?;
    Ok(list)
}

/// The number of decoder layers: `let LAYERS` of the family, or the usual field.
pub(crate) fn layers(scope: &Scope<'_>) -> Result<u64, EstimatorError> {
    let name =
        if scope.family.lets.contains_key("LAYERS") { "LAYERS" } else { "num_hidden_layers" };
    let layers = scope.size(&crate::family::expr::Expr::Name(name.to_owned()))?;
    bounded("num_hidden_layers", layers)
}

fn bounded(field: &str, n: u64) -> Result<u64, EstimatorError> {
    if n <= MAX_LAYERS {
        return Ok(n);
    }
    Err(EstimatorError::BadField {
        field: field.to_owned(),
        value: n.to_string(),
        reason: format!("no model has more than {MAX_LAYERS}"),
    })
}

fn rename(tensor: &mut TensorSpec, wrapper: &Family) {
    for (from, to) in &wrapper.renames {
        if let Some(rest) = tensor.name.strip_prefix(from.as_str()) {
            tensor.name = format!("{to}{rest}");
            return;
        }
    }
}

/// Appends every row of the sections for `place`.
fn emit(
    scope: &Scope<'_>,
    place: SectionPlace,
    list: &mut Vec<TensorSpec>,
) -> Result<(), EstimatorError> {
    for section in scope.family.sections.iter().filter(|s| s.place == place) {
        if !admitted(scope, section.guard.as_ref())? {
            continue;
        }
        let repeat = section.repeat.as_ref().map_or(Ok(1), |e| scope.size(e))?;
        for i in 0..bounded("a number of layers", repeat)? {
            emit_rows(scope, section, i, list)?;
        }
    }
    Ok(())
}

fn emit_rows(
    scope: &Scope<'_>,
    section: &Section,
    i: u64,
    list: &mut Vec<TensorSpec>,
) -> Result<(), EstimatorError> {
    let count = section.count.as_ref().map_or(Ok(1), |e| scope.size(e))?;
    for row in &section.rows {
        if admitted(scope, row.guard.as_ref())? {
            list.push(tensor(scope, row, section.place, i, count)?);
        }
    }
    Ok(())
}

pub(crate) fn admitted(
    scope: &Scope<'_>,
    guard: Option<&crate::family::expr::Expr>,
) -> Result<bool, EstimatorError> {
    guard.map_or(Ok(true), |guard| scope.holds(guard))
}

fn tensor(
    scope: &Scope<'_>,
    row: &Row,
    place: SectionPlace,
    i: u64,
    count: u64,
) -> Result<TensorSpec, EstimatorError> {
    let shape = row.dims.iter().map(|dim| scope.size(dim)).collect::<Result<_, _>>()?;
    let layer = scope.layer.map(|l| l.to_string()).unwrap_or_default();
    let name = row.name.replace("{l}", &layer).replace("{i}", &i.to_string());
    let part = if place == SectionPlace::Vision { TensorPart::Vision } else { TensorPart::Text };
    Ok(TensorSpec { name, shape, count, role: row.role, part })
}
