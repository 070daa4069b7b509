//! Advice on the KV cache: a mode per range of context, and its effect on this model and machine.

use mlxcel_estimator::{
    Architecture, EstimatorError, KvMode, LayerSpec, LayerState, MemoryEstimate, ModelSpec, Solver,
    Workload,
};
use serde::Serialize;

use crate::measured::{self, Measurements};
use crate::range::ContextRange;
use crate::rules::{self, Recommendation, symmetric_turbo4, takes_turbo};
use crate::weights::estimate;

/// Key of the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Class {
    /// Class of the cache; a hybrid that caches latents counts as `mla`.
    pub architecture: Architecture,
    /// The language part's type if it is allowlisted, else the checkpoint's.
    pub model_type: String,
    /// Elements of a head: of one that takes no turbo mode if there is one, else of the widest.
    pub head_dim: u64,
}

impl Class {
    /// Classifies a model.
    #[must_use]
    pub fn of(spec: &ModelSpec) -> Self {
        let states: Vec<_> = spec.layers.iter().flatten().flat_map(LayerSpec::states).collect();
        let unknown = spec.layers.is_none() || states.contains(&LayerState::Unknown);
        let latent = states.iter().any(|state| matches!(state, LayerState::Latent { .. }));
        let architecture = match spec.architecture {
            _ if unknown => Architecture::Unknown,
            _ if latent => Architecture::Mla,
            architecture => architecture,
        };
        let listed = symmetric_turbo4(&spec.text_model_type).map(|_| &spec.text_model_type);
        let model_type = listed.unwrap_or(&spec.model_type).clone();
        Self { architecture, model_type, head_dim: head_dim(spec) }
    }

    /// The recommendation of the table, overridden by measurements if there are any.
    #[must_use]
    pub fn recommend(
        &self,
        range: ContextRange,
        measurements: Option<&Measurements>,
    ) -> Recommendation {
        let Self { architecture, model_type, head_dim } = self;
        match measurements {
            Some(found) => {
                measured::recommend_measured(*architecture, model_type, *head_dim, range, found)
            }
            None => rules::recommend_kv_cache_mode(*architecture, model_type, *head_dim, range),
        }
    }

    /// Quantised modes that may be offered if memory is short, the least compressed first: symmetric
    /// turbo4 only if it is allowlisted or measured, none that measured badly.
    #[must_use]
    pub fn offered_modes(&self, measurements: Option<&Measurements>) -> Vec<KvMode> {
        let admissible = rules::admissible_modes(self.architecture, self.head_dim);
        admissible.into_iter().rev().filter(|mode| self.may_offer(*mode, measurements)).collect()
    }

    fn may_offer(&self, mode: KvMode, measurements: Option<&Measurements>) -> bool {
        let accepted = measurements.is_some_and(|found| found.accept(mode));
        let rejected = measurements.is_some_and(|found| found.reject(mode));
        let listed = symmetric_turbo4(&self.model_type).is_some();
        mode != KvMode::Fp16 && !rejected && (mode != KvMode::Turbo4 || listed || accepted)
    }
}

/// See [`Class::head_dim`].
fn head_dim(spec: &ModelSpec) -> u64 {
    let states = spec.layers.iter().flatten().flat_map(LayerSpec::states);
    let dims = states.flat_map(|state| match state {
        LayerState::Attention { key_dim, value_dim, .. } => [key_dim, value_dim],
        _ => [0, 0],
    });
    let dims: Vec<u64> = dims.filter(|dim| *dim > 0).collect();
    let awkward = dims.iter().find(|dim| !takes_turbo(**dim));
    awkward.or(dims.iter().max()).copied().unwrap_or(0)
}

