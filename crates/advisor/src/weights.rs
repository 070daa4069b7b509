//! Advice on weights: the precision that the checkpoint holds, and the widest weights that fit.
//!
//! All sizes come from the estimator; none is computed here.

use mlxcel_estimator::{
    EstimatorError, KvMode, MemoryEstimate, ModelSpec, Solver, WeightFootprint, WeightQuant,
    WeightSource, Workload, estimate_total_memory, format_bytes,
};
use serde::Serialize;

/// Shortest prefill chunk that is advised, in tokens: below it prefill is hardly faster than decode.
pub const MIN_CHUNK_TOKENS: u64 = 32;

/// Stored precision of a checkpoint's weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoredPrecision {
    /// 16 or 32 bits an element.
    Unquantised,
    /// Codes of fewer bits.
    Quantised {
        /// Bits of most quantised elements, scales not counted.
        bits: u64,
        /// Name of the format; `by_size` if only the sizes in the headers show it.
        method: String,
    },
    /// Not known.
    Unknown,
}

impl StoredPrecision {
    /// Recognises the stored precision by the quantisation that `config.json` states, or else by the
    /// bytes of the quantisable tensors.
    #[must_use]
    pub fn of(spec: &ModelSpec, weights: &WeightFootprint) -> Self {
        if let Some(quantization) = &spec.quantization {
            let method = quantization.method.clone();
            return Self::Quantised { bits: quantization.format.bits, method };
        }
        let guessed = matches!(weights.source, WeightSource::Fallback | WeightSource::Stated);
        if guessed {
            return Self::Unknown;
        }
        if weights.quantisable_elements == 0 {
            return Self::Unquantised;
        }
        let known = [(WeightQuant::Int4, 4), (WeightQuant::Int8, 8)];
        let within = known.into_iter().find(|(quant, _)| {
            weights.quantisable_bytes <= weights.requantised(*quant).quantisable_bytes
        });
        match within {
            Some((_, bits)) => Self::Quantised { bits, method: "by_size".into() },
            None => Self::Unquantised,
        }
    }

    /// Describes the precision in text.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Unquantised => "unquantised".to_owned(),
            Self::Quantised { bits, method } => format!("quantised to {bits} bits, {method}"),
            Self::Unknown => "of unknown precision".to_owned(),
        }
    }

    /// Widths that may be advised, the widest first. A quantised checkpoint is never widened: lost
    /// precision does not come back.
    fn ladder(&self, weights: &WeightFootprint) -> Vec<WeightQuant> {
        let (first, bits) = match self {
            Self::Unquantised => (WeightQuant::Fp16, u64::MAX),
            Self::Quantised { bits, .. } => (WeightQuant::Default, *bits),
            Self::Unknown => return vec![WeightQuant::Default],
        };
        let steps = [(8, WeightQuant::Int8), (4, WeightQuant::Int4)];
        let first_bytes = weights.requantised(first).bytes;
        let narrower = steps
            .into_iter()
            .filter(|(step, quant)| *step < bits && weights.requantised(*quant).bytes < first_bytes)
            .map(|(_, quant)| quant);
        std::iter::once(first).chain(narrower).collect()
    }
}

/// Figures of one width of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WidthFigures {
    /// The width; `default` is the unchanged checkpoint.
    pub quant: WeightQuant,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Memory that must be available for the wanted context, in bytes.
    pub total_bytes: u64,
    /// The total fits; `None` if the available memory is not known.
    pub fits: Option<bool>,
}

/// Fit of the wanted context with a cache mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ModeFit {
    /// The weights' width.
    pub quant: WeightQuant,
    /// The cache mode.
    #[serde(serialize_with = "crate::json::mode")]
    pub kv_mode: KvMode,
    /// Memory that must be available for the wanted context, in bytes.
    pub total_bytes: u64,
    /// The total fits; `None` if the available memory is not known.
    pub fits: Option<bool>,
    /// The longest context, in tokens.
    pub max_context_tokens: Option<u64>,
}

/// Changes that fit if the narrowest weights do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Alternatives {
    /// Longest context with everything else as wanted, in tokens; 0 if none fits.
    pub max_context_tokens: Option<u64>,
    /// A smaller prefill chunk that fits, in tokens, if there is one.
    pub prefill_chunk_tokens: Option<u64>,
    /// Cache modes that may be advised, the least compressed first.
    pub kv_modes: Vec<ModeFit>,
}

/// The advice about weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WeightAdvice {
    /// Precision of the checkpoint.
    pub stored: StoredPrecision,
    /// Advised width; `default` is the unchanged checkpoint.
    pub quant: WeightQuant,
    /// One sentence.
    pub reason: String,
    /// Widths that were considered, the widest first.
    pub considered: Vec<WidthFigures>,
    /// Wider weights that fit with a smaller cache.
    pub wider_with_smaller_cache: Vec<ModeFit>,
    /// Changes that fit, if the advised width does not.
    pub would_fit: Option<Alternatives>,
}

