//! The estimate: one number for every caller, with the source of each of its parts.
//!
//! `expected_peak = weights + kv + scales + state + scratch of the worst phase`;
//! `total = max(weights + kv + scales + state + headroom, expected_peak × (1 + band))`.
//! The first form is the ordinary case, the second keeps a margin where scratch dominates. The
//! process as it was before the load is in neither. Sums saturate at `u64::MAX`, which fits
//! nowhere.

use std::path::Path;

use crate::cache::{CacheBytes, CacheLayout};
use crate::error::EstimatorError;
use crate::headers::Checkpoint;
use crate::kv::ComputeDtype;
use crate::machine::{KernelSet, Machine};
use crate::scratch::{Phase, Scratch, Step, scratch};
use crate::spec::{LayerState, ModelSpec};
use crate::weights::{WeightFootprint, WeightSource};
use crate::workload::Workload;

/// Allowance for a cache of unknown layout.
pub const UNKNOWN_CACHE_BYTES: u64 = 2 << 30;

/// Bytes of an fp32 element.
const SINGLE: u64 = 4;

/// Source of the cache's size. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KvSource {
    /// From the layers that `config.json` describes.
    Config,
    /// Not known: a flat 2 GiB is assumed.
    Unknown,
}

/// A part of the total. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Term {
    /// The weights.
    Weights,
    /// Keys and values with their scales.
    KvCache,
    /// Recurrent state.
    RecurrentState,
    /// Peak transient memory of a prefill step.
    PrefillScratch,
    /// Reserve for the runtime.
    RuntimeHeadroom,
    /// Nothing grows, or nothing is known.
    None,
}

/// Memory that a model needs for a workload on a machine, in bytes unless named otherwise. A part
/// that cannot be known is `None`, with the reason in `assumptions`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The weights, after `--quant`.
    pub weights: WeightFootprint,
    /// Keys and values at rest, scales excluded.
    pub kv_cache_bytes: Option<u64>,
    /// Their scales.
    pub kv_scale_bytes: Option<u64>,
    /// One sequence's growth with a token in the long run, scales excluded.
    pub kv_bytes_per_token: Option<u64>,
    /// Source of the cache's size.
    pub kv_source: KvSource,
    /// Recurrent state.
    pub recurrent_state_bytes: Option<u64>,
    /// Peak transient memory of the largest prefill step.
    pub prefill_scratch: Scratch,
    /// Peak transient memory of a decode step.
    pub decode_scratch: Scratch,
    /// Peak transient memory of the image encoder; 0 if the workload has no images.
    pub vision_bytes: u64,
    /// Reserve for the runtime.
    pub runtime_headroom_bytes: u64,
    /// Peak of the worse phase.
    pub expected_peak_bytes: u64,
    /// Phase in which the peak occurs.
    pub peak_phase: Phase,
    /// Memory that must be available.
    pub total_bytes: u64,
    /// Total without the parts that are only assumed.
    pub known_bytes: u64,
    /// Memory that is available; `None` if not known.
    pub available_bytes: Option<u64>,
    /// `total_bytes` fits into `available_bytes`; `None` if that is not known.
    pub fits: Option<bool>,
    /// The largest part of the total.
    pub binding_term: Term,
    /// Assumptions that were made, a sentence each.
    pub assumptions: Vec<String>,
}

impl MemoryEstimate {
    /// Bytes beyond the available memory; `None` if the model fits or that memory is not known.
    #[must_use]
    pub fn over_budget_bytes(&self) -> Option<u64> {
        self.total_bytes.checked_sub(self.available_bytes?).filter(|over| *over > 0)
    }

    /// Reports whether a preflight must refuse: the *known* part alone does not fit. Assumptions never
    /// refuse.
    #[must_use]
    pub fn must_refuse(&self) -> bool {
        self.available_bytes.is_some_and(|available| self.known_bytes > available)
    }
}

