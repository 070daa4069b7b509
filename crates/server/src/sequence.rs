//! A running completion: its cache, its token loop, its images, and where its text goes.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use mlxcel_core::{ImageRows, SequenceCache};
use mlxcel_runtime::Result;
use mlxcel_runtime::engine::{Completion, CompletionOptions, Finish};
use mlxcel_runtime::sampling::SamplingParams;
use mlxcel_runtime::text::Tokenizer;
use mlxcel_runtime::vision::{EncodedImage, ImagePlacement, Pixels, PlacedImage};

use super::admission::MemoryDemand;
use super::error::ApiError;
use super::images::PreparedImage;
use super::messages::{EngineEvent, EngineRequest};
use super::prefix_cache::fork_whole_blocks;
use super::prompt::Prompt;
use super::scheduler::SequenceId;

/// A completion that runs. Until its prompt is read it stands for all completions of the request.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) request: Rc<EngineRequest>,
    pub(super) cache: SequenceCache,
    /// Blocks shared with others, which this sequence does not count as its own.
    pub(super) shared: Option<Rc<SequenceCache>>,
    pub(super) completion: Completion,
    /// Per image of the prompt.
    images: Vec<ImageState>,
}

/// An image on its way into the cache.
enum ImageState {
    /// Pixels, to be encoded.
    Prepared(PreparedImage),
    /// Rows, to be read.
    Encoded(EncodedImage),
    /// In the cache, from an earlier prompt or this one.
    Read,
}

impl Sequence {
    /// First completion of `request`, over `cache`, which holds the beginning of its prompt.
    ///
    /// # Errors
    /// Sampling that does not fit the model.
    pub(super) fn new(
        mut request: EngineRequest,
        cache: SequenceCache,
        shared: Option<SequenceCache>,
        tokenizer: &Tokenizer,
        vocab: usize,
    ) -> Result<Self> {
        let completion = start(&request, &request.sampling, tokenizer, vocab)?;
        let images = std::mem::take(&mut request.images);
        let mut images: Vec<Option<PreparedImage>> = images.into_iter().map(Some).collect();
        let mut states = Vec::new();
        states.resize_with(images.len(), || ImageState::Read);
        for index in request.prompt.images_after(cache.tokens()) {
            let prepared = images.get_mut(index).and_then(Option::take);
            if let (Some(state), Some(prepared)) = (states.get_mut(index), prepared) {
                *state = ImageState::Prepared(prepared);
            }
        }
        Ok(Self {
            id: SequenceId { request: request.id, completion: 0 },
            request: Rc::new(request),
            cache,
            shared: shared.map(Rc::new),
            completion,
            images: states,
        })
    }

