//! Model families: one file each, and the registry that picks one by `model_type`.
//! A file holds the family's `Config` and its own blocks; `dense` holds `Attention`, `Mlp`,
//! `DecoderBlock` and `Model` for the families that share them.
//!
//! Field names are the checkpoint's. Masks, rotary embeddings, norms, attention and caches live in
//! `mlxcel-core`, once; `config` has the parts of `config.json` that several families read.

mod config;
mod deepseek;
mod delta;
mod dense;
mod falcon_h1;
mod gemma2;
mod gemma3;
mod glm4;
mod gpt2;
mod gpt_oss;
mod granite;
mod granitemoehybrid;
mod layer_state;
mod lfm2;
mod llama;
mod mamba;
mod mamba2;
mod mistral;
mod mixtral;
mod mla;
mod mllama;
mod mllama_patches;
mod mllama_vit;
mod mlp;
mod moe;
mod nemotron_h;
mod olmo2;
mod olmoe;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_5_vl;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod qwen_vit;
mod residual;
mod rope;
mod siglip;
mod single;
mod smollm3;
mod starcoder2;
mod with_encoder;

use std::path::Path;

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, CrossImage, LayerLayout, Ops, Pass, SequenceCache};
use mlxcel_estimator::ModelSpec;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::config::DecoderConfig;
use crate::loading::{self, Weights};
use crate::source::ModelSource;
use crate::vision::{EncodedImage, Pixels};
use crate::{Error, FileProblem, Result};

/// A decoder that maps a ragged batch of tokens to hidden states and logits.
pub trait LanguageModel {
    /// Keys and values of each layer with attention, in layer order.
    fn cache_layout(&self) -> Vec<LayerLayout>;

    /// State of each recurrent layer, in layer order.
    fn state_layout(&self) -> Vec<StateLayout> {
        Vec::new()
    }

    /// Keys and values of each cross-attention layer per row of an image, in layer order.
    fn cross_layout(&self) -> Vec<LayerLayout> {
        Vec::new()
    }

    /// Number of input-only tokens after those of the vocabulary.
    fn extra_tokens(&self) -> usize {
        0
    }

