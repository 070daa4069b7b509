//! The inverse of the estimate: the largest workload that fits, and the part that limits it.
//!
//! Every solution is a binary search over the estimate, so that the two cannot disagree: the solution
//! fits, and one more does not.

use crate::error::EstimatorError;
use crate::estimate::{MemoryEstimate, Term, estimate_total_memory};
use crate::kv::{KV_BLOCK_TOKENS, KvMode};
use crate::machine::Machine;
use crate::spec::ModelSpec;
use crate::weights::{WeightFootprint, WeightQuant};
use crate::workload::Workload;

/// Upper end of the search: a workload of this size that fits counts as unbounded.
const UNBOUNDED: u64 = 1 << 40;

/// The largest number that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solution {
    /// The number: 0 if not even one fits, `None` if it is unbounded (nothing grows, or the available
    /// memory is not known).
    pub value: Option<u64>,
    /// Term that grows most with one more.
    pub binding_term: Term,
}

/// The outcome of a cache mode.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeOutcome {
    /// The mode.
    pub mode: KvMode,
    /// The estimate with it.
    pub estimate: MemoryEstimate,
    /// The longest context with it, at the workload's batch.
    pub max_context_tokens: Option<u64>,
}

/// Solves for the largest workloads of a model on a machine.
#[derive(Debug, Clone, Copy)]
pub struct Solver<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// Its weights.
    pub weights: &'a WeightFootprint,
    /// The machine.
    pub machine: &'a Machine,
}

impl Solver<'_> {
    /// The longest context of `batch` equal sequences, with `workload`'s mode, chunk and
    /// quantisation. Only memory limits it: the model's own limit is not applied.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub fn max_context(&self, workload: &Workload, batch: u64) -> Result<Solution, EstimatorError> {
        self.largest(&|context| workload.with_shape(context, batch), KV_BLOCK_TOKENS)
    }

    /// The most sequences of `context_tokens` tokens each.
    ///
    /// # Errors
    /// Same as [`Self::max_context`].
    pub fn max_batch(&self, workload: &Workload, context: u64) -> Result<Solution, EstimatorError> {
        self.largest(&|batch| workload.with_shape(context, batch), 1)
    }

    /// The largest prefill chunk. A chunk longer than the prompt changes nothing, so a workload
    /// that fits with its whole prompt as one chunk is unbounded.
    ///
    /// # Errors
    /// Same as [`Self::max_context`].
    pub fn max_chunk(&self, workload: &Workload) -> Result<Solution, EstimatorError> {
        self.largest(&|chunk| workload.clone().with_prefill_chunk(chunk), KV_BLOCK_TOKENS)
    }

    /// The outcome of every cache mode that the model can take, for `workload`.
    ///
    /// # Errors
    /// None of its own; a mode that the model cannot take is left out.
    pub fn modes(&self, workload: &Workload) -> Result<Vec<ModeOutcome>, EstimatorError> {
        let mut outcomes = Vec::new();
        for mode in KvMode::ALL {
            let workload = workload.clone().with_kv_mode(mode);
            let Ok(estimate) = self.estimate(&workload) else { continue };
            let max_context_tokens = self.max_context(&workload, workload.batch().max(1))?.value;
            outcomes.push(ModeOutcome { mode, estimate, max_context_tokens });
        }
        Ok(outcomes)
    }

    /// The widest weights of fp16, int8 and int4 that make `workload` fit.
    ///
    /// # Errors
    /// Same as [`Self::max_context`].
    pub fn fitting_quant(
        &self,
        workload: &Workload,
    ) -> Result<Option<WeightQuant>, EstimatorError> {
        for quant in [WeightQuant::Fp16, WeightQuant::Int8, WeightQuant::Int4] {
            if self.estimate(&workload.clone().with_quant(quant))?.fits == Some(true) {
                return Ok(Some(quant));
            }
        }
        Ok(None)
    }

    fn estimate(&self, workload: &Workload) -> Result<MemoryEstimate, EstimatorError> {
        estimate_total_memory(self.spec, self.weights, workload, self.machine)
    }

    /// The largest `n` whose workload fits; `step` more is compared to find what binds.
    fn largest(
        &self,
        workload: &dyn Fn(u64) -> Workload,
        step: u64,
    ) -> Result<Solution, EstimatorError> {
        if self.estimate(&workload(UNBOUNDED))?.fits != Some(false) {
            return Ok(Solution { value: None, binding_term: Term::None });
        }
        let mut low = 0;
        let mut high = UNBOUNDED;
        while high.saturating_sub(low) > 1 {
            let middle = low.midpoint(high);
            let fits = self.estimate(&workload(middle))?.fits == Some(true);
            if fits { low = middle } else { high = middle }
        }
        let binding_term = self.grows_most(&workload(low), &workload(low.saturating_add(step)))?;
        Ok(Solution { value: Some(low), binding_term })
    }

    /// The term that grows most between two workloads; the weights where the first does not fit.
    fn grows_most(&self, before: &Workload, after: &Workload) -> Result<Term, EstimatorError> {
        let before = self.estimate(before)?;
        let after = self.estimate(after)?;
        if before.fits == Some(false) {
            return Ok(before.binding_term);
        }
        let sizes = growing_terms(&before).into_iter().zip(growing_terms(&after));
        let most = sizes.max_by_key(|((_, before), (_, after))| after.saturating_sub(*before));
        Ok(most.map_or(Term::None, |((term, _), _)| term))
    }
}

/// The terms that grow with a workload, in bytes.
fn growing_terms(estimate: &MemoryEstimate) -> [(Term, u64); 3] {
    let codes = estimate.kv_cache_bytes.unwrap_or(0);
    let scales = estimate.kv_scale_bytes.unwrap_or(0);
    [
        (Term::PrefillScratch, estimate.prefill_scratch.total()),
        (Term::RecurrentState, estimate.recurrent_state_bytes.unwrap_or(0)),
        (Term::KvCache, codes.saturating_add(scales)),
    ]
}
