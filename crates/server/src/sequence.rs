//! One answer in the making: its tokens, its cache, its sampler and where its text goes.

use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mlxcel_core::{ImageRows, SequenceCache};

use super::admission::Demand;
use super::error::ApiError;
use super::images::Picture;
use super::job::{Event, Job};
use super::prompt::{Ends, Prompt};
use super::{prefix, prompt};
use mlxcel_runtime::Result;
use mlxcel_runtime::engine::{Finish, TextStream};
use mlxcel_runtime::sampling::{Sampler, SamplingParams};
use mlxcel_runtime::text::Tokenizer;
use mlxcel_runtime::vision::{EncodedImage, ImagePlacement, PlacedImage};

/// An answer that runs. Until its prompt is read it stands for all answers to it.
pub(super) struct Answer {
    pub(super) job: Rc<Job>,
    pub(super) index: usize,
    pub(super) cache: SequenceCache,
    /// What is shared with others: held bytes that this sequence does not count as its own.
    pub(super) shared: Option<Rc<SequenceCache>>,
    /// Prompt and generated tokens.
    pub(super) history: Vec<u32>,
    /// Images of the prompt that are to be read, the last one first.
    images: Vec<Unread>,
    pub(super) generated: usize,
    sampler: Sampler,
    text: TextStream,
    pub(super) first_token: Option<Instant>,
    /// Why it is complete, once it is.
    pub(super) finished: Option<Finish>,
}

/// An image that is not in the cache.
struct Unread {
    /// The tokens whose place it takes, or the one that stands for it.
    tokens: Range<usize>,
    /// Whether it stands beside the tokens, where it is seen from the first one on.
    beside: bool,
    picture: Picture,
    encoded: Option<EncodedImage>,
}

