//! Continuous batching: who joins, what each pass computes, and who leaves.
//!
//! Jobs join in the order in which they came, as soon as the estimator says that they fit beside
//! what runs. Whose turn it then is, [`super::turns`] says.
//!
//! What it tells of itself is in `report`. Lives on the engine's thread. Invariant: what is admitted fits, together with what is held.

mod report;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use mlxcel_core::{FEW_TOKENS, KernelSet, SequenceCache, SequenceRun};

use super::admission::{Admission, Demand};
use super::error::ApiError;
use super::job::{Event, Job};
use super::prefix::{PrefixCache, distinct_bytes, share};
use super::sequence::{Answer, held};
use super::shared::Shared;
use super::turns::{Pass, Turns};
use super::watch::{Pressure, Watch};
use mlxcel_runtime::engine::{Engine, Finish, LogitRows};
use mlxcel_runtime::text::Tokenizer;
use mlxcel_runtime::{Error, Result};

/// Everything that runs or waits.
pub(super) struct Scheduler {
    engine: Engine,
    tokenizer: Tokenizer,
    admission: Arc<Admission>,
    shared: Arc<Shared>,
    queue: VecDeque<Job>,
    running: Vec<Answer>,
    prefixes: PrefixCache,
    watch: Watch,
    /// Answers at once.
    parallel: usize,
    /// Prompt tokens per pass with which everything that runs fits.
    chunk: usize,
    turns: Turns,
    published: Option<Instant>,
}

