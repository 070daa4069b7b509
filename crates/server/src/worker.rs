//! The worker: runs the scheduler's passes on the engine.
//!
//! Owns what the scheduler only counts: the engine, the sequences with their caches, the prompt
//! cache and the channels to clients. Lives on the engine thread. Invariant: `sequences` has one
//! entry per running sequence of the scheduler, in the same order.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use mlxcel_core::{FEW_TOKENS, KernelSet, SequenceCache, SequenceRun};
use mlxcel_estimator::EstimatorError;
use mlxcel_runtime::Result;
use mlxcel_runtime::engine::{Engine, Finish, LogitRows};
use mlxcel_runtime::text::Tokenizer;

use super::admission::{MemoryAdmission, MemoryDemand};
use super::error::ApiError;
use super::memory_watch::MemoryWatch;
use super::messages::{EngineEvent, EngineRequest};
use super::prefix_cache::{PrefixCache, distinct_bytes, fork_prefix, fork_whole_blocks};
use super::prompt::{ChunkEnds, block_end};
use super::scheduler::{
    Admission, MemoryBudget, PassResult, PrefixHit, ScheduledPass, Scheduler, SchedulerConfig,
    SequenceId, WaitingRequest,
};
use super::sequence::Sequence;
use super::status::EngineStatus;

mod report;

/// Engine, sequences and scheduler.
pub(super) struct Worker {
    engine: Engine,
    tokenizer: Tokenizer,
    admission: Arc<MemoryAdmission>,
    status: Arc<EngineStatus>,
    scheduler: Scheduler,
    /// Requests that wait, by id.
    waiting: HashMap<u64, EngineRequest>,
    sequences: Vec<Sequence>,
    prefixes: PrefixCache,
    watch: MemoryWatch,
    chunk_ends: ChunkEnds,
    published: Option<Instant>,
}

/// The estimator's answer for the blocks that are held at present.
struct WorkerBudget<'a> {
    admission: &'a MemoryAdmission,
    status: &'a EngineStatus,
    prefixes: &'a mut PrefixCache,
    sequences: &'a [Sequence],
    /// Prefix found for the request that asks, where its blocks are shared.
    hit: Option<&'a SequenceCache>,
}

impl MemoryBudget for WorkerBudget<'_> {
    fn chunk_that_fits(
        &self,
        demand: &MemoryDemand,
    ) -> std::result::Result<Option<usize>, EstimatorError> {
        let held = held_bytes(self.prefixes, self.sequences, self.hit);
        let held = held.saturating_add(self.status.request_budget.held_bytes());
        let chunk = self.admission.chunk_that_fits(demand, held)?;
        Ok(chunk.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
    }

    fn evict_prefix(&mut self) -> bool {
        self.prefixes.evict()
    }
}

/// Bytes of blocks that no running sequence counts as its own.
fn held_bytes(prefixes: &PrefixCache, sequences: &[Sequence], hit: Option<&SequenceCache>) -> u64 {
    let shared = sequences.iter().filter_map(|sequence| sequence.shared.as_deref());
    distinct_bytes(prefixes.caches().chain(shared).chain(hit))
}