    /// Runs every layer over the batch: `[total tokens, hidden]`, the final norm applied.
    ///
    /// # Errors
    /// When an operation cannot be built; evaluation errors come later.
    fn forward(&self, pass: &mut Pass<'_>) -> Result<Array>;

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// Errors of [`Self::forward`].
    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array>;

    /// The image encoder, where the model and its checkpoint have one.
    fn images(&self) -> Option<&dyn ImageEncoder> {
        None
    }

    /// Attaches images to a sequence's cross-attention layers, all of them before its first token.
    ///
    /// # Errors
    /// A model without such layers, and errors of [`SequenceCache::attach_images`].
    fn attach_images(
        &self,
        ops: &Ops,
        cache: &mut SequenceCache,
        images: &[CrossImage],
    ) -> Result<()> {
        cache.attach_images(ops, images, |_, _| {
            let feature = "attaching images for a model with no cross-attention layers";
            Err(mlxcel_core::Error::Unsupported { feature }.into())
        })
    }
}

/// Encoder of images as rows of a pass.
pub trait ImageEncoder {
    /// The rows of an image, their attention and their positions.
    ///
    /// # Errors
    /// An image of another size, or operations that cannot be built.
    fn encode(&self, ops: &Ops, pixels: &Pixels) -> Result<EncodedImage>;
}

type Loader = fn(&Weights, &ModelSpec, &Value) -> Result<Box<dyn LanguageModel>>;

/// Every family, by the `model_type` of its `config.json`.
const FAMILIES: &[(&str, Loader)] = &[
    ("deepseek_v2", |w, s, c| build(w, s, c, deepseek::load_v2)),
    ("deepseek_v3", |w, s, c| build(w, s, c, deepseek::load_v3)),
    ("falcon_h1", |w, s, c| build(w, s, c, falcon_h1::load)),
    ("falcon_mamba", |w, s, c| build(w, s, c, mamba::load)),
    ("gemma2", |w, s, c| build(w, s, c, gemma2::load)),
    ("gemma3", |w, s, c| build(w, s, c, gemma3::load_with_images)),
    ("gemma3_text", |w, s, c| build(w, s, c, gemma3::load)),
    ("glm4", |w, s, c| build(w, s, c, glm4::load)),
    ("gpt2", |w, s, c| build(w, s, c, gpt2::load)),
    ("gpt_oss", |w, s, c| build(w, s, c, gpt_oss::load)),
    ("granite", |w, s, c| build(w, s, c, granite::load)),
    ("granitemoehybrid", |w, s, c| build(w, s, c, granitemoehybrid::load)),
    ("lfm2", |w, s, c| build(w, s, c, lfm2::load)),
    ("llama", |w, s, c| build(w, s, c, llama::load)),
    ("mamba", |w, s, c| build(w, s, c, mamba::load)),
    ("mamba2", |w, s, c| build(w, s, c, mamba2::load)),
    ("mistral", |w, s, c| build(w, s, c, mistral::load)),
    ("mixtral", |w, s, c| build(w, s, c, mixtral::load)),
    ("mllama", |w, s, c| build(w, s, c, mllama::load)),
    ("nemotron_h", |w, s, c| build(w, s, c, nemotron_h::load)),
    ("olmo2", |w, s, c| build(w, s, c, olmo2::load)),
    ("olmoe", |w, s, c| build(w, s, c, olmoe::load)),
    ("phi", |w, s, c| build(w, s, c, phi::load)),
    ("phi3", |w, s, c| build(w, s, c, phi3::load)),
    ("qwen2", |w, s, c| build(w, s, c, qwen2::load)),
    ("qwen2_5_vl", |w, s, c| build(w, s, c, qwen2_5_vl::load)),
    ("qwen3", |w, s, c| build(w, s, c, qwen3::load)),
    ("qwen3_5", |w, s, c| build(w, s, c, qwen3_5::load)),
    ("qwen3_5_moe", |w, s, c| build(w, s, c, qwen3_5::load)),
    ("qwen3_moe", |w, s, c| build(w, s, c, qwen3_moe::load)),
    ("qwen3_next", |w, s, c| build(w, s, c, qwen3_next::load)),
    ("smollm3", |w, s, c| build(w, s, c, smollm3::load)),
    ("starcoder2", |w, s, c| build(w, s, c, starcoder2::load)),
];

/// The `model_type`s that this crate runs, sorted.
pub fn supported() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Builds the model that `config` (a parsed `config.json`) describes.
///
/// # Errors
/// [`Error::UnsupportedModel`] names an unknown `model_type` and lists the known ones; missing
/// keys, contradictions and missing or misshapen tensors are errors that name them.
pub fn load(weights: &Weights, config: &Value) -> Result<Box<dyn LanguageModel>> {
    let model_type = model_type(config)?;
    let family = FAMILIES.iter().find(|(name, _)| *name == model_type);
    let (_, loader) = family.ok_or_else(|| unsupported(model_type))?;
    let spec = ModelSpec::from_object(object(config)?)?;
    loader(weights, &spec, config)
}

/// Fails early, before any tensor is looked at, when the `model_type` is not among [`supported`],
/// or when the configuration states sizes that no model can have.
///
/// # Errors
/// Errors of [`load`].
pub(crate) fn check_supported(config: &Value) -> Result<()> {
    let model_type = model_type(config)?;
    if !supported().any(|name| name == model_type) {
        return Err(unsupported(model_type));
    }
    Ok(mlxcel_estimator::check_config(object(config)?)?)
}

/// Reads a model's `config.json`, and checks what can be checked without its tensors.
///
/// # Errors
/// A file that cannot be read or is no JSON object, and what [`check_supported`] refuses.
pub fn read_config(source: &ModelSource) -> Result<Value> {
    let config = loading::read_config(source)?;
    check_supported(&config)?;
    Ok(config)
}

fn model_type(config: &Value) -> Result<&str> {
    config.get("model_type").and_then(Value::as_str).ok_or_else(|| Error::missing_key("model_type"))
}

fn unsupported(model_type: &str) -> Error {
    Error::UnsupportedModel {
        model_type: model_type.to_owned(),
        supported: supported().collect::<Vec<_>>().join(", "),
    }
}

fn parse<C: DeserializeOwned>(config: &Value) -> Result<C> {
    C::deserialize(config).map_err(Error::config_json)
}

fn object(config: &Value) -> Result<&Map<String, Value>> {
    config
        .as_object()
        .ok_or_else(|| Error::invalid_file(Path::new("config.json"), FileProblem::NotAnObject))
}

/// Builds a family's model from its decoder's sizes and its own fields of `config`.
fn build<C: DeserializeOwned, M: LanguageModel + 'static>(
    weights: &Weights,
    spec: &ModelSpec,
    config: &Value,
    load: fn(&Weights, &DecoderConfig, &C) -> Result<M>,
) -> Result<Box<dyn LanguageModel>> {
    let decoder = DecoderConfig::new(spec, config)?;
    Ok(Box::new(load(weights, &decoder, &parse(config)?)?))
}
