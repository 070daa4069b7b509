//! The entry point and its result.

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

/// Inputs of the advice: the workload and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AdviceInputs {
    /// Wanted context, in tokens.
    pub context_tokens: u64,
    /// Sequences at once.
    pub batch: u64,
    /// Tokens of a prefill chunk.
    pub prefill_chunk_tokens: u64,
    /// Available memory, in bytes; `None` if not known.
    pub available_bytes: Option<u64>,
    /// Source of `available_bytes`.
    pub available_source: AvailableSource,
}

/// Advice about one model on one machine. It applies nothing and changes no default.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Name of the model, as the caller gives it.
    pub model: String,
    /// Key of the rules.
    #[serde(flatten)]
    pub class: Class,
    /// Reason why the model cannot be classified, if so.
    pub cannot_classify: Option<String>,
    /// Workload and machine.
    #[serde(rename = "asked")]
    pub inputs: AdviceInputs,
    /// Mode without any flag: always fp16.
    #[serde(serialize_with = "crate::json::mode")]
    pub default_kv_mode: KvMode,
    /// Advice on weights; `None` if their size is not known.
    pub weights: Option<WeightAdvice>,
    /// Advice on the cache, by range of context.
    pub kv_cache: Vec<RangeAdvice>,
    /// Further notes, a sentence each.
    pub notes: Vec<String>,
}

/// Advises on a model's weights and cache for a wanted workload.
///
/// The shape and the chunk of `workload` are read, its cache mode and quantisation are not: widths
/// are compared with the default cache, fp16. `measurements` must be of the same model; the caller
/// compares fingerprints.
///
/// # Errors
/// Errors of the estimator.
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
        inputs: inputs(&advised, machine),
        default_kv_mode: KvMode::default(),
        weights: weight_advice,
        kv_cache: cache::advise(&solver, &class, &advised, measurements)?,
        notes: notes(spec, weights, measurements),
        class,
    })
}

impl Advice {
    /// Sets the name of the model.
    #[must_use]
    pub fn named(self, model: &str) -> Self {
        Self { model: model.to_owned(), ..self }
    }

    /// Renders the advice as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        crate::text::render(self)
    }

    /// Renders the advice as JSON, schema `mlxcel.advice/1`, without a final newline.
    ///
    /// # Errors
    /// [`AdvisorError::Json`] from the serialiser, which no advice should cause.
    pub fn to_json(&self) -> Result<String, AdvisorError> {
        serde_json::to_string_pretty(self).map_err(AdvisorError::Json)
    }
}

fn inputs(workload: &Workload, machine: &Machine) -> AdviceInputs {
    AdviceInputs {
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