impl Worker {
    /// An idle worker.
    ///
    /// # Errors
    /// A cache mode that the model's layers do not take.
    pub(super) fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        admission: Arc<MemoryAdmission>,
        status: Arc<EngineStatus>,
        watch: MemoryWatch,
        prompt_cache_bytes: u64,
    ) -> Result<Self> {
        let can_trim = engine.new_cache()?.can_trim();
        let chunk_ends = if can_trim { ChunkEnds::Anywhere } else { ChunkEnds::AtSnapshots };
        let config = SchedulerConfig {
            parallel: status.parallel,
            chunk_tokens: engine.chunk_tokens(),
            shares_blocks: engine.ops().kernels() == KernelSet::Host,
            chunk_ends,
        };
        let mut worker = Self {
            engine,
            tokenizer,
            admission,
            status,
            scheduler: Scheduler::new(config),
            waiting: HashMap::new(),
            sequences: Vec::new(),
            prefixes: PrefixCache::new(prompt_cache_bytes),
            watch,
            chunk_ends,
            published: None,
        };
        worker.publish(true);
        Ok(worker)
    }

    /// Queues a request.
    pub(super) fn submit(&mut self, request: EngineRequest) {
        self.scheduler.submit(WaitingRequest {
            id: request.id,
            prompt: Arc::clone(&request.prompt),
            n: request.n,
            max_tokens: request.max_tokens,
        });
        self.waiting.insert(request.id, request);
    }

    /// Returns true if there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Runs one pass, admitting requests before it and releasing finished ones after it.
    pub(super) fn step(&mut self) {
        let waiting = self.waiting.len();
        let running = self.sequences.len();
        self.drop_abandoned();
        let pressure = self.watch.pressure();
        let aborted =
            self.with_budget(None, |scheduler, budget| scheduler.relieve(pressure, budget));
        if let Some(request) = aborted {
            tracing::warn!("memory limit exceeded: aborting the newest request");
            self.status.metrics.aborted.add(1);
            self.fail(request, ApiError::memory_pressure());
        }
        if self.scheduler.may_admit(pressure) {
            self.admit();
        }
        if let Some(pass) = self.scheduler.schedule() {
            self.run(&pass);
        }
        let changed = waiting != self.waiting.len() || running != self.sequences.len();
        self.publish(changed);
    }

    /// Fails everything that waits or runs.
    pub(super) fn fail_all(&mut self, error: &ApiError) {
        for sequence in self.sequences.drain(..) {
            self.scheduler.remove(sequence.id.request);
            sequence.send_failed(error.clone());
        }
        for (id, request) in self.waiting.drain() {
            self.scheduler.remove(id);
            let _ = request.events.send(EngineEvent::Failed(error.clone()));
            self.status.left_queue();
        }
        self.publish(true);
    }

    /// Drops cancelled requests and frees their KV blocks.
    fn drop_abandoned(&mut self) {
        let mut ids = Vec::new();
        for sequence in self.sequences.extract_if(.., |sequence| sequence.is_abandoned()) {
            ids.push(sequence.id.request);
        }
        for (id, _) in self.waiting.extract_if(|_, request| request.events.is_closed()) {
            ids.push(id);
            self.status.left_queue();
        }
        self.status.metrics.cancelled.add(ids.len() as u64);
        ids.into_iter().for_each(|id| self.scheduler.remove(id));
    }

    /// Calls `decide` with the scheduler and the current budget, of which `hit` is held too.
    fn with_budget<T>(
        &mut self,
        hit: Option<&SequenceCache>,
        decide: impl FnOnce(&mut Scheduler, &mut WorkerBudget<'_>) -> T,
    ) -> T {
        let mut budget = WorkerBudget {
            admission: &self.admission,
            status: &self.status,
            prefixes: &mut self.prefixes,
            sequences: &self.sequences,
            hit,
        };
        decide(&mut self.scheduler, &mut budget)
    }

    /// Returns true if sequences share blocks, false if they copy them.
    fn shares_blocks(&self) -> bool {
        self.engine.ops().kernels() == KernelSet::Host
    }

    /// Admits waiting requests, in order, as long as they fit.
    fn admit(&mut self) {
        while let Some(request) = self.scheduler.next_waiting() {
            let id = request.id;
            let prompt = Arc::clone(&request.prompt);
            let hit = self.prefixes.find(&prompt);
            let held = hit.as_ref().filter(|_| self.shares_blocks());
            let shared = held.and_then(|hit| fork_whole_blocks(hit, &prompt));
            let counts = PrefixHit {
                cached_tokens: hit.as_ref().map_or(0, SequenceCache::tokens),
                shared_tokens: shared.as_ref().map_or(0, SequenceCache::tokens),
            };
            let admission =
                self.with_budget(held, |scheduler, budget| scheduler.admit(counts, budget));
            match admission {
                Ok(Admission::Admitted) => self.start(id, hit, shared),
                Ok(Admission::Deferred) => return,
                Ok(Admission::Refused(demand)) => self.reject(id, self.refusal(&demand)),
                Err(error) => self.reject(id, error.into()),
            }
        }
    }

    /// Explains that a request with `demand` does not fit although nothing runs.
    fn refusal(&self, demand: &MemoryDemand) -> ApiError {
        match self.admission.too_large(demand) {
            Ok(Some(too_large)) => ApiError::never_fits(&too_large),
            Ok(None) => ApiError::memory_pressure(),
            Err(error) => error.into(),
        }
    }

    /// Answers a waiting request with an error.
    fn reject(&mut self, id: u64, error: ApiError) {
        if let Some(request) = self.waiting.remove(&id) {
            self.status.left_queue();
            self.status.metrics.failed.add(1);
            let _ = request.events.send(EngineEvent::Failed(error));
        }
    }

    /// Starts an admitted request over `hit`, the cached part of its prompt.
    fn start(&mut self, id: u64, hit: Option<SequenceCache>, shared: Option<SequenceCache>) {
        let Some(request) = self.waiting.remove(&id) else { return };
        self.status.left_queue();
        let cached_tokens = hit.as_ref().map_or(0, SequenceCache::tokens);
        let prompt_tokens = request.prompt.len();
        let events = request.events.clone();
        let cache = hit.map_or_else(|| self.engine.new_cache(), Ok);
        let sequence = cache.and_then(|cache| {
            Sequence::new(request, cache, shared, &self.tokenizer, self.engine.vocab())
        });
        match sequence {
            Ok(sequence) => {
                self.status.metrics.prompt_tokens.add(prompt_tokens as u64);
                self.status.metrics.cached_tokens.add(cached_tokens as u64);
                self.sequences.push(sequence);
                // A client that sees the request running must see its slot taken.
                self.publish(true);
                let _ = events.send(EngineEvent::Started { cached_tokens });
            }
            Err(error) => {
                self.scheduler.remove(id);
                self.status.metrics.failed.add(1);
                let _ = events.send(EngineEvent::Failed(error.into()));
            }
        }
    }

    /// Computes a pass and hands its results to scheduler and sequences.
    fn run(&mut self, pass: &ScheduledPass) {
        match pass {
            ScheduledPass::EncodeImage { id, image } => match self.encode_image(*id, *image) {
                Ok(()) => self.scheduler.complete(pass, &PassResult::default()),
                Err(error) => self.fail(id.request, error.into()),
            },
            ScheduledPass::Prefill { id, tokens, last } => {
                let rows = if *last { LogitRows::Last } else { LogitRows::None };
                match self.prefill_chunk(*id, tokens.clone(), rows) {
                    Ok(logits) => self.finish_chunk(pass, *id, &logits),
                    Err(error) => self.fail(id.request, error.into()),
                }
            }
            ScheduledPass::Decode(ids) => self.run_decode(ids),
        }
    }

    fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.iter_mut().find(|sequence| sequence.id == id)
    }

    fn encode_image(&mut self, id: SequenceId, image: usize) -> Result<()> {
        let sequence = self.sequences.iter_mut().find(|sequence| sequence.id == id);
        let Some(sequence) = sequence else { return Ok(()) };
        let Some(pixels) = sequence.pixels(image) else { return Ok(()) };
        let encoded = self.engine.encode_image(pixels)?;
        sequence.set_encoded(image, encoded);
        Ok(())
    }

    /// Reads a chunk of a prompt; images beside the tokens go before the first one. Returns logits
    /// of the chosen rows.
    fn prefill_chunk(
        &mut self,
        id: SequenceId,
        tokens: Range<usize>,
        rows: LogitRows,
    ) -> Result<Vec<f32>> {
        let sequence = self.sequences.iter_mut().find(|sequence| sequence.id == id);
        let sequence = sequence.expect("a running sequence has an entry");
        let cross_images = sequence.take_cross_images();
        self.engine.show_images(&mut sequence.cache, &cross_images)?;
        let images = sequence.image_rows(&tokens);
        let prompt = Arc::clone(&sequence.request.prompt);
        let tokens = prompt.tokens.get(tokens).unwrap_or_default();
        let run = SequenceRun { tokens, cache: &mut sequence.cache };
        let logits = self.engine.prefill_chunk(run, images, rows)?;
        sequence.release_read_images();
        Ok(logits)
    }

    /// Notes a chunk that was read. After the last one, the completions of the request start from
    /// `logits`, `[vocab]`.
    fn finish_chunk(&mut self, pass: &ScheduledPass, id: SequenceId, logits: &[f32]) {
        let Some(sequence) = self.sequences.iter().find(|sequence| sequence.id == id) else {
            return;
        };
        let computed = sequence.cache.tokens();
        let is_snapshot = self.chunk_ends == ChunkEnds::AtSnapshots
            && computed > 0
            && computed == sequence.prompt().last_snapshot();
        if is_snapshot {
            self.cache_prefix(id);
        }
        let mut result = PassResult::default();
        let mut error = None;
        if !logits.is_empty() {
            error = self.start_completions(id, logits, &mut result).err();
        }
        self.scheduler.complete(pass, &result);
        if let Some(error) = error {
            self.fail(id.request, error.into());
        }
        self.release_finished();
        if is_snapshot || !logits.is_empty() {
            self.refit();
        }
    }

    /// Samples the first token of every completion of a request whose prompt is read.
    ///
    /// # Errors
    /// Logits from which no token can be drawn.
    fn start_completions(
        &mut self,
        id: SequenceId,
        logits: &[f32],
        result: &mut PassResult,
    ) -> Result<()> {
        let shares_blocks = self.shares_blocks();
        let Some(sequence) = self.sequence_mut(id) else { return Ok(()) };
        if shares_blocks {
            sequence.share_blocks();
            result.shared_tokens = sequence.shared.as_ref().map(|shared| shared.tokens());
        }
        self.cache_prefix(id);
        let vocab = self.engine.vocab();
        let Some(sequence) = self.sequences.iter_mut().find(|sequence| sequence.id == id) else {
            return Ok(());
        };
        let mut forks = sequence.forks(&self.tokenizer, vocab)?;
        for sequence in forks.iter_mut().chain([sequence]) {
            sequence.advance(logits)?;
            if sequence.completion.finish().is_some() {
                result.finished.push(sequence.id);
            }
        }
        self.sequences.extend(forks);
        Ok(())
    }

    /// Generates a token of each of `ids`.
    fn run_decode(&mut self, ids: &[SequenceId]) {
        let newest = self.sequences.last().map(|sequence| sequence.id.request);
        let mut logits = Vec::new();
        let error = self.decode(ids, &mut logits).err();
        let mut advanced = Vec::new();
        let mut failed = Vec::new();
        let mut result = PassResult::default();
        let sequences = self.sequences.iter_mut().filter(|sequence| ids.contains(&sequence.id));
        for (sequence, row) in sequences.zip(logits.chunks_exact(self.engine.vocab())) {
            advanced.push(sequence.id);
            if let Err(error) = sequence.advance(row) {
                failed.push((sequence.id.request, error));
            }
            if sequence.completion.finish().is_some() {
                result.finished.push(sequence.id);
            }
        }
        self.scheduler.complete(&ScheduledPass::Decode(advanced), &result);
        for (request, error) in failed {
            self.fail(request, error.into());
        }
        self.release_finished();
        if let (Some(error), Some(newest)) = (error, newest) {
            self.fail(newest, error.into());
        }
    }

    /// Computes the next token of each of `ids`, in the order of `sequences`, and appends their
    /// logits. Host kernels give a few sequences at once, to the bit, what each would get alone; more
    /// are computed in groups.
    fn decode(&mut self, ids: &[SequenceId], logits: &mut Vec<f32>) -> Result<()> {
        let group = if self.shares_blocks() { FEW_TOKENS } else { ids.len().max(1) };
        let sequences = self.sequences.iter_mut().filter(|sequence| ids.contains(&sequence.id));
        let runs = sequences.map(|sequence| {
            let Sequence { completion, cache, .. } = sequence;
            let tokens = completion.tokens().get(cache.tokens()..).unwrap_or_default();
            SequenceRun { tokens, cache }
        });
        let mut runs: Vec<SequenceRun<'_>> = runs.collect();
        for runs in runs.chunks_mut(group) {
            logits.append(&mut self.engine.decode(runs)?);
        }
        Ok(())
    }

    /// Adds what is read of a prompt to the prompt cache.
    fn cache_prefix(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.iter().find(|sequence| sequence.id == id) else {
            return;
        };
        if !self.prefixes.is_enabled() {
            return;
        }
        let prompt = sequence.prompt();
        let read = sequence.cache.tokens().min(prompt.len());
        let end = match self.chunk_ends {
            ChunkEnds::Anywhere => read,
            ChunkEnds::AtSnapshots => block_end(&prompt.images, read),
        };
        if let Some(cache) = fork_prefix(&sequence.cache, end) {
            let tokens = prompt.tokens.get(..end).unwrap_or_default();
            self.prefixes.insert(tokens, &prompt.images, cache);
        }
    }

    /// Makes room for blocks that were shared just now: a sequence copies the block in which it
    /// continues.
    fn refit(&mut self) {
        let refitted = self.with_budget(None, |scheduler, budget| scheduler.refit(budget));
        if let Err(error) = refitted {
            tracing::error!(%error, "cannot count cached prefixes");
        }
    }

    /// Fails a running request with all of its completions.
    fn fail(&mut self, request: u64, error: ApiError) {
        let sequence = self.sequences.iter().find(|sequence| sequence.id.request == request);
        let Some(sequence) = sequence else { return };
        tracing::error!(request, error = %error.message(), "failed");
        sequence.send_failed(error);
        self.sequences.retain(|sequence| sequence.id.request != request);
        self.scheduler.remove(request);
        self.status.metrics.failed.add(1);
    }

    /// Removes finished sequences.
    fn release_finished(&mut self) {
        let finished: Vec<Sequence> = self
            .sequences
            .extract_if(.., |sequence| sequence.completion.finish().is_some())
            .collect();
        for mut sequence in finished {
            let finish = sequence.completion.finish().unwrap_or(Finish::Stop);
            self.report(&sequence, finish);
            sequence.send_finished(finish);
        }
    }
}

#[cfg(test)]
mod tests;