/// Estimates the memory of `spec` with `weights` for `workload` on `machine`.
///
/// # Errors
/// A cache mode that the model's layers cannot take.
pub fn estimate_total_memory(
    spec: &ModelSpec,
    weights: &WeightFootprint,
    workload: &Workload,
    machine: &Machine,
) -> Result<MemoryEstimate, EstimatorError> {
    let parts = EstimateParts::new(spec, weights, workload, machine)?;
    let total_bytes = parts.total(machine, Assumed::Included);
    let (peak_phase, expected_peak_bytes) = parts.peak(Assumed::Included);
    let known = parts.known;
    Ok(MemoryEstimate {
        kv_cache_bytes: known.then_some(parts.rest.kv.code_bytes),
        kv_scale_bytes: known.then_some(parts.rest.kv.scale_bytes),
        kv_bytes_per_token: parts.per_token,
        kv_source: if known { KvSource::Config } else { KvSource::Unknown },
        recurrent_state_bytes: known.then_some(parts.rest.state_bytes),
        prefill_scratch: parts.prefill_scratch,
        decode_scratch: parts.decode_scratch,
        vision_bytes: parts.vision_bytes,
        runtime_headroom_bytes: parts.headroom(machine, Assumed::Included),
        expected_peak_bytes,
        peak_phase,
        total_bytes,
        known_bytes: parts.total(machine, Assumed::Excluded),
        available_bytes: machine.available_bytes,
        fits: machine.available_bytes.map(|available| total_bytes <= available),
        binding_term: parts.largest(machine),
        assumptions: assumptions(spec, &parts, workload, machine),
        weights: parts.weights,
    })
}

/// Sizes the model in `dir` for `workload` on `machine`: the entry point for embedders. `dir` may also
/// be the path of a `config.json`.
///
/// # Errors
/// A folder without a readable `config.json`, or files that contradict it.
pub fn estimate_dir(
    dir: &Path,
    workload: &Workload,
    machine: &Machine,
) -> Result<MemoryEstimate, EstimatorError> {
    let (spec, weights) = read_dir(dir)?;
    estimate_total_memory(&spec, &weights, workload, machine)
}

/// Reads the model in `dir`, a folder or the path of its `config.json`, as [`estimate_dir`] does. No
/// tensor is read.
///
/// # Errors
/// Same as [`estimate_dir`].
pub fn read_dir(dir: &Path) -> Result<(ModelSpec, WeightFootprint), EstimatorError> {
    let config = if dir.is_dir() { dir.join("config.json") } else { dir.to_owned() };
    let text = std::fs::read_to_string(&config)
        .map_err(|source| EstimatorError::Io { path: config.clone(), source })?;
    let folder = config.parent().unwrap_or(Path::new("."));
    let (spec, checkpoint) = join(|| ModelSpec::from_config(&text), || Checkpoint::find(folder));
    let spec = spec?;
    let weights = match checkpoint? {
        Some(checkpoint) => WeightFootprint::from_headers(&checkpoint, &spec),
        None => WeightFootprint::analytical(&spec)?,
    };
    Ok((spec, weights))
}

/// Runs `other` on a second thread while `first` runs, or after it if no thread can be started. For a
/// hundred shards, reading the index takes as long as listing the architecture's tensors.
fn join<A, B: Send>(first: impl FnOnce() -> A, other: impl Fn() -> B + Sync) -> (A, B) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, &other);
        let left = first();
        let right = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => other(),
        };
        (left, right)
    })
}

/// Selects whether sizes that are only assumed are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Assumed {
    Included,
    Excluded,
}

/// The parts of an estimate before they are added up.
struct EstimateParts {
    weights: WeightFootprint,
    cache: CacheLayout,
    /// The cache layout is known.
    known: bool,
    rest: CacheBytes,
    prefilling: CacheBytes,
    per_token: Option<u64>,
    prefill_scratch: Scratch,
    decode_scratch: Scratch,
    vision_bytes: u64,
}