impl Scheduler {
    pub(super) fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        admission: Arc<Admission>,
        shared: Arc<Shared>,
        watch: Watch,
        prompt_cache_bytes: u64,
    ) -> Self {
        let mut scheduler = Self {
            chunk: engine.prefill_chunk(),
            watch,
            parallel: shared.parallel,
            engine,
            tokenizer,
            admission,
            shared,
            queue: VecDeque::new(),
            running: Vec::new(),
            prefixes: PrefixCache::new(prompt_cache_bytes),
            turns: Turns::default(),
            published: None,
        };
        scheduler.publish(true);
        scheduler
    }

    /// Puts a job at the end of the queue.
    pub(super) fn submit(&mut self, job: Job) {
        self.queue.push_back(job);
    }

    /// Whether there is nothing to do.
    pub(super) fn idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// One pass, with whatever joins before it and leaves after it.
    pub(super) fn step(&mut self) {
        let before = (self.queue.len(), self.running.len());
        self.drop_abandoned();
        let pressure = self.relieve();
        if pressure == Pressure::None || self.running.is_empty() {
            self.admit();
        }
        // An image counts as a whole turn at least, to be encoded and then to be read.
        let cost = |answer: &Answer| {
            if answer.at_image() { answer.unread().max(self.chunk) } else { answer.unread() }
        };
        let unread = |answer: &Answer| answer.prefilling().then(|| cost(answer));
        let unread: Vec<_> = self.running.iter().map(unread).collect();
        if let Some(pass) = self.turns.next(&unread, self.chunk) {
            let mut logits = Vec::new();
            let result = self.compute(&pass, &mut logits);
            let culprit = match &pass {
                Pass::Read(index) => self.running.get(*index),
                Pass::Write(_) => self.running.last(),
            };
            let culprit = culprit.map(|answer| answer.job.id);
            if let (Pass::Read(index), true) = (&pass, result.is_ok()) {
                self.snapshot(*index);
            }
            self.take(&pass, &logits);
            if matches!(pass, Pass::Read(_)) && !logits.is_empty() {
                self.settle();
            }
            if let (Err(error), Some(job)) = (result, culprit) {
                self.fail(job, error.into());
            }
        }
        let changed = before != (self.queue.len(), self.running.len());
        self.publish(changed);
    }

    /// Fails everything that is left.
    pub(super) fn fail_all(&mut self, error: &ApiError) {
        self.running.drain(..).for_each(|answer| answer.fail(error.clone()));
        for job in self.queue.drain(..) {
            let _ = job.events.send(Event::Failed(error.clone()));
            self.shared.left_queue();
        }
        self.publish(true);
    }

    /// Forgets those for whom nobody waits; their blocks are free at once.
    fn drop_abandoned(&mut self) {
        let before = self.running.len() + self.queue.len();
        self.running.retain(|answer| !answer.abandoned());
        let waiting = self.queue.len();
        self.queue.retain(|job| !job.events.is_closed());
        (self.queue.len()..waiting).for_each(|_| self.shared.left_queue());
        let dropped = before - self.running.len() - self.queue.len();
        self.shared.metrics.cancelled.add(dropped as u64);
    }

    /// Keeps measured bytes within the limit.
    fn relieve(&mut self) -> Pressure {
        let pressure = self.watch.look();
        if pressure != Pressure::None && !self.prefixes.evict() && pressure == Pressure::Hard {
            tracing::warn!("memory is over its limit: the newest request is given up");
            self.shared.metrics.aborted.add(1);
            self.fail_newest(ApiError::memory_pressure());
        }
        pressure
    }

    /// Gives up the job that joined last.
    fn fail_newest(&mut self, error: ApiError) {
        let Some(newest) = self.running.last() else { return };
        let job = newest.job.id;
        self.fail(job, error);
    }

    /// Gives up a job with all of its answers.
    fn fail(&mut self, job: u64, error: ApiError) {
        let answer = self.running.iter().find(|answer| answer.job.id == job);
        if let Some(answer) = answer {
            tracing::error!(request = job, error = %error.json()["error"]["message"], "failed");
            answer.fail(error);
            self.running.retain(|answer| answer.job.id != job);
            self.shared.metrics.failed.add(1);
        }
    }

    /// Answers that run or are about to.
    fn slots(&self) -> usize {
        let of = |answer: &Answer| if answer.prefilling() { answer.job.n } else { 1 };
        self.running.iter().map(of).sum()
    }

    /// Lets jobs join, in order, as long as they fit.
    fn admit(&mut self) {
        while let Some(job) = self.queue.front() {
            if self.slots() + job.n > self.parallel {
                break;
            }
            let hit = self.prefixes.find(&job.prompt);
            let cached = hit.as_ref().filter(|_| self.shares()).map_or(0, SequenceCache::tokens);
            let wanted = Demand::answers(cached, &job.prompt, job.max_tokens, job.n);
            match self.fit(Some(&wanted), hit.as_ref()) {
                Ok(true) => {}
                Ok(false) if !self.running.is_empty() => break,
                Ok(false) => {
                    self.refuse(&wanted);
                    continue;
                }
                Err(error) => {
                    self.refuse_with(error.into());
                    continue;
                }
            }
            self.start(hit);
        }
    }

    /// Tells how many answers could start now.
    fn count_slots(&self) {
        self.shared.metrics.free_slots.set(self.parallel.saturating_sub(self.slots()) as u64);
    }

    /// Whether sequences share blocks, or copy.
    fn shares(&self) -> bool {
        self.engine.ops().kernels() == KernelSet::Host
    }

    /// Makes room for what runs, and for `wanted` over the blocks of `hit`: first cached prefixes go,
    /// then the chunk shrinks.
    fn fit(&mut self, wanted: Option<&Demand>, hit: Option<&SequenceCache>) -> Result<bool> {
        let running = self.running.iter().map(Answer::account);
        let all: Demand = running.chain(wanted.cloned()).collect();
        loop {
            let held = self.held_bytes(hit).saturating_add(self.shared.intake.held_bytes());
            let chunk = self.admission.chunk_that_fits(&all, held)?;
            let chunk = chunk.map(|chunk| usize::try_from(chunk).unwrap_or(usize::MAX).max(1));
            let whole = chunk.is_some_and(|chunk| chunk >= self.engine.prefill_chunk());
            if !whole && self.prefixes.evict() {
                continue;
            }
            self.chunk = chunk.unwrap_or(self.chunk);
            return Ok(chunk.is_some());
        }
    }

    /// Bytes of blocks that no running sequence counts as its own.
    fn held_bytes(&self, hit: Option<&SequenceCache>) -> u64 {
        let shared = self.running.iter().filter_map(|answer| answer.shared.as_deref());
        distinct_bytes(self.prefixes.caches().chain(shared).chain(hit.filter(|_| self.shares())))
    }

    /// The first of the queue does not fit although nothing runs.
    fn refuse(&mut self, wanted: &Demand) {
        let error = match self.admission.too_large(wanted) {
            Ok(Some(too_large)) => ApiError::never_fits(&too_large),
            Ok(None) => ApiError::memory_pressure(),
            Err(error) => Error::from(error).into(),
        };
        self.refuse_with(error);
    }

    fn refuse_with(&mut self, error: ApiError) {
        if let Some(job) = self.queue.pop_front() {
            self.shared.left_queue();
            self.shared.metrics.failed.add(1);
            let _ = job.events.send(Event::Failed(error));
        }
    }

    /// Lets the first of the queue join, with the cached part of its prompt.
    fn start(&mut self, hit: Option<SequenceCache>) {
        let Some(job) = self.queue.pop_front() else { return };
        self.shared.left_queue();
        let cached_tokens = hit.as_ref().map_or(0, SequenceCache::tokens);
        let shared = hit.as_ref().filter(|_| self.shares());
        let shared = shared.and_then(|hit| held(hit, &job.prompt));
        let cache = hit.map_or_else(|| self.engine.new_cache(), Ok);
        let events = job.events.clone();
        let made = cache.and_then(|cache| {
            Answer::new(job, cache, shared, &self.tokenizer, self.engine.vocab())
        });
        match made {
            Ok(answer) => {
                self.shared.metrics.prompt_tokens.add(answer.job.prompt.len() as u64);
                self.shared.metrics.cached_tokens.add(cached_tokens as u64);
                self.running.push(answer);
                // Who sees that this one runs must see that its slot is taken.
                self.publish(true);
                let _ = events.send(Event::Started { cached_tokens });
            }
            Err(error) => {
                self.shared.metrics.failed.add(1);
                let _ = events.send(Event::Failed(error.into()));
            }
        }
    }

    /// Runs a pass; adds a row of logits per answer, none where only a part of a prompt was read.
    fn compute(&mut self, pass: &Pass, logits: &mut Vec<f32>) -> Result<()> {
        match pass {
            Pass::Read(index) => self.read(*index, logits),
            Pass::Write(answers) => self.write(answers, logits),
        }
    }

    /// Reads on in the prompt of an answer. An image is encoded in one pass and read in the next; those
    /// beside the tokens are all encoded before the first token.
    fn read(&mut self, index: usize, logits: &mut Vec<f32>) -> Result<()> {
        let Some(answer) = self.running.get_mut(index) else { return Ok(()) };
        if let Some(picture) = answer.unseen() {
            let encoded = self.engine.encode_image(&picture.pixels)?;
            answer.see(encoded);
            return Ok(());
        }
        let beside = answer.take_beside();
        self.engine.show_images(&mut answer.cache, &beside)?;
        let tokens = answer.next_tokens(self.chunk).to_vec();
        let partial = answer.unread() > tokens.len();
        let rows = if partial { LogitRows::None } else { LogitRows::Last };
        let done = answer.cache.tokens();
        let image = answer.image_rows(done..done + tokens.len()).into_iter().collect();
        let run = SequenceRun { tokens: &tokens, cache: &mut answer.cache };
        logits.append(&mut self.engine.read(run, image, rows)?);
        answer.forget_read_images();
        Ok(())
    }

    /// Computes a token of each of `answers`. Our kernels give a few tokens at once what each
    /// would get alone; more answers are computed a few at a time.
    fn write(&mut self, answers: &[usize], logits: &mut Vec<f32>) -> Result<()> {
        let at_once = if self.shares() { FEW_TOKENS } else { answers.len() };
        for some in answers.chunks(at_once.max(1)) {
            let mut running: Vec<_> = self.running.iter_mut().map(Some).collect();
            let mut inputs = Vec::with_capacity(some.len());
            for index in some {
                let Some(answer) = running.get_mut(*index).and_then(Option::take) else { continue };
                inputs.push((answer.next_tokens(self.chunk).to_vec(), &mut answer.cache));
            }
            let mut runs: Vec<SequenceRun<'_>> =
                inputs.iter_mut().map(|(tokens, cache)| SequenceRun { tokens, cache }).collect();
            logits.append(&mut self.engine.forward(&mut runs, LogitRows::Last)?);
        }
        Ok(())
    }

    /// Keeps states that cannot go back where a later prompt can go on from them: at the last cut of
    /// a prompt, which is the end of a pass.
    fn snapshot(&mut self, index: usize) {
        let Some(answer) = self.running.get(index) else { return };
        if !answer.cache.can_trim() && answer.at_last_cut() {
            keep(&mut self.prefixes, answer);
            self.settle();
        }
    }

    /// Makes room for what was kept just now: an answer copies the block that it goes on in.
    fn settle(&mut self) {
        if let Err(error) = self.fit(None, None) {
            tracing::error!(%error, "cached prefixes are not counted");
        }
    }

    /// Hands each answer of the pass its logits.
    fn take(&mut self, pass: &Pass, logits: &[f32]) {
        let answers = match pass {
            Pass::Write(answers) => answers.as_slice(),
            Pass::Read(answer) => std::slice::from_ref(answer),
        };
        let mut joined = Vec::new();
        let mut failed = Vec::new();
        for (index, row) in answers.iter().zip(logits.chunks_exact(self.engine.vocab())) {
            let Some(answer) = self.running.get_mut(*index) else { continue };
            let mut others = Vec::new();
            let mut result = Ok(());
            if answer.prefilling() {
                if self.engine.ops().kernels() == KernelSet::Host {
                    answer.share();
                }
                match answer.others(&self.tokenizer, self.engine.vocab()) {
                    Ok(made) => others = made,
                    Err(error) => result = Err(error),
                }
                keep(&mut self.prefixes, answer);
            }
            for answer in others.iter_mut().chain([answer]) {
                result = result.and_then(|()| answer.take(row, &self.tokenizer));
            }
            if let (Err(error), Some(answer)) = (result, self.running.get(*index)) {
                failed.push((answer.job.id, error));
            }
            joined.extend(others);
        }
        self.running.extend(joined);
        for (job, error) in failed {
            self.fail(job, error.into());
        }
        self.leave();
    }

    /// Lets those go that are complete.
    fn leave(&mut self) {
        let (done, running) =
            std::mem::take(&mut self.running).into_iter().partition(|a| a.finished.is_some());
        self.running = running;
        let done: Vec<Answer> = done;
        for mut answer in done {
            let finish = answer.finished.unwrap_or(Finish::Stop);
            self.report(&answer, finish);
            answer.finish(finish);
        }
    }
}

/// Keeps what is read of an answer's prompt for later ones.
fn keep(prefixes: &mut PrefixCache, answer: &Answer) {
    if !prefixes.enabled() {
        return;
    }
    let tokens = answer.prefix();
    if let Some(cache) = share(&answer.cache, tokens.len()) {
        prefixes.insert(tokens, &answer.job.prompt.images, cache);
    }
}
