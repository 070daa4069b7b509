//! Continuous batching in integers: admits requests, chooses the next pass, and keeps count of what
//! passes have computed.
//!
//! Owns the queue and the counts of running sequences; knows no model, no cache and no channel.
//! The worker runs the passes that [`Scheduler::schedule`] returns and reports them to
//! [`Scheduler::complete`]. Requests are admitted in order of arrival, as soon as the budget says
//! that they fit next to the running ones. Invariants: the demand of all running sequences fits,
//! and at most `parallel` completions run.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use mlxcel_estimator::EstimatorError;

use super::admission::MemoryDemand;
use super::memory_watch::Pressure;
use super::policy::{Phase, SchedulerPolicy, Selection};
use super::prompt::{ChunkEnds, Prompt};

/// Identifies a sequence: the request and which of its completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SequenceId {
    /// Id of the request.
    pub(super) request: u64,
    /// Completion of the request, from 0.
    pub(super) completion: usize,
}

/// Memory that the scheduler may hand out.
pub(super) trait MemoryBudget {
    /// Largest prefill chunk, in tokens, with which `demand` fits next to what is held already;
    /// `None` if it does not fit with any.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    fn chunk_that_fits(&self, demand: &MemoryDemand) -> Result<Option<usize>, EstimatorError>;

    /// Drops the least recently used cached prefix; `false` if there is none.
    fn evict_prefix(&mut self) -> bool;
}

/// Constants of a scheduler.
#[derive(Clone, Copy, Debug)]
pub(super) struct SchedulerConfig {
    /// Maximum number of completions at once.
    pub(super) parallel: usize,
    /// Largest prefill chunk.
    pub(super) chunk_tokens: usize,
    /// True if sequences share blocks of a common prefix, false if they copy them.
    pub(super) shares_blocks: bool,
    /// Positions at which chunks end.
    pub(super) chunk_ends: ChunkEnds,
}

/// A request that waits for admission.
#[derive(Clone, Debug)]
pub(super) struct WaitingRequest {
    /// Id of the request.
    pub(super) id: u64,
    /// Its prompt.
    pub(super) prompt: Arc<Prompt>,
    /// Number of completions.
    pub(super) n: usize,
    /// Maximum number of tokens of each completion.
    pub(super) max_tokens: usize,
}

/// Part of a prompt that a cached prefix holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PrefixHit {
    /// Tokens that need not be computed.
    pub(super) cached_tokens: usize,
    /// Of those, tokens whose blocks stay shared while the sequence runs.
    pub(super) shared_tokens: usize,
}

/// Decision about the first waiting request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Admission {
    /// It runs now.
    Admitted,
    /// It waits until running sequences finish.
    Deferred,
    /// It does not fit although nothing runs. It has left the queue.
    Refused(MemoryDemand),
}

/// A pass to be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScheduledPass {
    /// Encodes an image of the prompt.
    EncodeImage {
        /// The sequence.
        id: SequenceId,
        /// Index of the image in the prompt.
        image: usize,
    },
    /// Reads a chunk of the prompt.
    Prefill {
        /// The sequence.
        id: SequenceId,
        /// Tokens of the prompt to compute, not empty.
        tokens: Range<usize>,
        /// True if the chunk ends the prompt, so that logits are needed.
        last: bool,
    },
    /// Generates one token of each of these sequences.
    Decode(Vec<SequenceId>),
}

/// Result of a pass, as far as the scheduler needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PassResult {
    /// Prompt tokens whose blocks are shared from now on, where a prompt was finished.
    pub(super) shared_tokens: Option<usize>,
    /// Sequences that generated their last token.
    pub(super) finished: Vec<SequenceId>,
}

/// An image of a prompt that is not in the cache yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PendingImage {
    /// Index in the prompt.
    image: usize,
    encoded: bool,
}

/// Counts of a sequence that runs. Until its prompt is read it stands for all completions of the
/// request.
#[derive(Clone, Debug)]
pub(super) struct RunningSequence {
    /// Identity.
    pub(super) id: SequenceId,
    /// The prompt.
    pub(super) prompt: Arc<Prompt>,
    /// Completions of the request.
    pub(super) n: usize,
    /// Maximum number of tokens of the completion.
    pub(super) max_tokens: usize,
    /// Tokens in the cache.
    pub(super) computed_tokens: usize,
    /// Of those, tokens in blocks shared with others.
    pub(super) shared_tokens: usize,
    /// Generated tokens.
    pub(super) generated_tokens: usize,
    images: Vec<PendingImage>,
}

impl RunningSequence {
    fn new(request: WaitingRequest, hit: PrefixHit) -> Self {
        let cached = hit.cached_tokens;
        let images = request.prompt.images_after(cached);
        Self {
            id: SequenceId { request: request.id, completion: 0 },
            images: images.map(|image| PendingImage { image, encoded: false }).collect(),
            prompt: request.prompt,
            n: request.n,
            max_tokens: request.max_tokens,
            computed_tokens: cached,
            shared_tokens: hit.shared_tokens,
            generated_tokens: 0,
        }
    }