impl EstimateParts {
    fn new(
        spec: &ModelSpec,
        weights: &WeightFootprint,
        workload: &Workload,
        machine: &Machine,
    ) -> Result<Self, EstimatorError> {
        let layers = spec.layers.as_deref().unwrap_or_default();
        let cache = CacheLayout::new(layers);
        let unknown = cache.states().any(|state| *state == LayerState::Unknown);
        let known = spec.layers.is_some() && !unknown;
        let held = loaded_weights(weights, workload, machine);
        let workload = &in_compute_dtype(spec, weights, workload, machine);
        let elem_bytes = workload.dtype.float_bytes();
        let context = workload.context_tokens();
        let keys = context.max(workload.cross_tokens());
        let copies = cache.largest_copies(workload, elem_bytes)?;
        let prefill = Step {
            phase: Phase::Prefill,
            queries: workload.prefill_chunk_tokens.min(longest_prompt(workload)),
            keys,
            sequences: 1,
        };
        let decode = Step { phase: Phase::Decode, queries: 1, keys, sequences: workload.batch() };
        let per_token = cache.bytes_per_token(workload.kv_storage())?;
        Ok(Self {
            weights: held,
            known,
            rest: cache.bytes(workload, Phase::Decode)?,
            prefilling: cache.bytes(workload, Phase::Prefill)?,
            cache,
            per_token: known.then_some(per_token),
            prefill_scratch: scratch(&spec.widths, &prefill, machine, elem_bytes, &copies),
            decode_scratch: scratch(&spec.widths, &decode, machine, elem_bytes, &copies),
            vision_bytes: vision_bytes(spec, workload, machine.kernels),
        })
    }

    fn weight_bytes(&self, assumed: Assumed) -> u64 {
        let guessed = self.weights.source == WeightSource::Fallback;
        if guessed && assumed == Assumed::Excluded { 0 } else { self.weights.bytes }
    }

    fn allowance(&self, assumed: Assumed) -> u64 {
        if self.known || assumed == Assumed::Excluded { 0 } else { UNKNOWN_CACHE_BYTES }
    }

    /// Weights, cache and state at rest.
    fn resident(&self, cache: &CacheBytes, assumed: Assumed) -> u64 {
        let parts = [cache.kv.total(), cache.state_bytes, self.allowance(assumed)];
        parts.into_iter().fold(self.weight_bytes(assumed), u64::saturating_add)
    }

    fn headroom(&self, machine: &Machine, assumed: Assumed) -> u64 {
        let kv = self.rest.kv.code_bytes.saturating_add(self.allowance(assumed));
        machine.headroom.bytes(self.weight_bytes(assumed).saturating_add(kv))
    }

    fn peak(&self, assumed: Assumed) -> (Phase, u64) {
        let prefill = self.prefill_scratch.total().max(self.vision_bytes);
        let prefill = self.resident(&self.prefilling, assumed).saturating_add(prefill);
        let decode = self.decode_scratch.total();
        let decode = self.resident(&self.rest, assumed).saturating_add(decode);
        if decode > prefill { (Phase::Decode, decode) } else { (Phase::Prefill, prefill) }
    }

    fn total(&self, machine: &Machine, assumed: Assumed) -> u64 {
        let plain = self.resident(&self.rest, assumed);
        let plain = plain.saturating_add(self.headroom(machine, assumed));
        plain.max(machine.headroom.banded(self.peak(assumed).1))
    }

    /// The largest part of the total, of those that the larger form of it counts.
    fn largest(&self, machine: &Machine) -> Term {
        let headroom = self.headroom(machine, Assumed::Included);
        let plain = self.resident(&self.rest, Assumed::Included).saturating_add(headroom);
        let by_peak = self.total(machine, Assumed::Included) > plain;
        let kv = self.rest.kv.total().saturating_add(self.allowance(Assumed::Included));
        let last = if by_peak {
            (Term::PrefillScratch, self.prefill_scratch.total())
        } else {
            (Term::RuntimeHeadroom, headroom)
        };
        let terms = [
            last,
            (Term::RecurrentState, self.rest.state_bytes),
            (Term::KvCache, kv),
            (Term::Weights, self.weights.bytes),
        ];
        terms.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Term::None, |(term, _)| term)
    }
}

