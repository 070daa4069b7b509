//! A model as its `config.json` describes it, with every size resolved.

mod layer;
mod resolve;
mod state;
mod vision;

pub use layer::{
    AttentionShape, CompressedShape, CrossShape, DenseShape, ExpertsShape, FeedForward,
    GatedDeltaShape, IndexerShape, LatentShape, LayerSpec, Mamba2Shape, MambaShape, Mixer,
    RecurrentShape, ShortConvShape,
};
pub(crate) use state::CodecBytes;
pub use state::{LayerState, SequenceTokens};
pub use vision::VisionSpec;

use serde_json::{Map, Value};

use crate::config::{Field, Fields};
use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::registry::{self, SelectedFamilies};
use crate::quantization::Quantization;
use crate::tensors::{self, TensorSpec};

/// Class of a model by its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// Every attention layer caches all keys and values.
    Standard,
    /// Some layers cache only a sliding window.
    SlidingWindow,
    /// A compressed latent is cached.
    Mla,
    /// Attention and recurrent layers.
    Hybrid,
    /// Recurrent layers only.
    Ssm,
    /// The configuration is not understood.
    Unknown,
}

impl Architecture {
    /// Name in the JSON report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::SlidingWindow => "sliding_window",
            Self::Mla => "mla",
            Self::Hybrid => "hybrid",
            Self::Ssm => "ssm",
            Self::Unknown => "unknown",
        }
    }
}

/// Widest steps of a layer's computation, in elements per token, for transient memory. Zero where the
/// model has no such part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Widths {
    /// Elements of the residual stream.
    pub hidden: u64,
    /// Rows of the output head.
    pub vocabulary: u64,
    /// Query heads.
    pub query_heads: u64,
    /// Query heads per key-value head.
    pub group: u64,
    /// The widest head whose scores are computed.
    pub head_dim: u64,
    /// Elements per token of the widest feed-forward step.
    pub inner: u64,
    /// Elements per token of the widest recurrent step.
    pub recurrent: u64,
    /// Routed experts that a token passes; 0 where there are none.
    pub active_experts: u64,
}

/// A model as its `config.json` describes it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelSpec {
    /// The checkpoint's `model_type`; empty if the config gives none.
    pub model_type: String,
    /// The language part's own `model_type`, where it is nested.
    pub text_model_type: String,
    /// Class of the model by its cache.
    pub architecture: Architecture,
    /// The image encoder, where one is described.
    pub vision: Option<VisionSpec>,
    /// The decoder's layers, every size resolved; `None` where the layout is not known.
    pub layers: Option<Vec<LayerSpec>>,
    /// Elements of the residual stream; 0 where the layout is not known.
    pub hidden_size: u64,
    /// Tokens of the vocabulary; 0 where the layout is not known.
    pub vocab_size: u64,
    /// Serves the embedding as output head, as the configuration states it; where it is silent
    /// (`None`), tensors are counted by the class default and a loader goes by the files.
    pub tied_head: Option<bool>,
    /// Longest context that the model was trained for, in tokens.
    pub max_context_tokens: Option<u64>,
    /// Widest steps of a layer's computation.
    pub widths: Widths,
    /// Quantisation of the checkpoint's weights, if the config states it.
    pub quantization: Option<Quantization>,
    /// Bytes of an unquantised element, by `dtype` or `torch_dtype`; 2 where neither is given.
    pub elem_bytes: u64,
    /// The tensors of the architecture; `None` where they are not known.
    pub tensors: Option<Vec<TensorSpec>>,
    /// Assumptions that were made, a sentence each.
    pub assumptions: Vec<String>,
}

impl ModelSpec {
    /// Reads the text of a `config.json`.
    ///
    /// A model type without a description is sized by the usual field names if they are all present
    /// and sufficient (`assumptions` then says so), and is unknown otherwise: `layers` and `tensors` are
    /// `None`.
    ///
    /// # Errors
    /// Text that is no JSON object, and a field of a known family that is missing or impossible.
    pub fn from_config(json: &str) -> Result<Self, EstimatorError> {
        Self::from_fields(&Fields::parse(json)?)
    }

    /// Reads a `config.json` that is parsed already, or flattened by [`crate::resolved_config`].
    ///
    /// # Errors
    /// A field of a known family that is missing or impossible.
    pub fn from_object(config: &Map<String, Value>) -> Result<Self, EstimatorError> {
        Self::from_fields(&Fields::of(config.clone()))
    }