    /// Returns true if the prompt is still being read.
    pub(super) fn is_prefilling(&self) -> bool {
        self.generated_tokens == 0
    }

    /// Memory that the sequence may come to take in addition to what it shares.
    pub(super) fn demand(&self) -> MemoryDemand {
        let shared = self.shared_tokens;
        if self.is_prefilling() {
            return MemoryDemand::completions(shared, &self.prompt, self.max_tokens, self.n);
        }
        MemoryDemand::text(shared, self.prompt.len() + self.max_tokens)
            .with_cross_rows(self.prompt.cross_rows(shared))
    }

    /// Completions that run or are about to.
    fn completions(&self) -> usize {
        if self.is_prefilling() { self.n } else { 1 }
    }

    /// Pending images of the next chunk: the one that it starts with, or all beside the tokens.
    fn next_images(&self) -> impl Iterator<Item = &PendingImage> {
        let next = self.computed_tokens;
        self.images.iter().filter(move |pending| self.prompt.reads_image(pending.image, next))
    }

    /// Work that the sequence waits for. An image costs at least a whole chunk: it is encoded, then
    /// read.
    fn phase(&self, chunk_tokens: usize) -> Phase {
        if !self.is_prefilling() {
            return Phase::Decode;
        }
        let left_tokens = self.prompt.len().saturating_sub(self.computed_tokens);
        let at_image = self.next_images().next().is_some();
        let left_tokens = if at_image { left_tokens.max(chunk_tokens) } else { left_tokens };
        Phase::Prefill { left_tokens }
    }

    /// Next pass over the prompt.
    fn prefill_pass(&self, chunk_tokens: usize, ends: ChunkEnds) -> ScheduledPass {
        let id = self.id;
        if let Some(pending) = self.next_images().find(|pending| !pending.encoded) {
            return ScheduledPass::EncodeImage { id, image: pending.image };
        }
        let start = self.computed_tokens;
        let end = self.prompt.chunk_end(start, chunk_tokens, ends);
        ScheduledPass::Prefill { id, tokens: start..end, last: end >= self.prompt.len() }
    }

    /// Notes that the prompt is computed up to `end`.
    fn prefilled(&mut self, end: usize) {
        self.computed_tokens = end;
        let prompt = &self.prompt;
        self.images.retain(|pending| prompt.image_is_unread(pending.image, end));
    }

    /// The other completions of the request, once the prompt is read.
    fn forks(&self) -> impl Iterator<Item = Self> {
        (1..self.n).map(|completion| {
            let id = SequenceId { completion, ..self.id };
            Self { id, ..self.clone() }
        })
    }
}

/// Queue, running sequences and policy.
#[derive(Debug)]
pub(super) struct Scheduler {
    config: SchedulerConfig,
    /// Prefill chunk with which everything that runs fits.
    chunk_tokens: usize,
    waiting: VecDeque<WaitingRequest>,
    running: Vec<RunningSequence>,
    policy: SchedulerPolicy,
}

