//! What the engine's thread tells the rest of the server: counters, and what memory is used for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::intake::Intake;
use super::sequence::Answer;

/// State that all threads see.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) metrics: Metrics,
    /// What requests take before they run.
    pub(super) intake: Arc<Intake>,
    snapshot: Mutex<Snapshot>,
    /// Jobs handed to the engine's thread that have not joined yet.
    waiting: AtomicUsize,
    /// Answers at once.
    pub(super) parallel: usize,
    queue_depth: usize,
}

/// A number that only grows, or one that is set.
#[derive(Debug, Default)]
pub(super) struct Number(AtomicU64);

impl Number {
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

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Answers completed.
    pub(super) finished: Number,
    /// Requests or answers that failed.
    pub(super) failed: Number,
    /// Requests that were refused: too large, or a full queue.
    pub(super) refused: Number,
    /// Requests given up by their clients.
    pub(super) cancelled: Number,
    /// Requests given up at the hard mark.
    pub(super) aborted: Number,
    /// Tokens of prompts.
    pub(super) prompt_tokens: Number,
    /// Of those, found in cached prefixes.
    pub(super) cached_tokens: Number,
    /// Tokens of answers.
    pub(super) generated_tokens: Number,
    /// Cache bytes of completed answers as estimated before.
    pub(super) kv_estimated_bytes: Number,
    /// The same as measured.
    pub(super) kv_measured_bytes: Number,
    /// Sum of the times to first tokens.
    pub(super) first_token_microseconds: Number,
    /// Answers that could start now.
    pub(super) free_slots: Number,
}

/// What memory is used for at one moment, in bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Snapshot {
    /// The weights.
    pub(super) weights_bytes: u64,
    /// Blocks of running answers, shared ones once.
    pub(super) kv_used_bytes: u64,
    /// What running answers may grow to, beyond what is held.
    pub(super) kv_reserved_bytes: u64,
    /// Blocks of prompts that were read: shared between answers, and with cached prefixes.
    pub(super) held_bytes: u64,
    /// Of those, what cached prefixes hold.
    pub(super) prefix_bytes: u64,
    /// Cached prefixes.
    pub(super) prefix_entries: usize,
    /// What a pass needs for a moment.
    pub(super) scratch_bytes: u64,
    /// What is kept free for the runtime.
    pub(super) headroom_bytes: u64,
    /// Prompt tokens per pass.
    pub(super) prefill_chunk_tokens: usize,
    /// Jobs that wait.
    pub(super) waiting: usize,
    /// Answers that run.
    pub(super) requests: Vec<RequestMemory>,
}

/// One running answer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RequestMemory {
    id: u64,
    answer: usize,
    prompt_tokens: usize,
    cache_tokens: usize,
    generated_tokens: usize,
    max_tokens: usize,
    /// What it holds, shared blocks included.
    kv_bytes: u64,
    /// Of that, what it shares with others.
    shared_bytes: u64,
    /// What it may come to hold beside what it shares.
    reserved_bytes: u64,
    tokens_per_second: Option<f64>,
}

impl RequestMemory {
    /// What `answer` holds now, of the `reserved_bytes` that it may.
    pub(super) fn of(answer: &Answer, reserved_bytes: u64) -> Self {
        let shared = answer.shared.as_ref().map_or(0, |shared| shared.allocated_bytes());
        Self {
            id: answer.job.id,
            answer: answer.index,
            prompt_tokens: answer.job.prompt.len(),
            cache_tokens: answer.cache.tokens(),
            generated_tokens: answer.generated,
            max_tokens: answer.job.max_tokens,
            kv_bytes: answer.cache.allocated_bytes() as u64,
            shared_bytes: shared as u64,
            reserved_bytes,
            tokens_per_second: answer.first_token.and_then(|first| rate(answer.generated, first)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn rate(generated: usize, first: Instant) -> Option<f64> {
    (generated > 1).then(|| (generated - 1) as f64 / first.elapsed().as_secs_f64())
}

impl Shared {
    pub(super) fn new(parallel: usize, queue_depth: usize, intake: Intake) -> Self {
        let metrics = Metrics::default();
        metrics.free_slots.set(parallel as u64);
        let (snapshot, waiting) = (Mutex::default(), AtomicUsize::new(0));
        Self { metrics, intake: Arc::new(intake), snapshot, waiting, parallel, queue_depth }
    }

    /// Reserves places for `jobs` in the queue; `false` when it is full. Free slots count as
    /// places, since who takes one does not wait.
    pub(super) fn enter_queue(&self, jobs: usize) -> bool {
        let free = usize::try_from(self.metrics.free_slots.get()).unwrap_or(usize::MAX);
        let most = self.queue_depth.saturating_add(free);
        let enter = |waiting: usize| Some(waiting + jobs).filter(|waiting| *waiting <= most);
        self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).is_ok()
    }

    /// A job has left the queue.
    pub(super) fn left_queue(&self) {
        let leave = |waiting: usize| Some(waiting.saturating_sub(1));
        let _ = self.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave);
    }

    /// The latest snapshot.
    pub(super) fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the snapshot.
    pub(super) fn store(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}
