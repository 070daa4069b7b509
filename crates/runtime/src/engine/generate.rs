//! The decode loop of one sequence: sample, detokenise, watch for stops, count.

use std::ops::ControlFlow;
use std::time::Instant;

use mlxcel_core::{SequenceCache, SequenceRun};

use super::text_stream::TextStream;
use super::{Engine, LogitRows, Progress, Statistics};
use crate::sampling::{Sampler, SamplingParams};
use crate::text::Tokenizer;
use crate::vision::PlacedImage;
use crate::{Error, Result};

/// What to generate.
pub struct Generation<'a> {
    /// Prompt tokens, at least one.
    pub prompt: &'a [u32],
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation and are not part of it.
    pub stop: &'a [String],
    /// Whether the model's end tokens are ignored.
    pub ignore_eos: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model's end token, or a stop string.
    Stop,
    /// `max_tokens` tokens are generated.
    Length,
    /// The caller broke off.
    Interrupted,
}

impl Finish {
    /// The name in statistics and, but for interruptions, in OpenAI's API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What was generated and how long it took.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it ended.
    pub finish: Finish,
    /// The generated tokens, end token included.
    pub tokens: Vec<u32>,
    /// Counts and times.
    pub statistics: Statistics,
}

/// Generates from a prompt; `emit` receives text as soon as it is final, and may break off.
///
/// # Errors
/// An empty prompt, one that leaves no room for the wanted tokens in the model's context, bad
/// sampling parameters or stop strings, failed operations.
pub fn generate(
    engine: &Engine,
    tokenizer: &Tokenizer,
    request: &Generation<'_>,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    generate_into(engine, tokenizer, request, &mut engine.new_cache()?, progress, emit)
}

/// [`generate`] with images in place of some of the prompt's tokens, in order.
///
/// # Errors
/// As [`generate`], and images that do not lie in the prompt.
pub fn generate_with_images(
    engine: &Engine,
    tokenizer: &Tokenizer,
    request: &Generation<'_>,
    images: &[PlacedImage],
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    let mut cache = engine.new_cache()?;
    let prompt = Prompt { images, cache: &mut cache };
    run(engine, tokenizer, request, prompt, progress, emit)
}

/// [`generate`] with a cache that holds the beginning of the prompt; the rest of it is read. The
/// cache then holds the prompt and all generated tokens but the last one.
///
/// # Errors
/// As [`generate`]; a cache that holds the whole prompt counts as an empty prompt.
pub fn generate_into(
    engine: &Engine,
    tokenizer: &Tokenizer,
    request: &Generation<'_>,
    cache: &mut SequenceCache,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    run(engine, tokenizer, request, Prompt { images: &[], cache }, progress, emit)
}

/// What a prompt has besides its tokens.
struct Prompt<'a> {
    images: &'a [PlacedImage],
    /// The beginning of it.
    cache: &'a mut SequenceCache,
}

fn run(
    engine: &Engine,
    tokenizer: &Tokenizer,
    request: &Generation<'_>,
    Prompt { images, cache }: Prompt<'_>,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    room(engine.context(), request.prompt.len(), Some(request.max_tokens), request.max_tokens)?;
    let text = TextOut { stream: TextStream::new(tokenizer, request.stop)?, emit };
    let mut sampler = Sampler::new(&request.sampling, engine.vocab())?;
    let (reused_tokens, start) = (cache.tokens(), Instant::now());
    let new = request.prompt.get(reused_tokens..).unwrap_or_default();
    let logits = engine.prefill_with_images(new, images, &mut *cache, progress)?;
    let tokens = Vec::new();
    let mut decode = Decode {
        engine,
        tokenizer,
        request,
        cache,
        text,
        reused_tokens,
        start,
        tokens,
        first: None,
    };
    let finish = decode.run(logits, &mut sampler, progress)?;
    let statistics = decode.statistics();
    decode.text.finish(finish);
    Ok(Outcome { finish, tokens: decode.tokens, statistics })
}