/// Sets the type that `workload` is computed in: MLX's kernels compute and cache in the type of the
/// checkpoint, which may be fp32. Host kernels cache in half precision unless fp32 is requested.
fn in_compute_dtype(
    spec: &ModelSpec,
    weights: &WeightFootprint,
    workload: &Workload,
    machine: &Machine,
) -> Workload {
    let stored = weights.requantised(workload.quant).float_bytes.unwrap_or(spec.elem_bytes);
    let single = machine.kernels == KernelSet::Mlx && stored == SINGLE;
    let dtype = if single { ComputeDtype::Fp32 } else { workload.dtype };
    workload.clone().with_dtype(dtype)
}

/// The weights as they are loaded: MLX's kernels widen 16-bit floats to 32 bits if fp32 is requested,
/// host kernels read any type.
fn loaded_weights(
    weights: &WeightFootprint,
    workload: &Workload,
    machine: &Machine,
) -> WeightFootprint {
    let weights = weights.requantised(workload.quant);
    let widened = machine.kernels == KernelSet::Mlx && workload.dtype == ComputeDtype::Fp32;
    if widened { weights.widened() } else { weights }
}

/// Transient bytes of images: the encoder, one image at a time, and the rows that wait for
/// cross-attention until all images of a sequence are encoded and are then joined.
fn vision_bytes(spec: &ModelSpec, workload: &Workload, kernels: KernelSet) -> u64 {
    let image = workload.largest_image();
    let encoder = spec.vision.filter(|_| image > 0);
    let encoder = encoder.map_or(0, |vision| vision.image_bytes(image, kernels));
    let single = kernels == KernelSet::Host || workload.dtype == ComputeDtype::Fp32;
    let elem_bytes = if single { SINGLE } else { spec.elem_bytes };
    let row = spec.hidden_size.saturating_mul(elem_bytes);
    let waiting = workload.cross_tokens().saturating_mul(row);
    encoder.max(waiting).saturating_add(waiting)
}

/// New tokens of the longest prompt.
fn longest_prompt(workload: &Workload) -> u64 {
    let counted = workload.sequences.iter().filter(|s| s.count > 0);
    counted.map(|s| s.new_tokens.saturating_add(s.image_tokens)).max().unwrap_or(0)
}

fn assumptions(
    spec: &ModelSpec,
    parts: &EstimateParts,
    workload: &Workload,
    machine: &Machine,
) -> Vec<String> {
    let mut list = spec.assumptions.clone();
    list.extend(parts.weights.assumptions.iter().cloned());
    if !parts.known {
        list.push("the cache's size is unknown: a flat 2 GiB is counted".to_owned());
    }
    if parts
        .cache
        .states()
        .any(|state| matches!(state, LayerState::Indexer { .. } | LayerState::Compressed { .. }))
    {
        list.push(
            "indexer keys and compressed memories are in the cache's bytes, not in its bytes per token"
                .to_owned(),
        );
    }
    let cross = parts.cache.states().any(|state| matches!(state, LayerState::Cross { .. }));
    if cross && workload.cross_tokens() == 0 {
        list.push("no image is counted: its keys and values would come on top".to_owned());
    }
    if in_compute_dtype(spec, &parts.weights, workload, machine).dtype != workload.dtype {
        list.push("the checkpoint is in fp32, and MLX's kernels cache in its type".to_owned());
    }
    if machine.available_bytes.is_none() {
        list.push("the available memory is unknown".to_owned());
    }
    list.extend(machine.headroom.warning());
    list
}
