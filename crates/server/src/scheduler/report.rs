//! What the scheduler tells of itself: a line of log and counts per answer, a snapshot of the budget.

use std::time::Instant;

use mlxcel_estimator::MemoryEstimate;

use super::super::admission::Demand;
use super::super::prefix::distinct_bytes;
use super::super::sequence::Answer;
use super::super::shared::{RequestMemory, Snapshot};
use super::Scheduler;
use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::memory::MemoryUsage;

impl Scheduler {
    /// Counts and logs an answer that is complete; never its text.
    pub(super) fn report(&self, answer: &Answer, finish: Finish) {
        let metrics = &self.shared.metrics;
        let estimate = self.admission.estimate(&answer.own(), self.chunk as u64).ok();
        let estimated = estimate.and_then(|e| Some(e.kv_cache_bytes? + e.kv_scale_bytes?));
        let measured = answer.cache.allocated_bytes() as u64;
        metrics.finished.add(1);
        metrics.generated_tokens.add(answer.generated as u64);
        metrics.kv_estimated_bytes.add(estimated.unwrap_or(0));
        metrics.kv_measured_bytes.add(measured);
        let first = answer.time_to_first_token();
        metrics
            .first_token_microseconds
            .add(first.map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(0)));
        tracing::info!(
            request = answer.job.id,
            answer = answer.index,
            finish = finish.name(),
            prompt_tokens = answer.job.prompt.len(),
            generated_tokens = answer.generated,
            first_token_seconds = first.map(|t| t.as_secs_f64()),
            seconds = answer.job.since.elapsed().as_secs_f64(),
            estimated_kv_bytes = estimated,
            measured_kv_bytes = measured,
            resident_bytes = MemoryUsage::now().resident_bytes,
            "answered"
        );
    }

    /// Writes down what is held and reserved, when that has changed or some time has passed.
    pub(super) fn publish(&mut self, changed: bool) {
        const INTERVAL_MS: u128 = 250;
        if !changed && self.published.is_some_and(|at| at.elapsed().as_millis() < INTERVAL_MS) {
            return;
        }
        self.published = Some(Instant::now());
        let accounts: Demand = self.running.iter().map(Answer::account).collect();
        let Ok(estimate) = self.admission.estimate(&accounts, self.chunk as u64) else { return };
        let request = |answer: &Answer| {
            let estimate = self.admission.estimate(&answer.account(), self.chunk as u64);
            RequestMemory::of(answer, estimate.map_or(0, |estimate| sequence_bytes(&estimate)))
        };
        let held = self.held_bytes(None);
        let snapshot = Snapshot {
            weights_bytes: estimate.weights.bytes,
            kv_used_bytes: distinct_bytes(self.running.iter().map(|a| &a.cache)),
            kv_reserved_bytes: sequence_bytes(&estimate),
            held_bytes: held,
            prefix_bytes: distinct_bytes(self.prefixes.caches()),
            prefix_entries: self.prefixes.len(),
            scratch_bytes: match accounts.is_empty() {
                true => 0,
                false => estimate.prefill_scratch.total().max(estimate.decode_scratch.total()),
            },
            headroom_bytes: estimate.runtime_headroom_bytes,
            prefill_chunk_tokens: self.chunk,
            waiting: self.queue.len(),
            requests: self.running.iter().map(request).collect(),
        };
        self.count_slots();
        self.shared.store(snapshot);
    }
}

/// What an estimate counts for sequences: keys, values, states.
fn sequence_bytes(estimate: &MemoryEstimate) -> u64 {
    let parts = [estimate.kv_cache_bytes, estimate.kv_scale_bytes, estimate.recurrent_state_bytes];
    parts.into_iter().flatten().sum()
}