/// Figures of a mode at the context of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModeFigures {
    /// The mode.
    #[serde(serialize_with = "crate::json::mode")]
    pub kv_mode: KvMode,
    /// Size of the cache in bytes, scales included; `None` if not known.
    pub cache_bytes: Option<u64>,
    /// Bytes less than in fp16.
    pub saved_bytes: Option<u64>,
    /// Memory that must be available, in bytes.
    pub total_bytes: u64,
    /// The total fits; `None` if the available memory is not known.
    pub fits: Option<bool>,
    /// Longest context that fits into memory, in tokens; `None` if nothing bounds it.
    pub max_context_tokens: Option<u64>,
}

/// The advice for one range of context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RangeAdvice {
    /// The range.
    pub range: ContextRange,
    /// Context at which the range is sized, in tokens.
    pub context_tokens: u64,
    /// The wanted context is in this range.
    pub wanted: bool,
    /// The model was trained for contexts this long; `None` if its configuration does not say.
    pub within_model_limit: Option<bool>,
    /// The mode, the alternative, and why.
    pub recommendation: Recommendation,
    /// The default, for comparison.
    pub fp16: ModeFigures,
    /// The recommended mode.
    pub recommended: ModeFigures,
    /// The alternative.
    pub alternative: Option<ModeFigures>,
}

/// Advises on every range; `workload` has the advised weights.
///
/// # Errors
/// A cache mode that the model cannot take, which the rules exclude.
pub(crate) fn advise(
    solver: &Solver<'_>,
    class: &Class,
    workload: &Workload,
    measurements: Option<&Measurements>,
) -> Result<Vec<RangeAdvice>, EstimatorError> {
    let ranges = ContextRange::ALL.into_iter();
    ranges.map(|range| advise_range(solver, class, workload, range, measurements)).collect()
}

fn advise_range(
    solver: &Solver<'_>,
    class: &Class,
    workload: &Workload,
    range: ContextRange,
    measurements: Option<&Measurements>,
) -> Result<RangeAdvice, EstimatorError> {
    let limit = solver.spec.max_context_tokens;
    let context_tokens = range.example_tokens(workload.context_tokens(), limit);
    let wanted = ContextRange::of(workload.context_tokens()) == range;
    let shaped = workload.with_shape(context_tokens, workload.batch().max(1));
    let workload = if wanted { workload.clone() } else { shaped };
    let recommendation = class.recommend(range, measurements);
    let fp16 = figures(solver, &workload, KvMode::Fp16, None)?;
    let recommended = figures(solver, &workload, recommendation.mode, fp16.cache_bytes)?;
    let alternative = recommendation.alternative;
    let alternative =
        alternative.map(|mode| figures(solver, &workload, mode, fp16.cache_bytes)).transpose()?;
    Ok(RangeAdvice {
        range,
        context_tokens,
        wanted,
        within_model_limit: limit.map(|limit| context_tokens <= limit),
        recommended,
        alternative,
        recommendation,
        fp16,
    })
}

/// Figures of a mode; savings are relative to `fp16_bytes`.
fn figures(
    solver: &Solver<'_>,
    workload: &Workload,
    kv_mode: KvMode,
    fp16_bytes: Option<u64>,
) -> Result<ModeFigures, EstimatorError> {
    let workload = workload.clone().with_kv_mode(kv_mode);
    let estimate = estimate(solver, &workload)?;
    let cache_bytes = cache_bytes(&estimate);
    let compared = fp16_bytes.or(cache_bytes).zip(cache_bytes);
    Ok(ModeFigures {
        kv_mode,
        cache_bytes,
        saved_bytes: compared.map(|(before, after)| before.saturating_sub(after)),
        total_bytes: estimate.total_bytes,
        fits: estimate.fits,
        max_context_tokens: solver.max_context(&workload, workload.batch().max(1))?.value,
    })
}

/// The estimate's cache with its scales.
fn cache_bytes(estimate: &MemoryEstimate) -> Option<u64> {
    let scales = estimate.kv_scale_bytes?;
    estimate.kv_cache_bytes.map(|codes| codes.saturating_add(scales))
}
