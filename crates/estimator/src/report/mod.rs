//! The report that `mlxcel inspect` prints: one structure, as JSON or as text.
//!
//! The JSON's schema is [`SCHEMA`]. Keys are stable; a figure that cannot be known is `null`
//! with its reason in `assumptions`, never 0. `docs/memory-estimator.md` lists the values of the
//! `*_source`, `peak_phase` and `binding_term` keys.

mod curves;
mod text;

use serde::Serialize;

pub use self::curves::{Curves, FIRST_TOKENS};

use crate::error::EstimatorError;
use crate::estimate::{KvSource, MemoryEstimate, Term, estimate_total_memory};
use crate::headroom::HeadroomSource;
use crate::kv::ComputeDtype;
use crate::machine::{AvailableSource, Backend, Machine};
use crate::scratch::Phase;
use crate::solve::{ModeOutcome, Solver};
use crate::spec::{Architecture, ModelSpec};
use crate::verdict::verdict;
use crate::weights::{WeightFootprint, WeightQuant, WeightSource};
use crate::workload::Workload;

/// Schema of the JSON report.
pub const SCHEMA: &str = "mlxcel.inspect/1";

/// Inputs of the estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inputs {
    /// Tokens of each sequence.
    pub context_tokens: u64,
    /// Sequences.
    pub batch: u64,
    /// `--quant`.
    pub quant: WeightQuant,
    /// Compute type.
    pub dtype: ComputeDtype,
    /// Storage of keys.
    pub cache_type_k: &'static str,
    /// Storage of values.
    pub cache_type_v: &'static str,
    /// Tokens of a prefill chunk.
    pub prefill_chunk: u64,
    /// Device that computes.
    pub backend: Backend,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct System {
    /// Total memory, in bytes.
    pub memory_total_bytes: Option<u64>,
}

/// Outcome of one cache mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModeReport {
    /// The mode.
    pub mode: &'static str,
    /// One sequence's growth with a token, scales excluded.
    pub kv_bytes_per_token: Option<u64>,
    /// The whole cache, scales excluded.
    pub kv_cache_bytes: Option<u64>,
    /// The total with it.
    pub total_bytes: u64,
    /// The total fits; `None` if the available memory is not known.
    pub fits: Option<bool>,
    /// The longest context with it.
    pub max_context_tokens: Option<u64>,
}

/// Everything that `inspect` prints. The fields are the JSON's keys, in its order.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
#[expect(missing_docs, reason = "docs/memory-estimator.md documents every key")]
pub struct Report {
    pub schema: &'static str,
    pub model: String,
    pub model_type: String,
    pub text_model_type: String,
    pub architecture: Architecture,
    pub vision: bool,
    pub parameters: Option<u64>,
    pub stored_parameters: Option<u64>,
    pub inputs: Inputs,
    pub weights_bytes: u64,
    pub weights_source: WeightSource,
    pub kv_cache_bytes: Option<u64>,
    pub kv_scale_bytes: Option<u64>,
    pub kv_bytes_per_token: Option<u64>,
    pub kv_source: KvSource,
    pub recurrent_state_bytes: Option<u64>,
    pub prefill_scratch_bytes: u64,
    pub decode_scratch_bytes: u64,
    pub runtime_headroom_bytes: u64,
    pub headroom_factor: Option<f64>,
    pub headroom_source: HeadroomSource,
    pub error_band: f64,
    pub expected_peak_bytes: u64,
    pub peak_phase: Phase,
    pub total_bytes: u64,
    pub known_bytes: u64,
    pub available_bytes: Option<u64>,
    pub available_source: AvailableSource,
    pub system: System,
    pub fits: Option<bool>,
    pub over_budget_bytes: Option<u64>,
    pub verdict: String,
    pub max_context_tokens: Option<u64>,
    pub model_max_context_tokens: Option<u64>,
    pub max_batch: Option<u64>,
    pub max_prefill_chunk: Option<u64>,
    pub binding_term: Term,
    pub context_binding_term: Term,
    pub assumptions: Vec<String>,
    pub kv_modes: Vec<ModeReport>,
}

impl Report {
    /// Sizes `spec` with `weights` for `workload` on `machine`, and solves for the largest workloads that
    /// fit. `model` is the name in the report.
    ///
    /// # Errors
    /// A cache mode that the model cannot take, or sizes beyond 64 bits.
    pub fn new(
        model: &str,
        spec: &ModelSpec,
        weights: &WeightFootprint,
        workload: &Workload,
        machine: &Machine,
    ) -> Result<Self, EstimatorError> {
        let estimate = estimate_total_memory(spec, weights, workload, machine)?;
        let solver = Solver { spec, weights, machine };
        let context = workload.context_tokens();
        let batch = workload.batch();
        let longest = solver.max_context(workload, batch.max(1))?;
        let modes = solver.modes(workload)?;
        let subject = ReportSubject { model, spec, workload, machine };
        Ok(Self {
            parameters: spec.parameters()?,
            max_context_tokens: longest.value,
            context_binding_term: longest.binding_term,
            max_batch: solver.max_batch(workload, context)?.value,
            max_prefill_chunk: solver.max_chunk(workload)?.value,
            kv_modes: modes.iter().map(ModeReport::new).collect(),
            ..subject.report(estimate)
        })
    }

    /// The report for people: a breakdown, a bar, the verdict and what would fit.
    #[must_use]
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// The report for programs.
    ///
    /// # Errors
    /// Errors of the serialiser, which a report does not cause.
    pub fn to_json(&self) -> Result<String, EstimatorError> {
        serde_json::to_string_pretty(self).map_err(|e| EstimatorError::Json {
            document: "the report".to_owned(),
            reason: e.to_string(),
        })
    }
}

