//! The weights half: what the checkpoint holds, and the widest weights that fit.
//!
//! Widths are compared, and sizes taken, from the estimator; nothing is computed here.

use mlxcel_estimator::{
    EstimatorError, KvMode, MemoryEstimate, ModelSpec, Solver, WeightFootprint, WeightQuant,
    WeightSource, Workload, estimate_total_memory, format_bytes,
};
use serde::Serialize;

/// The shortest prefill chunk that is still advised, in tokens: below it a prompt is read
/// hardly faster than it would be written.
pub const MIN_CHUNK_TOKENS: u64 = 32;

/// What a checkpoint's weights are stored as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stored {
    /// 16 or 32 bits an element.
    Unquantised,
    /// Codes of fewer bits.
    Quantised {
        /// Bits of most quantised elements, scales not counted.
        bits: u64,
        /// What the format is called; `by_size` where only the headers' sizes show it.
        method: String,
    },
    /// Nobody says.
    Unknown,
}

impl Stored {
    /// Recognises what is stored: by what `config.json` says of its quantisation, and where it
    /// says nothing by the bytes that the quantisable tensors take.
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
        let within =
            |quant| weights.quantisable_bytes <= weights.requantised(quant).quantisable_bytes;
        let known = [(WeightQuant::Int4, 4), (WeightQuant::Int8, 8)];
        let bits = known.into_iter().find(|(quant, _)| within(*quant)).map(|(_, bits)| bits);
        bits.map_or(Self::Unquantised, |bits| Self::Quantised { bits, method: "by_size".into() })
    }

    /// What people call it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Unquantised => "unquantised".to_owned(),
            Self::Quantised { bits, method } => format!("quantised to {bits} bits, {method}"),
            Self::Unknown => "of unknown precision".to_owned(),
        }
    }

    /// What may be advised, the widest first. A quantised checkpoint is never advised upwards:
    /// what it lost does not come back.
    fn ladder(&self, weights: &WeightFootprint) -> Vec<WeightQuant> {
        let bytes = |quant| weights.requantised(quant).bytes;
        let (first, bits) = match self {
            Self::Unquantised => (WeightQuant::Fp16, u64::MAX),
            Self::Quantised { bits, .. } => (WeightQuant::Default, *bits),
            Self::Unknown => return vec![WeightQuant::Default],
        };
        let steps = [(8, WeightQuant::Int8), (4, WeightQuant::Int4)];
        let narrower = steps
            .into_iter()
            .filter(|(step, quant)| *step < bits && bytes(*quant) < bytes(first))
            .map(|(_, quant)| quant);
        std::iter::once(first).chain(narrower).collect()
    }
}

/// One width of weights, sized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// The width; `default` is the checkpoint as it is.
    pub quant: WeightQuant,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// What must be available for the wanted context.
    pub total_bytes: u64,
    /// Whether it fits; `None` where nobody knows what is available.
    pub fits: Option<bool>,
}

/// A cache mode, and whether it makes the wanted context fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Fit {
    /// The weights' width.
    pub quant: WeightQuant,
    /// The cache mode.
    #[serde(serialize_with = "crate::json::mode")]
    pub kv_mode: KvMode,
    /// What must be available for the wanted context.
    pub total_bytes: u64,
    /// Whether it fits.
    pub fits: Option<bool>,
    /// The longest context, in tokens.
    pub max_context_tokens: Option<u64>,
}

/// What would fit where the narrowest weights do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WouldFit {
    /// The longest context, everything else as wanted; 0 where none.
    pub max_context_tokens: Option<u64>,
    /// A smaller prefill chunk that suffices, where one does.
    pub prefill_chunk_tokens: Option<u64>,
    /// The cache modes that may be advised, the least compressed first.
    pub kv_modes: Vec<Fit>,
}

/// The advice about weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WeightAdvice {
    /// What the checkpoint holds.
    pub stored: Stored,
    /// What is advised; `default` means the checkpoint as it is.
    pub quant: WeightQuant,
    /// One sentence.
    pub reason: String,
    /// Every width that was considered, the widest first.
    pub considered: Vec<Step>,
    /// Wider weights that fit with a smaller cache.
    pub wider_with_smaller_cache: Vec<Fit>,
    /// What would fit, where what is advised does not.
    pub would_fit: Option<WouldFit>,
}

/// The widest weights that make `workload` fit. `modes` are the cache modes that may be offered
/// instead of narrower weights, the least compressed first.
///
/// # Errors
/// A cache mode that the model cannot take.
pub(crate) fn advise(
    solver: &Solver<'_>,
    workload: &Workload,
    modes: &[KvMode],
) -> Result<WeightAdvice, EstimatorError> {
    let stored = Stored::of(solver.spec, solver.weights);
    let ladder = stored.ladder(solver.weights);
    let considered: Vec<Step> =
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
        wider_with_smaller_cache: trades(solver, workload, &wider, modes)?,
        would_fit,
    })
}

