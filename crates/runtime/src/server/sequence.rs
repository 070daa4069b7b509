//! One answer in the making: its tokens, its cache, its sampler and where its text goes.

use std::rc::Rc;
use std::time::{Duration, Instant};

use mlxcel_core::SequenceCache;
use mlxcel_estimator::Sequence;

use super::admission::{answers, sequence};
use super::error::ApiError;
use super::job::{Event, Job};
use super::prefix;
use crate::Result;
use crate::engine::{Finish, TextStream};
use crate::sampling::{Sampler, SamplingParams};
use crate::text::Tokenizer;

/// An answer that runs. Until its prompt is read it stands for all answers to it.
pub(super) struct Answer {
    pub(super) job: Rc<Job>,
    pub(super) index: usize,
    pub(super) cache: SequenceCache,
    /// What is shared with others: held bytes that this sequence does not count as its own.
    pub(super) shared: Option<SequenceCache>,
    /// Prompt and generated tokens.
    pub(super) history: Vec<u32>,
    pub(super) generated: usize,
    sampler: Sampler,
    text: TextStream,
    pub(super) first_token: Option<Instant>,
    /// Why it is complete, once it is.
    pub(super) finished: Option<Finish>,
}

impl Answer {
    /// The first answer to `job`, with the part of its prompt that is in `hit`.
    ///
    /// # Errors
    /// Sampling that does not fit the model.
    pub(super) fn new(
        job: Job,
        cache: SequenceCache,
        shared: Option<SequenceCache>,
        tokenizer: &Tokenizer,
        vocab: usize,
    ) -> Result<Self> {
        let sampler = Sampler::new(&job.sampling, vocab)?;
        let text = TextStream::new(tokenizer, &job.stop)?;
        Ok(Self {
            index: job.first_answer,
            history: job.prompt.clone(),
            job: Rc::new(job),
            cache,
            shared,
            generated: 0,
            sampler,
            text,
            first_token: None,
            finished: None,
        })
    }

    /// The other answers, once the prompt is read.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn others(&self, tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<Self>> {
        let other = |i: usize| {
            // Answers to the same prompt differ: each draws numbers of its own.
            let mut options = self.job.sampling.options().clone();
            options.seed = options.seed.map(|seed| seed.wrapping_add(i as u64));
            let sampler = Sampler::new(&SamplingParams::new(options)?, vocab)?;
            Ok(Self {
                job: Rc::clone(&self.job),
                index: self.job.first_answer + i,
                cache: self.cache.fork(),
                shared: self.shared.clone(),
                history: self.history.clone(),
                generated: 0,
                sampler,
                text: TextStream::new(tokenizer, &self.job.stop)?,
                first_token: None,
                finished: None,
            })
        };
        (1..self.job.n).map(other).collect()
    }

    /// Tokens of the prompt that are not in the cache yet.
    pub(super) fn unread(&self) -> usize {
        self.job.prompt.len().saturating_sub(self.cache.tokens())
    }

    /// Whether the prompt is still being read.
    pub(super) fn prefilling(&self) -> bool {
        self.generated == 0
    }

    /// The next tokens to compute: up to `chunk` of the prompt, or the last token. What follows
    /// the prompt's last whole block is a chunk of its own, whether the blocks before it are read
    /// or were cached: equal chunks are computed equally to the last bit.
    pub(super) fn next_tokens(&self, chunk: usize) -> &[u32] {
        let (done, prompt) = (self.cache.tokens(), self.job.prompt.len());
        let blocks = prefix::whole_blocks(prompt - 1);
        let end = match self.prefilling() {
            true if done < blocks => (done + chunk).min(blocks),
            true => (done + chunk).min(prompt),
            false => self.history.len(),
        };
        self.history.get(done..end).unwrap_or_default()
    }

    /// Whether the prompt is read up to the end of its last whole block and no further.
    pub(super) fn at_last_block(&self) -> bool {
        let blocks = prefix::whole_blocks(self.job.prompt.len() - 1);
        self.prefilling() && blocks > 0 && self.cache.tokens() == blocks
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn abandoned(&self) -> bool {
        self.job.events.is_closed()
    }

    /// What the answer takes of the cache, for the estimator, beyond what is shared.
    pub(super) fn account(&self) -> Vec<Sequence> {
        let shared = self.shared.as_ref().map_or(0, SequenceCache::tokens);
        let (prompt, most) = (self.job.prompt.len(), self.job.max_tokens);
        match self.prefilling() {
            true => answers(shared, prompt, most, self.job.n).collect(),
            false => vec![sequence(shared, prompt + most, 1)],
        }
    }

    /// Lets others share the whole blocks that the cache holds now.
    pub(super) fn share(&mut self) {
        let tokens = prefix::whole_blocks(self.cache.tokens());
        if let Some(shared) = prefix::share(&self.cache, tokens) {
            self.shared = Some(shared);
        }
    }

    /// What the answer alone takes of the cache, shared or not.
    pub(super) fn own(&self) -> [Sequence; 1] {
        [sequence(0, self.cache.tokens(), 1)]
    }

    /// Takes the logits after the last token, `[vocab]`, and notes when the answer is complete.
    ///
    /// # Errors
    /// Logits that no token can be drawn from.
    pub(super) fn take(&mut self, logits: &[f32], tokenizer: &Tokenizer) -> Result<()> {
        let sample = self.sampler.sample(logits, &self.history)?;
        self.history.push(sample.token);
        self.generated += 1;
        self.first_token.get_or_insert_with(Instant::now);
        let ends = !self.job.ignore_eos && tokenizer.is_eos(sample.token);
        let text = if ends { String::new() } else { self.text.push(sample.token) };
        let (answer, logprobs) = (self.index, sample.logprobs);
        if !ends && (!text.is_empty() || logprobs.is_some()) {
            self.send(Event::Token { answer, text, logprobs });
        }
        let full = self.generated >= self.job.max_tokens;
        self.finished = match (ends || self.text.stopped(), full) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        };
        Ok(())
    }

    /// Says that the answer is complete.
    pub(super) fn finish(&mut self, finish: Finish) {
        let text = self.text.finish();
        let (answer, generated_tokens) = (self.index, self.generated);
        self.send(Event::Finished { answer, finish, text, generated_tokens });
    }

    /// Says that the whole job has failed.
    pub(super) fn fail(&self, error: ApiError) {
        self.send(Event::Failed(error));
    }

    /// Time from the queue to the first token.
    pub(super) fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|first| first - self.job.since)
    }

    fn send(&self, event: Event) {
        // A closed channel is noticed at the next step, by `abandoned`.
        let _ = self.job.events.send(event);
    }
}