/// How many tokens to generate after a prompt: those wanted, which must fit the context, or up to
/// `default` where nothing was said.
///
/// # Errors
/// An empty prompt; [`Error::ContextExceeded`] when what is wanted, or a single token, has no room.
pub fn room(
    context: Option<usize>,
    prompt_tokens: usize,
    wanted: Option<usize>,
    default: usize,
) -> Result<usize> {
    if prompt_tokens == 0 {
        return Err(Error::EmptyPrompt);
    }
    let Some(context) = context else { return Ok(wanted.unwrap_or(default)) };
    let left = context.saturating_sub(prompt_tokens);
    let least = wanted.unwrap_or(1).max(1);
    if least > left {
        return Err(Error::ContextExceeded { tokens: prompt_tokens, wanted: least, context });
    }
    Ok(wanted.unwrap_or(default.min(left)))
}

/// The tokens after a prompt, one by one.
struct Decode<'a, 'e> {
    engine: &'a Engine,
    tokenizer: &'a Tokenizer,
    request: &'a Generation<'a>,
    cache: &'a mut SequenceCache,
    text: TextOut<'e>,
    /// Tokens that the cache held before.
    reused_tokens: usize,
    start: Instant,
    tokens: Vec<u32>,
    first: Option<Instant>,
}

impl Decode<'_, '_> {
    /// Samples until something ends the generation; `logits` are those after the prompt.
    fn run(
        &mut self,
        mut logits: Vec<f32>,
        sampler: &mut Sampler,
        progress: &mut dyn Progress,
    ) -> Result<Finish> {
        let request = self.request;
        let mut history = request.prompt.to_vec();
        while self.tokens.len() < request.max_tokens {
            let token = sampler.sample(&logits, &history)?.token;
            history.push(token);
            self.tokens.push(token);
            self.first.get_or_insert_with(Instant::now);
            if !request.ignore_eos && self.tokenizer.is_eos(token) {
                return Ok(Finish::Stop);
            }
            if let Some(end) = self.text.push(token) {
                return Ok(end);
            }
            if progress.decoded(&self.statistics()).is_break() {
                return Ok(Finish::Interrupted);
            }
            if self.tokens.len() < request.max_tokens {
                let run = SequenceRun { tokens: &[token], cache: &mut *self.cache };
                logits = self.engine.forward(&mut [run], LogitRows::Last)?;
            }
        }
        Ok(Finish::Length)
    }

    /// Counts and times up to now.
    fn statistics(&self) -> Statistics {
        let first = self.first.unwrap_or_else(Instant::now);
        Statistics {
            prompt_tokens: self.request.prompt.len(),
            reused_tokens: self.reused_tokens,
            prompt_time: first - self.start,
            generated_tokens: self.tokens.len(),
            decode_time: first.elapsed(),
            kv_cache_bytes: self.cache.allocated_bytes(),
        }
    }
}

/// From tokens to emitted text.
struct TextOut<'e> {
    stream: TextStream,
    emit: &'e mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl TextOut<'_> {
    /// Feeds one token; returns why the generation ends, if it does.
    fn push(&mut self, token: u32) -> Option<Finish> {
        let text = self.stream.push(token);
        if !text.is_empty() && (self.emit)(&text).is_break() {
            return Some(Finish::Interrupted);
        }
        self.stream.stopped().then_some(Finish::Stop)
    }

    /// Emits what was held back, unless the generation was broken off.
    fn finish(&mut self, finish: Finish) {
        let rest = self.stream.finish();
        if finish != Finish::Interrupted && !rest.is_empty() {
            let _ = (self.emit)(&rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_fits_or_is_refused() {
        assert_eq!(room(Some(100), 90, Some(10), 256).unwrap(), 10);
        assert_eq!(room(Some(100), 90, None, 256).unwrap(), 10);
        assert_eq!(room(Some(100), 9, None, 50).unwrap(), 50);
        assert_eq!(room(None, 9, Some(1 << 40), 256).unwrap(), 1 << 40);
        for (prompt, wanted) in [(90, Some(11)), (100, None), (101, None), (100, Some(0))] {
            let error = room(Some(100), prompt, wanted, 256).unwrap_err();
            assert!(matches!(error, Error::ContextExceeded { context: 100, .. }), "{error}");
        }
        assert!(matches!(room(None, 0, None, 256), Err(Error::EmptyPrompt)));
    }
}