/// The first that fits; the first of all where nobody knows; the last where none does.
fn choose(considered: &[Step]) -> Option<&Step> {
    let possible = considered.iter().find(|step| step.fits != Some(false));
    possible.or(considered.last())
}

fn step(
    solver: &Solver<'_>,
    workload: &Workload,
    quant: WeightQuant,
) -> Result<Step, EstimatorError> {
    let estimate = estimate(solver, &workload.clone().with_quant(quant))?;
    let MemoryEstimate { total_bytes, fits, .. } = estimate;
    Ok(Step { quant, weights_bytes: estimate.weights.bytes, total_bytes, fits })
}

pub(crate) fn estimate(
    solver: &Solver<'_>,
    workload: &Workload,
) -> Result<MemoryEstimate, EstimatorError> {
    estimate_total_memory(solver.spec, solver.weights, workload, solver.machine)
}

/// `workload` in another mode.
fn fit(solver: &Solver<'_>, workload: &Workload, mode: KvMode) -> Result<Fit, EstimatorError> {
    let workload = workload.clone().with_kv_mode(mode);
    let estimate = estimate(solver, &workload)?;
    Ok(Fit {
        quant: workload.quant,
        kv_mode: mode,
        total_bytes: estimate.total_bytes,
        fits: estimate.fits,
        max_context_tokens: solver.max_context(&workload, workload.batch().max(1))?.value,
    })
}

/// For each wider width, the first mode with which it fits.
fn trades(
    solver: &Solver<'_>,
    workload: &Workload,
    wider: &[WeightQuant],
    modes: &[KvMode],
) -> Result<Vec<Fit>, EstimatorError> {
    let mut trades = Vec::new();
    for quant in wider {
        let workload = workload.clone().with_quant(*quant);
        for mode in modes {
            let fit = fit(solver, &workload, *mode)?;
            if fit.fits == Some(true) {
                trades.push(fit);
                break;
            }
        }
    }
    Ok(trades)
}

fn would_fit(
    solver: &Solver<'_>,
    workload: &Workload,
    modes: &[KvMode],
) -> Result<WouldFit, EstimatorError> {
    let chunk = solver.max_chunk(workload)?.value;
    let kv_modes = modes.iter().map(|mode| fit(solver, workload, *mode));
    Ok(WouldFit {
        max_context_tokens: solver.max_context(workload, workload.batch().max(1))?.value,
        prefill_chunk_tokens: chunk.filter(|tokens| *tokens >= MIN_CHUNK_TOKENS),
        kv_modes: kv_modes.collect::<Result<_, _>>()?,
    })
}

/// One sentence about the width that was chosen.
fn reason(stored: &Stored, quant: WeightQuant, fits: Option<bool>, workload: &Workload) -> String {
    let context = format!("{} tokens × {}", workload.context_tokens(), workload.batch());
    let kept = quant == WeightQuant::Default;
    let name = quant.name();
    match (stored, fits) {
        (Stored::Unknown, _) => {
            "the weights' precision is not known, so no other can be advised".to_owned()
        }
        (_, None) => "the available memory is not known, so nothing narrower is advised".to_owned(),
        (_, Some(true)) if kept => {
            format!("{} already, it fits {context} as it is", stored.describe())
        }
        (Stored::Quantised { .. }, Some(true)) => format!(
            "as it is it does not fit {context}, {name} does; quantise the original weights, not these"
        ),
        (_, Some(true)) => format!("the widest weights that fit {context}"),
        (_, Some(false)) if kept => {
            format!(
                "{} already, it does not fit {context}, and nothing narrower is advised",
                stored.describe()
            )
        }
        (Stored::Quantised { .. }, Some(false)) => format!(
            "the last resort: not even {name} fits {context}; quantise the original weights, not these"
        ),
        (_, Some(false)) => format!("the last resort: not even {name} fits {context}"),
    }
}

impl Step {
    /// The step as a line for people.
    pub(crate) fn line(&self) -> String {
        let name = if self.quant == WeightQuant::Default { "as it is" } else { self.quant.name() };
        let fits = match self.fits {
            Some(true) => "fits",
            Some(false) => "does not fit",
            None => "unknown whether it fits",
        };
        let (weights, total) = (format_bytes(self.weights_bytes), format_bytes(self.total_bytes));
        format!("{name:<9}{weights:>12} of weights, {total:>10} in all: {fits}")
    }
}
