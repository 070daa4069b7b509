//! Search for changes to a load that make it fit.

use mlxcel_estimator::{
    EstimatorError, KvMode, Machine, Solver, WeightQuant, Workload, estimate_total_memory,
};
use serde::{Serialize, Serializer};

use super::{LoadRequest, ModelFootprint};
use crate::Result;

/// Smallest proposed prefill chunk; prefill is too slow below it.
const MIN_CHUNK_TOKENS: u64 = 32;

/// A change that makes a load fit; `None` keeps the requested value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// KV cache mode.
    #[serde(serialize_with = "mode_name")]
    pub kv_mode: Option<KvMode>,
    /// Shorter context, prompt included.
    pub context_tokens: Option<u64>,
    /// Smaller prefill chunk, in tokens.
    pub prefill_chunk: Option<u64>,
    /// Weights with fewer bits, from another checkpoint.
    pub quant: Option<WeightQuant>,
    /// Estimated total with the change, in bytes.
    pub total_bytes: u64,
}

fn mode_name<S: Serializer>(mode: &Option<KvMode>, to: S) -> std::result::Result<S::Ok, S::Error> {
    mode.map(KvMode::name).serialize(to)
}

impl Proposal {
    /// Applies this change to `workload`.
    #[must_use]
    pub fn apply(&self, workload: &Workload) -> Workload {
        let context = self.context_tokens.unwrap_or_else(|| workload.context_tokens());
        let changed = match self.context_tokens {
            Some(_) => workload.with_shape(context, workload.batch()),
            None => workload.clone(),
        };
        changed
            .with_kv_mode(self.kv_mode.unwrap_or(workload.kv_mode))
            .with_prefill_chunk(self.prefill_chunk.unwrap_or(workload.prefill_chunk_tokens))
            .with_quant(self.quant.unwrap_or(workload.quant))
    }
}

/// Finds changes that make `load` fit: every single change that suffices, the mildest first; if none
/// does, the first combination that suffices. Empty if none does either.
///
/// # Errors
/// Failures of the estimator, which has accepted `load` before.
pub(super) fn proposals(
    model: &ModelFootprint,
    load: &LoadRequest,
    machine: &Machine,
) -> Result<Vec<Proposal>> {
    let search = ProposalSearch { model, load, machine };
    let mut found = Vec::new();
    found.extend(search.first_fitting(KvMode::ALL.into_iter().map(with_mode)));
    found.extend(search.shorter_context(Proposal::default())?);
    found.extend(search.smaller_chunk()?);
    let quants = [WeightQuant::Int8, WeightQuant::Int4];
    found.extend(search.first_fitting(quants.into_iter().map(with_quant)));
    if found.is_empty() {
        found.extend(search.combined()?);
    }
    Ok(found)
}

fn with_mode(mode: KvMode) -> Proposal {
    Proposal { kv_mode: Some(mode), ..Proposal::default() }
}

fn with_quant(quant: WeightQuant) -> Proposal {
    Proposal { quant: Some(quant), ..Proposal::default() }
}

/// Every combination of weight bits and cache mode, wider weights first.
fn combinations() -> impl Iterator<Item = Proposal> {
    [None, Some(WeightQuant::Int8), Some(WeightQuant::Int4)].into_iter().flat_map(|quant| {
        KvMode::ALL.into_iter().map(move |mode| Proposal { quant, ..with_mode(mode) })
    })
}

/// A search for proposals.
struct ProposalSearch<'a> {
    model: &'a ModelFootprint,
    load: &'a LoadRequest,
    machine: &'a Machine,
}

impl ProposalSearch<'_> {
    fn solver(&self) -> Solver<'_> {
        Solver { spec: &self.model.spec, weights: &self.model.weights, machine: self.machine }
    }

    /// Returns the proposal with its total, if it fits.
    fn fitting(&self, proposal: Proposal) -> Option<Proposal> {
        let ModelFootprint { spec, weights, .. } = self.model;
        let workload = proposal.apply(&self.load.workload);
        let estimate = estimate_total_memory(spec, weights, &workload, self.machine).ok()?;
        let fits = estimate.fits == Some(true);
        fits.then_some(Proposal { total_bytes: estimate.total_bytes, ..proposal })
    }

    /// Returns the first proposal that fits.
    fn first_fitting(&self, mut proposals: impl Iterator<Item = Proposal>) -> Option<Proposal> {
        proposals.find_map(|proposal| self.fitting(proposal))
    }

    /// Shortens the context of `proposal` to the longest that fits, if that is long enough.
    fn shorter_context(
        &self,
        proposal: Proposal,
    ) -> std::result::Result<Option<Proposal>, EstimatorError> {
        let workload = proposal.apply(&self.load.workload);
        let Ok(longest) = self.solver().max_context(&workload, workload.batch()) else {
            return Ok(None);
        };
        let useful = longest.value.filter(|tokens| *tokens >= self.load.min_context_tokens);
        Ok(useful
            .and_then(|tokens| self.fitting(Proposal { context_tokens: Some(tokens), ..proposal })))
    }

    fn smaller_chunk(&self) -> std::result::Result<Option<Proposal>, EstimatorError> {
        let largest = self.solver().max_chunk(&self.load.workload)?.value;
        let useful = largest.filter(|tokens| *tokens >= MIN_CHUNK_TOKENS);
        Ok(useful.and_then(|tokens| {
            self.fitting(Proposal { prefill_chunk: Some(tokens), ..Proposal::default() })
        }))
    }

    /// Combines narrower weights with each cache mode, first at full length, then with the longest
    /// context that fits.
    fn combined(&self) -> std::result::Result<Option<Proposal>, EstimatorError> {
        if let Some(found) = self.first_fitting(combinations()) {
            return Ok(Some(found));
        }
        for proposal in combinations() {
            if let Some(found) = self.shorter_context(proposal)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
