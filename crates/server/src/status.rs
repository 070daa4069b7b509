//! State that the engine thread shares with connections: counters, and the use of memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::request_budget::RequestBudget;
use super::sequence::Sequence;

/// State of the engine, as all threads see it.
#[derive(Debug)]
pub(super) struct EngineStatus {
    pub(super) metrics: Metrics,
    /// Memory of requests before they run.
    pub(super) request_budget: Arc<RequestBudget>,
    snapshot: Mutex<MemorySnapshot>,
    /// Requests sent to the engine thread and not admitted yet.
    waiting: AtomicUsize,
    /// Maximum number of completions at once.
    pub(super) parallel: usize,
    queue_depth: usize,
}

/// Counter or gauge.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts since the start of the server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Finished completions.
    pub(super) finished: Counter,
    /// Failed requests.
    pub(super) failed: Counter,
    /// Requests refused before they were queued: too large, or a full queue.
    pub(super) refused: Counter,
    /// Completions and waiting requests cancelled by their clients.
    pub(super) cancelled: Counter,
    /// Requests aborted at the memory limit.
    pub(super) aborted: Counter,
    /// Prompt tokens.
    pub(super) prompt_tokens: Counter,
    /// Prompt tokens found in the prompt cache.
    pub(super) cached_tokens: Counter,
    /// Generated tokens.
    pub(super) generated_tokens: Counter,
    /// Estimated cache bytes of finished completions.
    pub(super) kv_estimated_bytes: Counter,
    /// Allocated cache bytes of finished completions.
    pub(super) kv_measured_bytes: Counter,
    /// Sum of the times to first tokens.
    pub(super) first_token_microseconds: Counter,
    /// Completions that could start now; a gauge.
    pub(super) free_slots: Counter,
}

/// Use of memory at one time, in bytes. The fields of requests are the JSON's keys.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct MemorySnapshot {
    /// Weights.
    pub(super) weights_bytes: u64,
    /// Blocks of running sequences, shared ones counted once.
    pub(super) kv_used_bytes: u64,
    /// Growth limit of running sequences, in addition to `held_bytes`.
    pub(super) kv_reserved_bytes: u64,
    /// Blocks of prompts that sequences share with each other or with the prompt cache.
    pub(super) held_bytes: u64,
    /// Blocks of the prompt cache.
    pub(super) prefix_bytes: u64,
    /// Entries of the prompt cache.
    pub(super) prefix_entries: usize,
    /// Transient memory of a pass.
    pub(super) scratch_bytes: u64,
    /// Memory kept free for the runtime.
    pub(super) headroom_bytes: u64,
    /// Prompt tokens per prefill pass.
    pub(super) prefill_chunk_tokens: usize,
    /// Waiting requests.
    pub(super) waiting: usize,
    /// Running completions.
    pub(super) requests: Vec<RequestMemory>,
}

/// Memory of one running completion.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RequestMemory {
    id: u64,
    answer: usize,
    prompt_tokens: usize,
    cache_tokens: usize,
    generated_tokens: usize,
    max_tokens: usize,
    /// Allocated blocks, shared ones included.
    kv_bytes: u64,
    /// Of those, blocks shared with others.
    shared_bytes: u64,
    /// Growth limit in addition to shared blocks.
    reserved_bytes: u64,
    tokens_per_second: Option<f64>,
}

impl RequestMemory {
    /// Current memory of `sequence`, which may grow to `reserved_bytes`.
    pub(super) fn of(sequence: &Sequence, reserved_bytes: u64) -> Self {
        let shared = sequence.shared.as_ref().map_or(0, |shared| shared.allocated_bytes());
        let generated_tokens = sequence.completion.generated_tokens();
        let first_token = sequence.completion.first_token();
        Self {
            id: sequence.id.request,
            answer: sequence.index(),
            prompt_tokens: sequence.prompt().len(),
            cache_tokens: sequence.cache.tokens(),
            generated_tokens,
            max_tokens: sequence.request.max_tokens,
            kv_bytes: sequence.cache.allocated_bytes() as u64,
            shared_bytes: shared as u64,
            reserved_bytes,
            tokens_per_second: first_token.and_then(|first| decode_rate(generated_tokens, first)),
        }
    }
}

/// Tokens per second since the first one.
#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn decode_rate(generated: usize, first: Instant) -> Option<f64> {
    (generated > 1).then(|| (generated - 1) as f64 / first.elapsed().as_secs_f64())
}

impl EngineStatus {
    /// Status of an engine that has not started.
    pub(super) fn new(parallel: usize, queue_depth: usize, request_budget: RequestBudget) -> Self {
        let metrics = Metrics::default();
        metrics.free_slots.set(parallel as u64);
        Self {
            metrics,
            request_budget: Arc::new(request_budget),
            snapshot: Mutex::default(),
            waiting: AtomicUsize::new(0),
            parallel,
            queue_depth,
        }
    }

    /// Reserves places for `requests` in the queue; `false` if it is full. Free slots count as
    /// places, since a request that takes one does not wait.
    pub(super) fn enter_queue(&self, requests: usize) -> bool {
        let free = usize::try_from(self.metrics.free_slots.get()).unwrap_or(usize::MAX);
        let limit = self.queue_depth.saturating_add(free);
        let entered = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |waiting| {
            Some(waiting + requests).filter(|waiting| *waiting <= limit)
        });
        entered.is_ok()
    }

    /// Frees the place of a request that has left the queue.
    pub(super) fn left_queue(&self) {
        let waiting = &self.waiting;
        let _ = waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |waiting| {
            Some(waiting.saturating_sub(1))
        });
    }

    /// The latest snapshot.
    pub(super) fn snapshot(&self) -> MemorySnapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the snapshot.
    pub(super) fn store(&self, snapshot: MemorySnapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}
