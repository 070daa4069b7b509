//! The one entry point, and what it answers.

use mlxcel_estimator::{
    Architecture, AvailableSource, KvMode, Machine, ModelSpec, Solver, WeightFootprint,
    WeightSource, Workload,
};
use serde::Serialize;

use crate::cache::{self, Class, RangeAdvice};
use crate::error::AdvisorError;
use crate::measured::{MIN_SCORED_TOKENS, Measurements};
use crate::weights::{self, WeightAdvice};

/// The schema of [`Advice::to_json`].
pub const SCHEMA: &str = "mlxcel.advice/1";

/// What was asked, and of which machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Asked {
    /// The wanted context, in tokens.
    pub context_tokens: u64,
    /// Sequences at once.
    pub batch: u64,
    /// Tokens of a prefill chunk.
    pub prefill_chunk_tokens: u64,
    /// Bytes available; `None` where nobody knows.
    pub available_bytes: Option<u64>,
    /// How that is known.
    pub available_source: AvailableSource,
}

/// Advice about one model on one machine. It applies nothing, and changes no default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// What the caller calls the model.
    pub model: String,
    /// What the rules are keyed by.
    #[serde(flatten)]
    pub class: Class,
    /// Why the model cannot be classified, where it cannot.
    pub cannot_classify: Option<String>,
    /// What was asked.
    pub asked: Asked,
    /// The mode without any flag: always fp16.
    #[serde(serialize_with = "crate::json::mode")]
    pub default_kv_mode: KvMode,
    /// Weights; `None` where their size is not known.
    pub weights: Option<WeightAdvice>,
    /// The cache, range by range.
    pub kv_cache: Vec<RangeAdvice>,
    /// What a person should know besides, a sentence each.
    pub notes: Vec<String>,
}

/// Advises on a model's weights and cache for a wanted workload.
///
/// The workload's shape and chunk are what is wanted; its cache mode and quantisation are not
/// read: widths are compared with the default cache, fp16. `measurements` must be of this very
/// model; the caller compares fingerprints.
///
/// # Errors
/// What the estimator cannot size.
///
/// ```
/// use mlxcel_advisor::advise;
/// use mlxcel_estimator::*;
///
/// let config = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
///     "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
///     "vocab_size": 128256, "max_position_embeddings": 131072}"#;
/// let spec = ModelSpec::from_config(config)?;
/// let weights = WeightFootprint::analytical(&spec)?;
/// let machine = Machine::new(Backend::Metal).with_available(24 << 30, AvailableSource::WhatIf);
/// let advice = advise(&spec, &weights, &machine, &Workload::uniform(8192, 1), None)?;
/// assert_eq!(advice.weights.as_ref().map(|w| w.quant), Some(WeightQuant::Fp16));
/// assert!(advice.to_text().contains("the default cache stays fp16"));
/// # Ok::<(), mlxcel_advisor::AdvisorError>(())
/// ```
pub fn advise(
    spec: &ModelSpec,
    weights: &WeightFootprint,
    machine: &Machine,
    workload: &Workload,
    measurements: Option<&Measurements>,
) -> Result<Advice, AdvisorError> {
    let class = Class::of(spec);
    let solver = Solver { spec, weights, machine };
    let wanted = Workload {
        kv_mode: KvMode::default(),
        quant: mlxcel_estimator::WeightQuant::default(),
        ..workload.clone()
    };
    let modes = class.offered_modes(measurements);
    let sized = weights.source != WeightSource::Fallback;
    let weight_advice = sized.then(|| weights::advise(&solver, &wanted, &modes)).transpose()?;
    let quant = weight_advice.as_ref().map(|advice| advice.quant).unwrap_or_default();
    let advised = wanted.with_quant(quant);
    Ok(Advice {
        schema: SCHEMA,
        model: spec.model_type.clone(),
        cannot_classify: cannot_classify(&class, spec),
        asked: asked(&advised, machine),
        default_kv_mode: KvMode::default(),
        weights: weight_advice,
        kv_cache: cache::advise(&solver, &class, &advised, measurements)?,
        notes: notes(spec, weights, measurements),
        class,
    })
}

impl Advice {
    /// The same under the name that a person typed.
    #[must_use]
    pub fn named(self, model: &str) -> Self {
        Self { model: model.to_owned(), ..self }
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        crate::text::render(self)
    }

    /// For programs: schema `mlxcel.advice/1`, pretty, without a line's end.
    ///
    /// # Errors
    /// [`AdvisorError::Json`], which nothing here should cause.
    pub fn to_json(&self) -> Result<String, AdvisorError> {
        serde_json::to_string_pretty(self).map_err(AdvisorError::Json)
    }
}

fn asked(workload: &Workload, machine: &Machine) -> Asked {
    Asked {
        context_tokens: workload.context_tokens(),
        batch: workload.batch(),
        prefill_chunk_tokens: workload.prefill_chunk_tokens,
        available_bytes: machine.available_bytes,
        available_source: machine.available_source,
    }
}

fn cannot_classify(class: &Class, spec: &ModelSpec) -> Option<String> {
    let unknown = class.architecture == Architecture::Unknown;
    let why = spec.assumptions.first().map_or("the cache layout is not known", String::as_str);
    unknown.then(|| format!("cannot classify: {why}"))
}

fn notes(
    spec: &ModelSpec,
    weights: &WeightFootprint,
    measurements: Option<&Measurements>,
) -> Vec<String> {
    let assumed = spec.assumptions.iter().chain(&weights.assumptions).cloned();
    let few = measurements.filter(|found| !found.are_enough()).map(|found| {
        format!(
            "this model's measurement is left out: {} tokens were scored, {MIN_SCORED_TOKENS} are needed",
            found.scored_tokens
        )
    });
    let unseen = weights.source == WeightSource::Config && spec.quantization.is_none();
    let unseen = unseen.then(|| {
        "no weight files were read: a quantisation that config.json does not state is not seen"
            .to_owned()
    });
    assumed.chain(unseen).chain(few).collect()
}
