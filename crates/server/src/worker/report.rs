//! Reports of the worker: a log line and counts per completion, and the memory snapshot.

use std::time::Instant;

use mlxcel_estimator::MemoryEstimate;
use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::memory::MemoryUsage;

use super::super::prefix_cache::distinct_bytes;
use super::super::scheduler::RunningSequence;
use super::super::sequence::Sequence;
use super::super::status::{MemorySnapshot, RequestMemory};
use super::{Worker, held_bytes};

/// Maximum age of a snapshot while passes run.
const PUBLISH_INTERVAL_MS: u128 = 250;

impl Worker {
    /// Counts and logs a finished completion, without its text.
    pub(super) fn report(&self, sequence: &Sequence, finish: Finish) {
        let metrics = &self.status.metrics;
        let chunk_tokens = self.scheduler.chunk_tokens() as u64;
        let estimate = self.admission.estimate(&sequence.unshared_demand(), chunk_tokens).ok();
        let estimated = estimate.and_then(|e| Some(e.kv_cache_bytes? + e.kv_scale_bytes?));
        let measured = sequence.cache.allocated_bytes() as u64;
        let generated_tokens = sequence.completion.generated_tokens();
        metrics.finished.add(1);
        metrics.generated_tokens.add(generated_tokens as u64);
        metrics.kv_estimated_bytes.add(estimated.unwrap_or(0));
        metrics.kv_measured_bytes.add(measured);
        let first_token = sequence.time_to_first_token();
        let microseconds = first_token.map_or(0, |time| time.as_micros());
        metrics.first_token_microseconds.add(u64::try_from(microseconds).unwrap_or(0));
        tracing::info!(
            request = sequence.id.request,
            answer = sequence.index(),
            finish = finish.name(),
            prompt_tokens = sequence.prompt().len(),
            generated_tokens,
            first_token_seconds = first_token.map(|time| time.as_secs_f64()),
            seconds = sequence.request.received.elapsed().as_secs_f64(),
            estimated_kv_bytes = estimated,
            measured_kv_bytes = measured,
            resident_bytes = MemoryUsage::now().resident_bytes,
            "answered"
        );
    }

    /// Publishes a memory snapshot if something has changed or the last one is old.
    pub(super) fn publish(&mut self, changed: bool) {
        let is_recent = |at: Instant| at.elapsed().as_millis() < PUBLISH_INTERVAL_MS;
        if !changed && self.published.is_some_and(is_recent) {
            return;
        }
        self.published = Some(Instant::now());
        let demand = self.scheduler.running_demand();
        let chunk_tokens = self.scheduler.chunk_tokens();
        let Ok(estimate) = self.admission.estimate(&demand, chunk_tokens as u64) else { return };
        let scratch = estimate.prefill_scratch.total().max(estimate.decode_scratch.total());
        let running = self.scheduler.running().iter().zip(&self.sequences);
        let snapshot = MemorySnapshot {
            weights_bytes: estimate.weights.bytes,
            kv_used_bytes: distinct_bytes(self.sequences.iter().map(|s| &s.cache)),
            kv_reserved_bytes: sequence_bytes(&estimate),
            held_bytes: held_bytes(&self.prefixes, &self.sequences, None),
            prefix_bytes: distinct_bytes(self.prefixes.caches()),
            prefix_entries: self.prefixes.len(),
            scratch_bytes: if demand.is_empty() { 0 } else { scratch },
            headroom_bytes: estimate.runtime_headroom_bytes,
            prefill_chunk_tokens: chunk_tokens,
            waiting: self.waiting.len(),
            requests: running.map(|(counts, s)| self.request_memory(counts, s)).collect(),
        };
        self.status.metrics.free_slots.set(self.scheduler.free_slots() as u64);
        self.status.store(snapshot);
    }

    fn request_memory(&self, counts: &RunningSequence, sequence: &Sequence) -> RequestMemory {
        let chunk_tokens = self.scheduler.chunk_tokens() as u64;
        let estimate = self.admission.estimate(&counts.demand(), chunk_tokens);
        RequestMemory::of(sequence, estimate.map_or(0, |estimate| sequence_bytes(&estimate)))
    }
}

/// Bytes that an estimate counts for sequences: keys, values, states.
fn sequence_bytes(estimate: &MemoryEstimate) -> u64 {
    let parts = [estimate.kv_cache_bytes, estimate.kv_scale_bytes, estimate.recurrent_state_bytes];
    parts.into_iter().flatten().sum()
}
