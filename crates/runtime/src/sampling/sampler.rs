//! The sampler of one text.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{OsRng, RngCore, SeedableRng, TryRngCore};

use super::exp::{exp, sum};
use super::filters::Cut;
use super::{SamplingError, SamplingOptions, SamplingParams, TokenLogprobs, penalties};

/// Chooses the tokens of one text.
///
/// Every text has a sampler of its own, so its random numbers do not depend on what else runs in
/// the same batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    random: ChaCha8Rng,
    /// The logits after bias and penalties, `[vocab]`.
    logits: Vec<f32>,
    /// Working memory of the filters and of the draw.
    scratch: Vec<f32>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its id.
    pub token: u32,
    /// Its log-probability and those of the likeliest tokens, if they were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

impl Sampler {
    /// A sampler for rows of `vocab_size` logits.
    ///
    /// # Errors
    /// [`SamplingError::TokenOutOfVocabulary`] when `logit_bias` names a token beyond
    /// `vocab_size`, [`SamplingError::NoEntropy`] when there is no seed to be had.
    pub fn new(params: &SamplingParams, vocab_size: usize) -> Result<Self, SamplingError> {
        let options = params.options().clone();
        for (token, _) in &options.logit_bias {
            if usize::try_from(*token).map_or(true, |token| token >= vocab_size) {
                let what = "logit_bias";
                return Err(SamplingError::TokenOutOfVocabulary {
                    what,
                    token: *token,
                    vocab_size,
                });
            }
        }
        let seed = match options.seed {
            Some(seed) => seed,
            None => OsRng.try_next_u64().map_err(|_| SamplingError::NoEntropy)?,
        };
        Ok(Self {
            options,
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
            logits: vec![0.0; vocab_size],
            scratch: Vec::new(),
        })
    }

    /// The seed in use, to repeat a text that was begun without one.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses a token by its logits (`[vocab]`). `history` are the tokens so far, prompt
    /// included, for the penalties. A draw takes one random number, a greedy choice none.
    ///
    /// # Errors
    /// [`SamplingError::WrongWidth`], [`SamplingError::NotANumber`], [`SamplingError::NoCandidate`].
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<Sample, SamplingError> {
        if logits.len() != self.logits.len() {
            let (expected, found) = (self.logits.len(), logits.len());
            return Err(SamplingError::WrongWidth { expected, found });
        }
        self.logits.copy_from_slice(logits);
        penalties::apply(&self.options, history, &mut self.logits)?;
        let (likeliest, peak) = likeliest(&self.logits)?;
        let token = match self.options.temperature > 0.0 {
            true => self.draw(peak).unwrap_or(likeliest),
            false => likeliest,
        };
        let logprobs = self.options.logprobs;
        let logprobs = logprobs.map(|count| TokenLogprobs::new(&self.logits, peak, token, count));
        Ok(Sample { token, logprobs })
    }

    /// Draws one of the candidates, in proportion to e^(logit / temperature).
    ///
    /// `None` only when rounding leaves nothing to draw from.
    fn draw(&mut self, peak: f32) -> Option<u32> {
        let mut cut = Cut::find(&self.options, &self.logits, peak, &mut self.scratch);
        let temperature = self.options.temperature;
        let candidate = |logit: &f32| if cut.keeps(*logit) { *logit } else { f32::NEG_INFINITY };
        self.scratch.clear();
        self.scratch.extend(self.logits.iter().map(candidate));
        for weight in &mut self.scratch {
            *weight = exp((*weight - peak) / temperature);
        }
        let total = sum(&self.scratch, |weight| weight);
        let drawn = uniform(&mut self.random) * total;
        let mut below = 0.0;
        let weights = (0_u32..).zip(&self.scratch).filter(|(_, weight)| **weight > 0.0);
        let mut last = None;
        for (token, weight) in weights {
            below += f64::from(*weight);
            last = Some(token);
            if below > drawn {
                break;
            }
        }
        last
    }
}

/// A number in [0, 1): the upper 53 bits of one random word.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a f64 exactly")]
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The first of the largest logits, and its value.
fn likeliest(logits: &[f32]) -> Result<(u32, f32), SamplingError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, value) in (0_u32..).zip(logits.iter().copied()) {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::NotANumber { token: token as usize, value });
        }
        if value > best.1 {
            best = (token, value);
        }
    }
    if best.1 == f32::NEG_INFINITY { Err(SamplingError::NoCandidate) } else { Ok(best) }
}

#[cfg(test)]
mod tests;
