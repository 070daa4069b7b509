//! What would fit instead, as changes to what was asked for.

use mlxcel_estimator::{
    EstimatorError, KvMode, Machine, Solver, WeightQuant, Workload, estimate_total_memory,
};
use serde::{Serialize, Serializer};

use super::{Load, Sized};
use crate::Result;

/// The smallest prefill chunk that is proposed; below it prompts are read too slowly.
const LEAST_CHUNK_TOKENS: u64 = 32;

/// A change that makes a load fit; what is `None` stays as it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Another cache mode.
    #[serde(serialize_with = "mode_name")]
    pub kv_mode: Option<KvMode>,
    /// Fewer tokens, prompt included.
    pub context_tokens: Option<u64>,
    /// A smaller prefill chunk.
    pub prefill_chunk: Option<u64>,
    /// Weights of fewer bits: another checkpoint.
    pub quant: Option<WeightQuant>,
    /// The total with it, bytes.
    pub total_bytes: u64,
}

fn mode_name<S: Serializer>(mode: &Option<KvMode>, to: S) -> std::result::Result<S::Ok, S::Error> {
    mode.map(KvMode::name).serialize(to)
}

impl Proposal {
    /// `workload` with this change.
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

/// What would fit instead of `load`: every single change that does, the mildest first; where
/// none does, the first combination that does; nothing where not even that helps.
///
/// # Errors
/// None of its own: `load` has been estimated before.
pub fn proposals(model: &Sized, load: &Load, machine: &Machine) -> Result<Vec<Proposal>> {
    let asker = Asker { model, load, machine };
    let mut found = Vec::new();
    found.extend(asker.first(KvMode::ALL.into_iter().map(of_mode)));
    found.extend(asker.shorter(Proposal::default())?);
    found.extend(asker.smaller_chunk()?);
    found.extend(asker.first([WeightQuant::Int8, WeightQuant::Int4].into_iter().map(of_quant)));
    if found.is_empty() {
        found.extend(asker.combined()?);
    }
    Ok(found)
}

fn of_mode(mode: KvMode) -> Proposal {
    Proposal { kv_mode: Some(mode), ..Proposal::default() }
}

fn of_quant(quant: WeightQuant) -> Proposal {
    Proposal { quant: Some(quant), ..Proposal::default() }
}

/// What proposals are tried on.
struct Asker<'a> {
    model: &'a Sized,
    load: &'a Load,
    machine: &'a Machine,
}

impl Asker<'_> {
    fn solver(&self) -> Solver<'_> {
        Solver { spec: &self.model.spec, weights: &self.model.weights, machine: self.machine }
    }

    /// The proposal with its total, if it fits.
    fn fitting(&self, proposal: Proposal) -> Option<Proposal> {
        let Sized { spec, weights, .. } = self.model;
        let workload = proposal.apply(&self.load.workload);
        let estimate = estimate_total_memory(spec, weights, &workload, self.machine).ok()?;
        let fits = estimate.fits == Some(true);
        fits.then_some(Proposal { total_bytes: estimate.total_bytes, ..proposal })
    }

    /// The first that fits.
    fn first(&self, mut proposals: impl Iterator<Item = Proposal>) -> Option<Proposal> {
        proposals.find_map(|proposal| self.fitting(proposal))
    }

    /// `proposal` with the longest context that fits, if that is long enough.
    fn shorter(&self, proposal: Proposal) -> std::result::Result<Option<Proposal>, EstimatorError> {
        let workload = proposal.apply(&self.load.workload);
        let Ok(longest) = self.solver().max_context(&workload, workload.batch()) else {
            return Ok(None);
        };
        let useful = longest.value.filter(|tokens| *tokens >= self.load.least_context_tokens);
        Ok(useful
            .and_then(|tokens| self.fitting(Proposal { context_tokens: Some(tokens), ..proposal })))
    }

    fn smaller_chunk(&self) -> std::result::Result<Option<Proposal>, EstimatorError> {
        let largest = self.solver().max_chunk(&self.load.workload)?.value;
        let useful = largest.filter(|tokens| *tokens >= LEAST_CHUNK_TOKENS);
        Ok(useful.and_then(|tokens| {
            self.fitting(Proposal { prefill_chunk: Some(tokens), ..Proposal::default() })
        }))
    }

    /// Narrower weights with each cache mode, first at full length, then as long as fits.
    fn combined(&self) -> std::result::Result<Option<Proposal>, EstimatorError> {
        let quants = [None, Some(WeightQuant::Int8), Some(WeightQuant::Int4)];
        let all = || {
            quants.into_iter().flat_map(|quant| {
                KvMode::ALL.into_iter().map(move |mode| Proposal { quant, ..of_mode(mode) })
            })
        };
        if let Some(found) = self.first(all()) {
            return Ok(Some(found));
        }
        for proposal in all() {
            if let Some(found) = self.shorter(proposal)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