    /// The other completions of the request, once the prompt is read. Each draws from a seed of its
    /// own: with a fixed seed, the seed plus the number of the completion.
    ///
    /// # Errors
    /// Errors of [`Self::new`].
    pub(super) fn forks(&self, tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<Self>> {
        let mut forks = Vec::new();
        for completion in 1..self.request.n {
            let mut options = self.request.sampling.options().clone();
            options.seed = options.seed.map(|seed| seed.wrapping_add(completion as u64));
            let sampling = SamplingParams::new(options)?;
            forks.push(Self {
                id: SequenceId { completion, ..self.id },
                request: Rc::clone(&self.request),
                cache: self.cache.fork(),
                shared: self.shared.clone(),
                completion: start(&self.request, &sampling, tokenizer, vocab)?,
                images: Vec::new(),
            });
        }
        Ok(forks)
    }

    /// The prompt.
    pub(super) fn prompt(&self) -> &Prompt {
        &self.request.prompt
    }

    /// Index of the completion among those of the HTTP request.
    pub(super) fn index(&self) -> usize {
        self.request.first_index + self.id.completion
    }

    /// Pixels of image `index`, if they are still to be encoded.
    pub(super) fn pixels(&self, index: usize) -> Option<&Pixels> {
        match self.images.get(index)? {
            ImageState::Prepared(image) => Some(&image.pixels),
            ImageState::Encoded(_) | ImageState::Read => None,
        }
    }

    /// Replaces the pixels of image `index` by its rows.
    pub(super) fn set_encoded(&mut self, index: usize, encoded: EncodedImage) {
        if let Some(state) = self.images.get_mut(index) {
            *state = ImageState::Encoded(encoded);
        }
    }

    /// Takes the images beside the tokens, for cross-attention, in order. They are read before the
    /// first token.
    pub(super) fn take_cross_images(&mut self) -> Vec<PlacedImage> {
        let mut placed = Vec::new();
        for (key, state) in self.request.prompt.images.iter().zip(&mut self.images) {
            if !matches!(key.placement, ImagePlacement::CrossAttention { .. }) {
                continue;
            }
            if let ImageState::Encoded(image) = std::mem::replace(state, ImageState::Read) {
                placed.push(PlacedImage { start: key.tokens.start, image });
            }
        }
        placed
    }

    /// Rows of images that replace tokens of the chunk `tokens` of the prompt.
    pub(super) fn image_rows(&self, tokens: &Range<usize>) -> Vec<ImageRows> {
        let mut rows = Vec::new();
        for (key, state) in self.prompt().images.iter().zip(&self.images) {
            if let ImageState::Encoded(image) = state {
                let placed = PlacedImage { start: key.tokens.start, image: image.clone() };
                rows.extend(placed.rows_in(tokens.clone()));
            }
        }
        rows
    }

    /// Frees the rows of images that the cache holds.
    pub(super) fn release_read_images(&mut self) {
        let end = self.cache.tokens();
        for (key, state) in self.request.prompt.images.iter().zip(&mut self.images) {
            if key.tokens.end <= end {
                *state = ImageState::Read;
            }
        }
    }

    /// Returns true if the client is gone.
    pub(super) fn is_abandoned(&self) -> bool {
        self.request.events.is_closed()
    }

    /// Lets other sequences share the blocks of the prompt.
    pub(super) fn share_blocks(&mut self) {
        if let Some(shared) = fork_whole_blocks(&self.cache, &self.request.prompt) {
            self.shared = Some(Rc::new(shared));
        }
    }

    /// Memory of the sequence on its own, as if it shared nothing.
    pub(super) fn unshared_demand(&self) -> MemoryDemand {
        MemoryDemand::text(0, self.cache.tokens()).with_cross_rows(self.prompt().cross_rows(0))
    }

    /// Advances the token loop by a row of logits, `[vocab]`, and sends its text.
    ///
    /// # Errors
    /// Logits from which no token can be drawn.
    pub(super) fn advance(&mut self, logits: &[f32]) -> Result<()> {
        let token = self.completion.advance(logits)?;
        if !token.text.is_empty() || token.logprobs.is_some() {
            let index = self.index();
            self.send(EngineEvent::Token { index, text: token.text, logprobs: token.logprobs });
        }
        Ok(())
    }

    /// Sends the end of the completion.
    pub(super) fn send_finished(&mut self, finish: Finish) {
        let text = self.completion.remaining_text();
        let generated_tokens = self.completion.generated_tokens();
        let index = self.index();
        self.send(EngineEvent::Finished { index, finish, text, generated_tokens });
    }

    /// Sends that the request has failed.
    pub(super) fn send_failed(&self, error: ApiError) {
        self.send(EngineEvent::Failed(error));
    }

    /// Time from arrival to the first token.
    pub(super) fn time_to_first_token(&self) -> Option<Duration> {
        self.completion.first_token().map(|first| first - self.request.received)
    }

    fn send(&self, event: EngineEvent) {
        // A closed channel is noticed before the next pass, by `is_abandoned`.
        let _ = self.request.events.send(event);
    }
}

/// Starts a completion of `request`.
fn start(
    request: &EngineRequest,
    sampling: &SamplingParams,
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<Completion> {
    let EngineRequest { stop, max_tokens, ignore_eos, .. } = request;
    let options =
        CompletionOptions { sampling, stop, max_tokens: *max_tokens, ignore_eos: *ignore_eos };
    Completion::new(tokenizer, vocab, &request.prompt.tokens, options)
}