/// Advises the widest weights that make `workload` fit. `modes` are the cache modes that may be
/// offered instead of narrower weights, the least compressed first.
///
/// # Errors
/// A cache mode that the model cannot take.
pub(crate) fn advise(
    solver: &Solver<'_>,
    workload: &Workload,
    modes: &[KvMode],
) -> Result<WeightAdvice, EstimatorError> {
    let stored = StoredPrecision::of(solver.spec, solver.weights);
    let ladder = stored.ladder(solver.weights);
    let considered: Vec<WidthFigures> =
        ladder.iter().map(|quant| step(solver, workload, *quant)).collect::<Result<_, _>>()?;
    let chosen = choose(&considered);
    let quant = chosen.map_or(WeightQuant::Default, |step| step.quant);
    let fits = chosen.and_then(|step| step.fits);
    let wider: Vec<_> = ladder.into_iter().take_while(|wider| *wider != quant).collect();
    let wanted = workload.clone().with_quant(quant);
    let would_fit = (fits == Some(false)).then(|| would_fit(solver, &wanted, modes)).transpose()?;
    Ok(WeightAdvice {
        reason: reason(&stored, quant, fits, workload),
        stored,
        quant,
        considered,
        wider_with_smaller_cache: wider_with_smaller_cache(solver, workload, &wider, modes)?,
        would_fit,
    })
}

/// The first width that fits; the first of all if the memory is not known; the last if none fits.
fn choose(considered: &[WidthFigures]) -> Option<&WidthFigures> {
    let possible = considered.iter().find(|step| step.fits != Some(false));
    possible.or(considered.last())
}

fn step(
    solver: &Solver<'_>,
    workload: &Workload,
    quant: WeightQuant,
) -> Result<WidthFigures, EstimatorError> {
    let estimate = estimate(solver, &workload.clone().with_quant(quant))?;
    let MemoryEstimate { total_bytes, fits, .. } = estimate;
    Ok(WidthFigures { quant, weights_bytes: estimate.weights.bytes, total_bytes, fits })
}

pub(crate) fn estimate(
    solver: &Solver<'_>,
    workload: &Workload,
) -> Result<MemoryEstimate, EstimatorError> {
    estimate_total_memory(solver.spec, solver.weights, workload, solver.machine)
}

/// Fit of `workload` in another cache mode.
fn fit(solver: &Solver<'_>, workload: &Workload, mode: KvMode) -> Result<ModeFit, EstimatorError> {
    let workload = workload.clone().with_kv_mode(mode);
    let estimate = estimate(solver, &workload)?;
    Ok(ModeFit {
        quant: workload.quant,
        kv_mode: mode,
        total_bytes: estimate.total_bytes,
        fits: estimate.fits,
        max_context_tokens: solver.max_context(&workload, workload.batch().max(1))?.value,
    })
}

/// The first mode with which each wider width fits.
fn wider_with_smaller_cache(
    solver: &Solver<'_>,
    workload: &Workload,
    wider: &[WeightQuant],
    modes: &[KvMode],
) -> Result<Vec<ModeFit>, EstimatorError> {
    let mut fitting = Vec::new();
    for quant in wider {
        let workload = workload.clone().with_quant(*quant);
        for mode in modes {
            let fit = fit(solver, &workload, *mode)?;
            if fit.fits == Some(true) {
                fitting.push(fit);
                break;
            }
        }
    }
    Ok(fitting)
}

fn would_fit(
    solver: &Solver<'_>,
    workload: &Workload,
    modes: &[KvMode],
) -> Result<Alternatives, EstimatorError> {
    let chunk = solver.max_chunk(workload)?.value;
    let kv_modes = modes.iter().map(|mode| fit(solver, workload, *mode));
    Ok(Alternatives {
        max_context_tokens: solver.max_context(workload, workload.batch().max(1))?.value,
        prefill_chunk_tokens: chunk.filter(|tokens| *tokens >= MIN_CHUNK_TOKENS),
        kv_modes: kv_modes.collect::<Result<_, _>>()?,
    })
}

/// One sentence about the width that was chosen.
fn reason(
    stored: &StoredPrecision,
    quant: WeightQuant,
    fits: Option<bool>,
    workload: &Workload,
) -> String {
    let context = format!("{} tokens × {}", workload.context_tokens(), workload.batch());
    let unchanged = quant == WeightQuant::Default;
    let name = quant.name();
    match (stored, fits) {
        (StoredPrecision::Unknown, _) => {
            "the weights' precision is not known, so no other can be advised".to_owned()
        }
        (_, None) => "the available memory is not known, so nothing narrower is advised".to_owned(),
        (_, Some(true)) if unchanged => {
            format!("{} already, it fits {context} as it is", stored.describe())
        }
        (StoredPrecision::Quantised { .. }, Some(true)) => format!(
            "as it is it does not fit {context}, {name} does; quantise the original weights, not these"
        ),
        (_, Some(true)) => format!("the widest weights that fit {context}"),
        (_, Some(false)) if unchanged => {
            format!(
                "{} already, it does not fit {context}, and nothing narrower is advised",
                stored.describe()
            )
        }
        (StoredPrecision::Quantised { .. }, Some(false)) => format!(
            "the last resort: not even {name} fits {context}; quantise the original weights, not these"
        ),
        (_, Some(false)) => format!("the last resort: not even {name} fits {context}"),
    }
}

impl WidthFigures {
    /// Formats the figures as a line of text.
    pub(crate) fn line(&self) -> String {
        let name = if self.quant == WeightQuant::Default { "as it is" } else { self.quant.name() };
        let fits = match self.fits {
            Some(true) => "fits",
            Some(false) => "does not fit",
            None => "unknown whether it fits",
        };
        let weights = format_bytes(self.weights_bytes);
        let total = format_bytes(self.total_bytes);
        format!("{name:<9}{weights:>12} of weights, {total:>10} in all: {fits}")
    }
}
