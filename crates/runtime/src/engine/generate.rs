//! Generation from one prompt: prefill, then the decode loop.

use std::ops::ControlFlow;
use std::time::Instant;

use mlxcel_core::{SequenceCache, SequenceRun};

use super::completion::{Completion, CompletionOptions, GeneratedToken};
use super::{Engine, Progress, Statistics};
use crate::sampling::SamplingParams;
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
pub(crate) fn generate_into(
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
    let options = CompletionOptions {
        sampling: &request.sampling,
        stop: request.stop,
        max_tokens: request.max_tokens,
        ignore_eos: request.ignore_eos,
    };
    let completion = Completion::new(tokenizer, engine.vocab(), request.prompt, options)?;
    let reused_tokens = cache.tokens();
    let start = Instant::now();
    let new = request.prompt.get(reused_tokens..).unwrap_or_default();
    let logits = engine.prefill_with_images(new, images, &mut *cache, progress)?;
    let mut decode = Decode { engine, cache, completion, reused_tokens, start };
    let finish = decode.run(logits, progress, emit)?;
    let statistics = decode.statistics();
    let rest = decode.completion.remaining_text();
    if finish != Finish::Interrupted && !rest.is_empty() {
        let _ = emit(&rest);
    }
    Ok(Outcome { finish, tokens: decode.completion.generated().to_vec(), statistics })
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

/// Decode loop of one sequence.
struct Decode<'a> {
    engine: &'a Engine,
    cache: &'a mut SequenceCache,
    completion: Completion,
    /// Prompt tokens that the cache held before.
    reused_tokens: usize,
    start: Instant,
}

impl Decode<'_> {
    /// Generates until the completion ends; `logits` are those of the prompt's last token.
    fn run(
        &mut self,
        mut logits: Vec<f32>,
        progress: &mut dyn Progress,
        emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Finish> {
        loop {
            if let Some(finish) = self.completion.finish() {
                return Ok(finish);
            }
            let GeneratedToken { token, text, .. } = self.completion.advance(&logits)?;
            let mut flow = ControlFlow::Continue(());
            if !text.is_empty() {
                flow = emit(&text);
            }
            if flow.is_continue() && self.completion.finish() != Some(Finish::Stop) {
                flow = progress.decoded(&self.statistics());
            }
            if flow.is_break() {
                self.completion.interrupt();
            }
            if self.completion.finish().is_none() {
                let run = SequenceRun { tokens: &[token], cache: &mut *self.cache };
                logits = self.engine.decode(&mut [run])?;
            }
        }
    }

    /// Counts and times up to now.
    fn statistics(&self) -> Statistics {
        let first = self.completion.first_token().unwrap_or_else(Instant::now);
        let generated_tokens = self.completion.generated_tokens();
        Statistics {
            prompt_tokens: self.completion.tokens().len() - generated_tokens,
            reused_tokens: self.reused_tokens,
            prompt_time: first - self.start,
            generated_tokens,
            decode_time: first.elapsed(),
            kv_cache_bytes: self.cache.allocated_bytes(),
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