impl Answer {
    /// The first answer to `job`, with the part of its prompt that is in `hit`.
    ///
    /// # Errors
    /// Sampling that does not fit the model.
    pub(super) fn new(
        mut job: Job,
        cache: SequenceCache,
        shared: Option<SequenceCache>,
        tokenizer: &Tokenizer,
        vocab: usize,
    ) -> Result<Self> {
        let sampler = Sampler::new(&job.sampling, vocab)?;
        let text = TextStream::new(tokenizer, &job.stop)?;
        let pictures = std::mem::take(&mut job.pictures);
        let unread = job.prompt.images.iter().zip(pictures).map(|(key, picture)| {
            let beside = matches!(key.reading, ImagePlacement::CrossAttention { .. });
            Unread { tokens: key.tokens.clone(), beside, picture, encoded: None }
        });
        let done = cache.tokens();
        let missing = |image: &Unread| match image.beside {
            true => done == 0,
            false => image.tokens.start >= done,
        };
        let images = unread.rev().filter(missing).collect();
        Ok(Self {
            index: job.first_answer,
            history: job.prompt.tokens.clone(),
            images,
            job: Rc::new(job),
            cache,
            shared: shared.map(Rc::new),
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
                images: Vec::new(),
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

    /// The next tokens to compute: up to `chunk` of the prompt or an image, or the last token.
    pub(super) fn next_tokens(&self, chunk: usize) -> &[u32] {
        let done = self.cache.tokens();
        let end = match self.prefilling() {
            true => self.job.prompt.pass_end(done, chunk, self.ends()),
            false => self.history.len(),
        };
        self.history.get(done..end).unwrap_or_default()
    }

    /// Where passes over the prompt end: a state that cannot go back is kept where one does.
    fn ends(&self) -> Ends {
        if self.cache.can_trim() { Ends::Anywhere } else { Ends::AtCuts }
    }

    /// The image that the next tokens stand for, or that stands beside all of them.
    fn next_image(&self) -> Option<&Unread> {
        let next = |image: &&Unread| image.beside || image.tokens.contains(&self.cache.tokens());
        self.images.iter().rfind(next)
    }

    /// Where the image is, among those to be read, that has to be encoded before the next tokens.
    fn next_unseen(&self) -> Option<usize> {
        let next = |image: &Unread| image.beside || image.tokens.contains(&self.cache.tokens());
        self.images.iter().rposition(|image| image.encoded.is_none() && next(image))
    }

    /// Whether the next tokens stand for an image.
    pub(super) fn at_image(&self) -> bool {
        self.next_image().is_some()
    }

    /// The image that has to be encoded before the next tokens can be read.
    pub(super) fn unseen(&self) -> Option<&Picture> {
        Some(&self.images.get(self.next_unseen()?)?.picture)
    }

    /// Takes what the encoder made of [`Self::unseen`].
    pub(super) fn see(&mut self, encoded: EncodedImage) {
        let next = self.next_unseen();
        if let Some(image) = next.and_then(|index| self.images.get_mut(index)) {
            image.encoded = Some(encoded);
        }
    }

    /// The images beside the tokens, in order, once all of them are encoded; they are then read.
    pub(super) fn take_beside(&mut self) -> Vec<PlacedImage> {
        let beside = self.images.extract_if(.., |image| image.beside);
        let placed = beside.filter_map(|Unread { tokens, encoded, .. }| {
            Some(PlacedImage { start: tokens.start, image: encoded? })
        });
        let mut placed: Vec<_> = placed.collect();
        placed.reverse();
        placed
    }

    /// The rows of an image that the pass over the tokens `pass` of the prompt is for.
    pub(super) fn image_rows(&self, pass: Range<usize>) -> Option<ImageRows> {
        let Unread { tokens, encoded, .. } = self.next_image()?;
        let image = encoded.clone()?;
        PlacedImage { start: tokens.start, image }.rows_in(pass)
    }

    /// Forgets images that the cache holds now.
    pub(super) fn forget_read_images(&mut self) {
        let done = self.cache.tokens();
        self.images.retain(|image| image.tokens.end > done);
    }

    /// Whether the prompt is read up to the last place where a state is kept.
    pub(super) fn at_last_cut(&self) -> bool {
        let cut = self.job.prompt.last_cut();
        self.prefilling() && cut > 0 && self.cache.tokens() == cut
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn abandoned(&self) -> bool {
        self.job.events.is_closed()
    }

    /// What the answer takes of the cache, for the estimator, beyond what is shared.
    pub(super) fn account(&self) -> Demand {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.tokens());
        let (prompt, most) = (&self.job.prompt, self.job.max_tokens);
        match self.prefilling() {
            true => Demand::answers(shared, prompt, most, self.job.n),
            false => Demand::text(shared, prompt.len() + most).beside(prompt.rows_beside(shared)),
        }
    }

    /// The tokens of the prompt that later prompts may go on from: what is read of it, or where a
    /// state was kept.
    pub(super) fn prefix(&self) -> &[u32] {
        let read = self.cache.tokens().min(self.job.prompt.len());
        let end = match self.ends() {
            Ends::Anywhere => read,
            Ends::AtCuts => prompt::cut(&self.job.prompt.images, read),
        };
        self.job.prompt.tokens.get(..end).unwrap_or_default()
    }

    /// Lets others share what the cache holds now.
    pub(super) fn share(&mut self) {
        if let Some(shared) = held(&self.cache, &self.job.prompt) {
            self.shared = Some(Rc::new(shared));
        }
    }

    /// What the answer alone takes of the cache, shared or not.
    pub(super) fn own(&self) -> Demand {
        Demand::text(0, self.cache.tokens()).beside(self.job.prompt.rows_beside(0))
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

/// What of `cache`, a beginning of `prompt`, stays shared when an answer goes on in it: whole blocks,
/// since it copies the last one. Where a window's cache cannot be cut there, all of it.
pub(super) fn held(cache: &SequenceCache, prompt: &Prompt) -> Option<SequenceCache> {
    let tokens = prompt::cut(&prompt.images, cache.tokens());
    (tokens > 0).then(|| prefix::share(cache, tokens).unwrap_or_else(|| cache.fork()))
}
