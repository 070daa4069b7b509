//! The estimate turned round: what would fit, and which part of it binds.
//!
//! Every solution is a binary search over the estimate itself, so that the two cannot disagree:
//! the solution fits, and one more does not.

use crate::error::EstimatorError;
use crate::estimate::{MemoryEstimate, Term, estimate_total_memory};
use crate::kv::{KV_BLOCK_TOKENS, KvMode};
use crate::machine::Machine;
use crate::spec::ModelSpec;
use crate::weights::{WeightFootprint, WeightQuant};
use crate::workload::Workload;

/// Beyond this nothing is searched: what still fits is unbounded.
const UNBOUNDED: u64 = 1 << 40;

/// The largest number that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solution {
    /// The number: 0 where not even one fits, `None` where nothing bounds it (nothing grows, or
    /// nobody knows what is available).
    pub value: Option<u64>,
    /// What grows most with one more.
    pub binding_term: Term,
}

/// A cache mode and what it would mean.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeOutcome {
    /// The mode.
    pub mode: KvMode,
    /// The estimate with it.
    pub estimate: MemoryEstimate,
    /// The longest context with it, at the workload's batch.
    pub max_context_tokens: Option<u64>,
}

/// A model, its weights and a machine, asked several questions.
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
    /// quantisation. It is the memory's answer: the model's own limit is not applied.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub fn max_context(&self, workload: &Workload, batch: u64) -> Result<Solution, EstimatorError> {
        self.largest(&|context| workload.with_shape(context, batch), KV_BLOCK_TOKENS)
    }

    /// The most sequences of `context_tokens` tokens each.
    ///
    /// # Errors
    /// As [`Self::max_context`].
    pub fn max_batch(&self, workload: &Workload, context: u64) -> Result<Solution, EstimatorError> {
        self.largest(&|batch| workload.with_shape(context, batch), 1)
    }

    /// The largest prefill chunk. A chunk longer than the prompt changes nothing, so a workload
    /// that fits with its whole prompt as one chunk is unbounded.
    ///
    /// # Errors
    /// As [`Self::max_context`].
    pub fn max_chunk(&self, workload: &Workload) -> Result<Solution, EstimatorError> {
        self.largest(&|chunk| workload.clone().with_prefill_chunk(chunk), KV_BLOCK_TOKENS)
    }

    /// Every cache mode that the model can take, with what it would mean for `workload`.
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
    /// As [`Self::max_context`].
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
        let fits = |n| Ok::<_, EstimatorError>(self.estimate(&workload(n))?.fits);
        if !matches!(fits(UNBOUNDED)?, Some(false)) {
            return Ok(Solution { value: None, binding_term: Term::None });
        }
        let (mut low, mut high) = (0, UNBOUNDED);
        while high.saturating_sub(low) > 1 {
            let middle = low.midpoint(high);
            if fits(middle)? == Some(true) { low = middle } else { high = middle }
        }
        let binding_term = self.grows_most(&workload(low), &workload(low.saturating_add(step)))?;
        Ok(Solution { value: Some(low), binding_term })
    }

    /// The term that grows most between two workloads; the weights where the first does not fit.
    fn grows_most(&self, before: &Workload, after: &Workload) -> Result<Term, EstimatorError> {
        let (before, after) = (self.estimate(before)?, self.estimate(after)?);
        if before.fits == Some(false) {
            return Ok(before.binding_term);
        }
        let growth = |get: fn(&MemoryEstimate) -> u64| get(&after).saturating_sub(get(&before));
        let kv = |e: &MemoryEstimate| {
            e.kv_cache_bytes.unwrap_or(0).saturating_add(e.kv_scale_bytes.unwrap_or(0))
        };
        let terms = [
            (Term::PrefillScratch, growth(|e| e.prefill_scratch.total())),
            (Term::RecurrentState, growth(|e| e.recurrent_state_bytes.unwrap_or(0))),
            (Term::KvCache, growth(kv)),
        ];
        Ok(terms.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(Term::None, |(term, _)| term))
    }
}