    fn from_fields(fields: &Fields) -> Result<Self, EstimatorError> {
        match registry::select(fields)? {
            Some(chosen) => match Self::described(fields, &chosen) {
                Err(error) if chosen.guess.is_some() => Ok(Self::unknown(
                    fields,
                    &format!("is not known, and sizing it by its field names fails: {error}"),
                )),
                found => found,
            },
            None => {
                Ok(Self::unknown(fields, "is not known, and the usual fields are not all there"))
            }
        }
    }

    /// Parameters of the architecture: each once, a tied head not, prediction layers not.
    ///
    /// # Errors
    /// [`EstimatorError::Overflow`] beyond 64 bits.
    pub fn parameters(&self) -> Result<Option<u64>, EstimatorError> {
        let Some(tensors) = &self.tensors else { return Ok(None) };
        let mut sum = 0_u64;
        for tensor in tensors {
            sum = sum.checked_add(tensor.parameters()?).ok_or_else(|| {
                EstimatorError::Overflow { quantity: "the parameter count".to_owned() }
            })?;
        }
        Ok(Some(sum))
    }

    fn described(fields: &Fields, chosen: &SelectedFamilies) -> Result<Self, EstimatorError> {
        let scope = Scope::new(fields, &chosen.text);
        let max_context_tokens = scope.named("max_position_embeddings")?;
        let layers = resolve::layers(&scope, max_context_tokens)?;
        let architecture = match chosen.text.architecture.as_deref() {
            Some("mla") => Architecture::Mla,
            _ => resolve::architecture(&layers),
        };
        if layers.iter().any(|layer| layer.mixers.contains(&Mixer::Unknown)) {
            let reason = match chosen.guess {
                Some(_) => "is not known, and its fields do not state what every layer caches",
                None => "is known, but its fields do not state what every layer caches",
            };
            return Ok(Self { max_context_tokens, ..Self::unknown(fields, reason) });
        }
        let mut spec = Self::unknown(fields, "");
        spec.assumptions = notes(fields, chosen)?;
        spec.widths = resolve::widths(&scope, &layers)?;
        spec.hidden_size = spec.widths.hidden;
        spec.vocab_size = spec.widths.vocabulary;
        spec.tensors = Some(tensors::inventory(fields, chosen)?);
        spec.vision = VisionSpec::read(fields, chosen)?;
        Ok(Self { architecture, layers: Some(layers), max_context_tokens, ..spec })
    }

    /// A model of unknown layers; `reason` continues the sentence after the model type.
    fn unknown(fields: &Fields, reason: &str) -> Self {
        let root = fields.root_type().unwrap_or_default();
        let reason = if root.is_empty() {
            "config.json has no usable `model_type`: the cache layout and the size are unknown"
                .to_owned()
        } else {
            let name = crate::error::shortened(root);
            format!("model type `{name}` {reason}: the cache layout and the size are unknown")
        };
        Self {
            model_type: root.to_owned(),
            text_model_type: fields.text_type().unwrap_or(root).to_owned(),
            architecture: Architecture::Unknown,
            vision: fields.has_vision().then(VisionSpec::default),
            layers: None,
            hidden_size: 0,
            vocab_size: 0,
            tied_head: tied_head(fields),
            max_context_tokens: None,
            widths: Widths::default(),
            quantization: Quantization::read(fields),
            elem_bytes: elem_bytes(fields),
            tensors: None,
            assumptions: vec![reason],
        }
    }
}

fn notes(fields: &Fields, chosen: &SelectedFamilies) -> Result<Vec<String>, EstimatorError> {
    let mut notes: Vec<_> = chosen.guess.iter().cloned().collect();
    for family in std::iter::once(&chosen.text).chain(&chosen.wrapper) {
        let scope = Scope::new(fields, family).over(&chosen.text);
        for (sentence, guard) in &family.notes {
            if tensors::admitted(&scope, guard.as_ref())? {
                notes.push(sentence.clone());
            }
        }
    }
    notes.extend(chosen.uncounted.clone());
    Ok(notes)
}

fn tied_head(fields: &Fields) -> Option<bool> {
    match fields.get("tie_word_embeddings") {
        Field::Present(value) => value.as_bool(),
        Field::Absent | Field::Null => None,
    }
}

fn elem_bytes(fields: &Fields) -> u64 {
    let stated = ["dtype", "torch_dtype"].into_iter().find_map(|name| match fields.get(name) {
        Field::Present(value) => value.as_str(),
        _ => None,
    });
    if matches!(stated, Some("float32" | "float")) { 4 } else { 2 }
}