impl Scheduler {
    /// An empty scheduler.
    pub(super) fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            chunk_tokens: config.chunk_tokens,
            waiting: VecDeque::new(),
            running: Vec::new(),
            policy: SchedulerPolicy::default(),
        }
    }

    /// Appends a request to the queue.
    pub(super) fn submit(&mut self, request: WaitingRequest) {
        self.waiting.push_back(request);
    }

    /// Returns true if nothing waits and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Running sequences, in the order in which they joined.
    pub(super) fn running(&self) -> &[RunningSequence] {
        &self.running
    }

    /// The running sequence `id`.
    #[cfg(test)]
    pub(super) fn sequence(&self, id: SequenceId) -> Option<&RunningSequence> {
        self.running.iter().find(|sequence| sequence.id == id)
    }

    /// Current prefill chunk.
    pub(super) fn chunk_tokens(&self) -> usize {
        self.chunk_tokens
    }

    /// Completions that could start now.
    pub(super) fn free_slots(&self) -> usize {
        let taken: usize = self.running.iter().map(RunningSequence::completions).sum();
        self.config.parallel.saturating_sub(taken)
    }

    /// Demand of everything that runs.
    pub(super) fn running_demand(&self) -> MemoryDemand {
        self.running.iter().map(RunningSequence::demand).collect()
    }

    /// Reacts to measured memory: under pressure a cached prefix is dropped. Returns the request to
    /// abort, the newest one, where the limit is exceeded and no prefix is left.
    pub(super) fn relieve(
        &mut self,
        pressure: Pressure,
        budget: &mut impl MemoryBudget,
    ) -> Option<u64> {
        if pressure == Pressure::None || budget.evict_prefix() || pressure != Pressure::Hard {
            return None;
        }
        self.running.last().map(|newest| newest.id.request)
    }

    /// Returns true if requests may be admitted: not under pressure, unless nothing runs.
    pub(super) fn may_admit(&self, pressure: Pressure) -> bool {
        pressure == Pressure::None || self.running.is_empty()
    }

    /// The first waiting request, if there are slots for its completions.
    pub(super) fn next_waiting(&self) -> Option<&WaitingRequest> {
        self.waiting.front().filter(|request| request.n <= self.free_slots())
    }

    /// Decides about [`Self::next_waiting`], of whose prompt `hit` is cached.
    ///
    /// # Errors
    /// Errors of [`MemoryBudget::chunk_that_fits`]; the request has then left the queue.
    pub(super) fn admit(
        &mut self,
        hit: PrefixHit,
        budget: &mut impl MemoryBudget,
    ) -> Result<Admission, EstimatorError> {
        let Some(request) = self.next_waiting() else { return Ok(Admission::Deferred) };
        let cached = if self.config.shares_blocks { hit.cached_tokens } else { 0 };
        let demand =
            MemoryDemand::completions(cached, &request.prompt, request.max_tokens, request.n);
        match self.fit(Some(&demand), budget) {
            Ok(true) => {
                let admitted = self.waiting.pop_front();
                self.running.extend(admitted.map(|request| RunningSequence::new(request, hit)));
                Ok(Admission::Admitted)
            }
            Ok(false) if !self.running.is_empty() => Ok(Admission::Deferred),
            Ok(false) => {
                self.waiting.pop_front();
                Ok(Admission::Refused(demand))
            }
            Err(error) => {
                self.waiting.pop_front();
                Err(error)
            }
        }
    }

    /// Chooses the prefill chunk anew, after blocks were added that running sequences do not count.
    ///
    /// # Errors
    /// Errors of [`MemoryBudget::chunk_that_fits`].
    pub(super) fn refit(&mut self, budget: &mut impl MemoryBudget) -> Result<(), EstimatorError> {
        self.fit(None, budget).map(drop)
    }

    /// Makes room for what runs and for `wanted`: cached prefixes are evicted before the chunk
    /// shrinks. `false` if there is no room.
    fn fit(
        &mut self,
        wanted: Option<&MemoryDemand>,
        budget: &mut impl MemoryBudget,
    ) -> Result<bool, EstimatorError> {
        let running = self.running.iter().map(RunningSequence::demand);
        let demand: MemoryDemand = running.chain(wanted.cloned()).collect();
        loop {
            let chunk = budget.chunk_that_fits(&demand)?.map(|tokens| tokens.max(1));
            let is_whole = chunk.is_some_and(|tokens| tokens >= self.config.chunk_tokens);
            if !is_whole && budget.evict_prefix() {
                continue;
            }
            self.chunk_tokens = chunk.unwrap_or(self.chunk_tokens);
            return Ok(chunk.is_some());
        }
    }

    /// Chooses the next pass; `None` if there is nothing to compute.
    pub(super) fn schedule(&mut self) -> Option<ScheduledPass> {
        let chunk = self.chunk_tokens;
        let phases: Vec<Phase> = self.running.iter().map(|s| s.phase(chunk)).collect();
        match self.policy.select(&phases, chunk)? {
            Selection::Prefill(index) => {
                let sequence = self.running.get(index)?;
                Some(sequence.prefill_pass(chunk, self.config.chunk_ends))
            }
            Selection::Decode(indices) => {
                let ids = indices.into_iter().filter_map(|i| Some(self.running.get(i)?.id));
                Some(ScheduledPass::Decode(ids.collect()))
            }
        }
    }

    /// Counts what `pass` has computed. A prompt that it finished makes room for the other
    /// completions of its request; finished sequences leave.
    pub(super) fn complete(&mut self, pass: &ScheduledPass, result: &PassResult) {
        match pass {
            ScheduledPass::EncodeImage { id, image } => {
                if let Some(sequence) = self.sequence_mut(*id) {
                    let pending = sequence.images.iter_mut().find(|p| p.image == *image);
                    pending.into_iter().for_each(|pending| pending.encoded = true);
                }
            }
            ScheduledPass::Prefill { id, tokens, last } => {
                let Some(sequence) = self.sequence_mut(*id) else { return };
                sequence.prefilled(tokens.end);
                if *last {
                    sequence.generated_tokens = 1;
                    sequence.shared_tokens = result.shared_tokens.unwrap_or(sequence.shared_tokens);
                    let forks: Vec<RunningSequence> = sequence.forks().collect();
                    self.running.extend(forks);
                }
            }
            ScheduledPass::Decode(ids) => {
                for sequence in self.running.iter_mut().filter(|s| ids.contains(&s.id)) {
                    sequence.computed_tokens += 1;
                    sequence.generated_tokens += 1;
                }
            }
        }
        self.running.retain(|sequence| !result.finished.contains(&sequence.id));
    }

    /// Drops a request, waiting or running, with all of its completions.
    pub(super) fn remove(&mut self, request: u64) {
        self.waiting.retain(|waiting| waiting.id != request);
        self.running.retain(|sequence| sequence.id.request != request);
    }

    fn sequence_mut(&mut self, id: SequenceId) -> Option<&mut RunningSequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id)
    }
}

#[cfg(test)]
mod tests;
