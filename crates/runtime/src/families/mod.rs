//! Model families: one file each, and the registry that picks one by `model_type`.
//! A file holds the family's `Config` and its own blocks; `dense` holds `Attention`, `Mlp`,
//! `DecoderBlock` and `Model` for the families that share them.
//!
//! Field names are the checkpoint's. Masks, rotary embeddings, norms, attention and caches live in
//! `mlxcel-core`, once; `config` has the parts of `config.json` that several families read.

mod check;
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

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, CrossImage, LayerLayout, Ops, Pass, SequenceCache};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::loading::{self, Weights};
use crate::source::ModelSource;
use crate::vision::{EncodedImage, Pixels};
use crate::{Error, Result};

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
            Err(Error::config("the model has no cross-attention layers to see images"))
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

type Loader = fn(&Weights, &Value) -> Result<Box<dyn LanguageModel>>;

/// Every family, by the `model_type` of its `config.json`.
const FAMILIES: &[(&str, Loader)] = &[
    ("deepseek_v2", |w, c| boxed(deepseek::load_v2(w, &parse(c)?, &parse(c)?)?)),
    ("deepseek_v3", |w, c| boxed(deepseek::load_v3(w, &parse(c)?, &parse(c)?)?)),
    ("falcon_h1", |w, c| boxed(falcon_h1::load(w, &parse(c)?, &parse(c)?)?)),
    ("falcon_mamba", |w, c| boxed(mamba::load(w, &parse(c)?)?)),
    ("gemma2", |w, c| boxed(gemma2::load(w, &parse(c)?)?)),
    ("gemma3", |w, c| boxed(gemma3::load_with_images(w, &parse(c)?)?)),
    ("gemma3_text", |w, c| boxed(gemma3::load(w, &parse(c)?)?)),
    ("glm4", |w, c| boxed(glm4::load(w, &parse(c)?)?)),
    ("gpt2", |w, c| boxed(gpt2::load(w, &parse(c)?)?)),
    ("gpt_oss", |w, c| boxed(gpt_oss::load(w, &parse(c)?)?)),
    ("granite", |w, c| boxed(granite::load(w, &parse(c)?)?)),
    ("granitemoehybrid", |w, c| boxed(granitemoehybrid::load(w, &parse(c)?, &parse(c)?)?)),
    ("lfm2", |w, c| boxed(lfm2::load(w, &parse(c)?, &parse(c)?)?)),
    ("llama", |w, c| boxed(llama::load(w, &parse(c)?)?)),
    ("mamba", |w, c| boxed(mamba::load(w, &parse(c)?)?)),
    ("mamba2", |w, c| boxed(mamba2::load(w, &parse(c)?)?)),
    ("mistral", |w, c| boxed(mistral::load(w, &parse(c)?)?)),
    ("mixtral", |w, c| boxed(mixtral::load(w, &parse(c)?)?)),
    ("mllama", |w, c| boxed(mllama::load(w, &parse(c)?)?)),
    ("nemotron_h", |w, c| boxed(nemotron_h::load(w, &parse(c)?)?)),
    ("olmo2", |w, c| boxed(olmo2::load(w, &parse(c)?)?)),
    ("olmoe", |w, c| boxed(olmoe::load(w, &parse(c)?)?)),
    ("phi", |w, c| boxed(phi::load(w, &parse(c)?)?)),
    ("phi3", |w, c| boxed(phi3::load(w, &parse(c)?)?)),
    ("qwen2", |w, c| boxed(qwen2::load(w, &parse(c)?)?)),
    ("qwen2_5_vl", |w, c| boxed(qwen2_5_vl::load(w, &parse(c)?, &parse(c)?)?)),
    ("qwen3", |w, c| boxed(qwen3::load(w, &parse(c)?)?)),
    ("qwen3_5", |w, c| boxed(qwen3_5::load(w, &parse(c)?, &parse(c)?)?)),
    ("qwen3_5_moe", |w, c| boxed(qwen3_5::load(w, &parse(c)?, &parse(c)?)?)),
    ("qwen3_moe", |w, c| boxed(qwen3_moe::load(w, &parse(c)?)?)),
    ("qwen3_next", |w, c| boxed(qwen3_next::load(w, &parse(c)?, &parse(c)?)?)),
    ("smollm3", |w, c| boxed(smollm3::load(w, &parse(c)?)?)),
    ("starcoder2", |w, c| boxed(starcoder2::load(w, &parse(c)?)?)),
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
    loader(weights, config)
}

/// Fails early, before any tensor is looked at, when the `model_type` is not among [`supported`],
/// or when the configuration states sizes that no model can have.
///
/// # Errors
/// Errors of [`load`].
pub fn check_supported(config: &Value) -> Result<()> {
    let model_type = model_type(config)?;
    if !supported().any(|name| name == model_type) {
        return Err(unsupported(model_type));
    }
    check::sizes(config)?;
    check::layer_types(config)?;
    check::numbered_layers(config)
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
    config
        .get("model_type")
        .and_then(Value::as_str)
        .ok_or_else(|| Error::config("it has no \"model_type\", so its architecture is unknown"))
}

fn unsupported(model_type: &str) -> Error {
    Error::UnsupportedModel {
        model_type: model_type.to_owned(),
        supported: supported().collect::<Vec<_>>().join(", "),
    }
}

fn parse<C: DeserializeOwned>(config: &Value) -> Result<C> {
    C::deserialize(config).map_err(|error| Error::config(error.to_string()))
}

fn boxed<M: LanguageModel + 'static>(model: M) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(model))
}
