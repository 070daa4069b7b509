//! The decode loop of one sequence: sample, detokenise, watch for stops, count.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use mlxcel_core::SequenceRun;

use super::{Engine, LogitRows, Progress};
use crate::sampling::{Sampler, SamplingParams};
use crate::text::{Detokenizer, SpecialTokens, StopMatcher, Tokenizer};
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
    /// `max_tokens`, or the end of the model's context.
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

/// Counts and times of one generation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time from the start to the first sampled token.
    pub prompt_time: Duration,
    /// Tokens sampled.
    pub generated_tokens: usize,
    /// Time from the first sampled token to the last.
    pub decode_time: Duration,
    /// Bytes of the sequence's cache at the end.
    pub kv_cache_bytes: usize,
}

impl Statistics {
    /// Prompt tokens per second.
    #[must_use]
    pub fn prompt_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Decoded tokens per second; the first token belongs to the prompt.
    #[must_use]
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.generated_tokens.saturating_sub(1), self.decode_time)
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// Generates from a prompt; `emit` receives text as soon as it is final, and may break off.
///
/// # Errors
/// An empty prompt, one beyond the model's context, bad sampling parameters, failed operations.
pub fn generate(
    engine: &Engine,
    tokenizer: &Tokenizer,
    request: &Generation<'_>,
    progress: &mut dyn Progress,
    emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    let budget = token_budget(engine, request)?;
    let cache = engine.new_cache()?;
    let start = Instant::now();
    let mut logits = engine.prefill(request.prompt, &cache, progress)?;
    let mut sampler = Sampler::new(&request.sampling, engine.vocab())?;
    let mut text = TextOut {
        stream: Detokenizer::new(tokenizer.clone(), SpecialTokens::Skip).continuing(),
        stops: StopMatcher::new(request.stop.to_vec())?,
        stopped: false,
        emit,
    };
    let mut history = request.prompt.to_vec();
    let (mut generated, mut finish) = (0, Finish::Length);
    let mut first = start;
    while generated < budget {
        let token = sampler.sample(&logits, &history)?.token;
        history.push(token);
        generated += 1;
        if generated == 1 {
            first = Instant::now();
        }
        if !request.ignore_eos && tokenizer.is_eos(token) {
            finish = Finish::Stop;
            break;
        }
        if let Some(end) = text.push(token) {
            finish = end;
            break;
        }
        if generated < budget {
            let run = SequenceRun { tokens: &[token], cache: &cache };
            logits = engine.forward(&[run], LogitRows::Last)?;
        }
    }
    let decode_time = first.elapsed();
    text.finish(finish);
    let statistics = Statistics {
        prompt_tokens: request.prompt.len(),
        prompt_time: first - start,
        generated_tokens: generated,
        decode_time,
        kv_cache_bytes: cache.allocated_bytes(),
    };
    let tokens = history.split_off(request.prompt.len());
    Ok(Outcome { finish, tokens, statistics })
}

/// How many tokens may be generated: what was asked for, within the model's context.
fn token_budget(engine: &Engine, request: &Generation<'_>) -> Result<usize> {
    if request.prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let Some(context) = engine.context() else { return Ok(request.max_tokens) };
    let left = context.checked_sub(request.prompt.len()).filter(|left| *left > 0);
    let left = left.ok_or(Error::ContextExceeded { tokens: request.prompt.len(), context })?;
    Ok(request.max_tokens.min(left))
}

/// From tokens to emitted text: whole characters, nothing of a stop string.
struct TextOut<'e> {
    stream: Detokenizer,
    stops: StopMatcher,
    stopped: bool,
    emit: &'e mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl TextOut<'_> {
    /// Feeds one token; returns why the generation ends, if it does.
    fn push(&mut self, token: u32) -> Option<Finish> {
        let piece = self.stream.push(token)?;
        let found = self.stops.push(&piece);
        if !found.text.is_empty() && (self.emit)(&found.text).is_break() {
            return Some(Finish::Interrupted);
        }
        self.stopped = found.stop.is_some();
        self.stopped.then_some(Finish::Stop)
    }

    /// Emits what was held back, unless the generation was broken off or hit a stop string.
    fn finish(&mut self, finish: Finish) {
        if finish == Finish::Interrupted || self.stopped {
            return;
        }
        let mut rest = self.stops.push(&self.stream.finish()).text;
        rest.push_str(&self.stops.finish());
        if !rest.is_empty() {
            let _ = (self.emit)(&rest);
        }
    }
}