/// Subject of a report.
struct ReportSubject<'a> {
    model: &'a str,
    spec: &'a ModelSpec,
    workload: &'a Workload,
    machine: &'a Machine,
}

impl ReportSubject<'_> {
    /// The report without its solutions.
    fn report(&self, estimate: MemoryEstimate) -> Report {
        let Self { model, spec, machine, .. } = *self;
        Report {
            schema: SCHEMA,
            model: model.to_owned(),
            model_type: spec.model_type.clone(),
            text_model_type: spec.text_model_type.clone(),
            architecture: spec.architecture,
            vision: spec.vision.is_some(),
            parameters: None,
            stored_parameters: estimate.weights.stored_parameters,
            inputs: self.inputs(),
            weights_bytes: estimate.weights.bytes,
            weights_source: estimate.weights.source,
            kv_cache_bytes: estimate.kv_cache_bytes,
            kv_scale_bytes: estimate.kv_scale_bytes,
            kv_bytes_per_token: estimate.kv_bytes_per_token,
            kv_source: estimate.kv_source,
            recurrent_state_bytes: estimate.recurrent_state_bytes,
            prefill_scratch_bytes: estimate.prefill_scratch.total(),
            decode_scratch_bytes: estimate.decode_scratch.total(),
            runtime_headroom_bytes: estimate.runtime_headroom_bytes,
            headroom_factor: Some(machine.headroom.factor).filter(|factor| factor.is_finite()),
            headroom_source: machine.headroom.source,
            error_band: machine.headroom.error_band,
            expected_peak_bytes: estimate.expected_peak_bytes,
            peak_phase: estimate.peak_phase,
            total_bytes: estimate.total_bytes,
            known_bytes: estimate.known_bytes,
            available_bytes: machine.available_bytes,
            available_source: machine.available_source,
            system: System { memory_total_bytes: machine.total_bytes },
            fits: estimate.fits,
            over_budget_bytes: estimate.over_budget_bytes(),
            verdict: verdict(&estimate),
            max_context_tokens: None,
            model_max_context_tokens: spec.max_context_tokens,
            max_batch: None,
            max_prefill_chunk: None,
            binding_term: estimate.binding_term,
            context_binding_term: Term::None,
            assumptions: estimate.assumptions,
            kv_modes: Vec::new(),
        }
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            context_tokens: self.workload.context_tokens(),
            batch: self.workload.batch(),
            quant: self.workload.quant,
            cache_type_k: self.workload.kv_storage().keys().name(),
            cache_type_v: self.workload.kv_storage().values().name(),
            dtype: self.workload.dtype,
            prefill_chunk: self.workload.prefill_chunk_tokens,
            backend: self.machine.backend,
        }
    }
}

impl ModeReport {
    fn new(outcome: &ModeOutcome) -> Self {
        Self {
            mode: outcome.mode.name(),
            kv_bytes_per_token: outcome.estimate.kv_bytes_per_token,
            kv_cache_bytes: outcome.estimate.kv_cache_bytes,
            total_bytes: outcome.estimate.total_bytes,
            fits: outcome.estimate.fits,
            max_context_tokens: outcome.max_context_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": true, "max_position_embeddings": 32768}"#;

    fn report(config: &str, available: u64) -> Report {
        let spec = ModelSpec::from_config(config).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        let machine = Machine::new(Backend::Cpu)
            .with_available(available, AvailableSource::WhatIf)
            .with_total(available);
        Report::new("qwen", &spec, &weights, &Workload::uniform(8192, 1), &machine).unwrap()
    }

    #[test]
    fn every_promised_key_is_there() {
        let json: serde_json::Value =
            serde_json::from_str(&report(QWEN, 4 << 30).to_json().unwrap()).unwrap();
        let keys = "schema model model_type architecture vision parameters inputs weights_bytes \
            weights_source kv_cache_bytes kv_scale_bytes kv_bytes_per_token kv_source \
            recurrent_state_bytes prefill_scratch_bytes runtime_headroom_bytes headroom_factor \
            headroom_source expected_peak_bytes peak_phase total_bytes available_bytes \
            available_source system fits max_context_tokens model_max_context_tokens max_batch \
            binding_term assumptions kv_modes stored_parameters";
        for key in keys.split_whitespace() {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["schema"], "mlxcel.inspect/1");
        assert_eq!(json["parameters"], 494_032_768);
        assert_eq!(json["kv_bytes_per_token"], 12_288);
        assert_eq!(json["inputs"]["cache_type_v"], "fp16");
        assert_eq!(json["architecture"], "standard");
        assert_eq!(
            (&json["weights_source"], &json["peak_phase"]),
            (&"config".into(), &"prefill".into())
        );
        assert_eq!(json["kv_modes"].as_array().unwrap().len(), 7);
        assert_eq!(json["kv_modes"][1]["kv_bytes_per_token"], 6_144);
    }

    #[test]
    fn what_is_unknown_is_null() {
        let json: serde_json::Value = serde_json::from_str(
            &report(r#"{"model_type": "martian"}"#, 4 << 30).to_json().unwrap(),
        )
        .unwrap();
        for key in ["parameters", "kv_cache_bytes", "kv_bytes_per_token", "recurrent_state_bytes"] {
            assert!(json[key].is_null(), "{key}");
        }
        assert_eq!(
            (&json["kv_source"], &json["weights_source"]),
            (&"unknown".into(), &"fallback".into())
        );
    }

    #[test]
    fn the_text_names_everything() {
        let text = report(QWEN, 512 << 20).to_text();
        for part in ["942.3 MiB", "96.0 MiB", "12.0 KiB per token", "DOES NOT FIT", "over budget"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let text = report(QWEN, 4 << 30).to_text();
        for part in ["FITS", "tokens of context", "int8+turbo4"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
