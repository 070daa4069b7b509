//! The sampler of one sequence.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{OsRng, RngCore, SeedableRng, TryRngCore};

use super::exp::{exp, sum};
use super::filters::Cutoff;
use super::{SamplingError, SamplingOptions, SamplingParams, TokenLogprobs, penalties};

/// Samples the tokens of one sequence.
///
/// Each sequence has its own sampler, so that its random numbers do not depend on other sequences
/// in the batch.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    options: SamplingOptions,
    random: ChaCha8Rng,
    /// Logits after bias and penalties, `[vocab]`.
    logits: Vec<f32>,
    /// Working memory of the filters and the draw.
    scratch: Vec<f32>,
}

/// A sampled token.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// Token id.
    pub(crate) token: u32,
    /// Log-probabilities of this token and the likeliest ones, if requested.
    pub(crate) logprobs: Option<TokenLogprobs>,
}

impl Sampler {
    /// Creates a sampler for rows of `vocab_size` logits.
    ///
    /// # Errors
    /// [`SamplingError::TokenOutOfVocabulary`] if `logit_bias` names a token beyond `vocab_size`;
    /// [`SamplingError::NoEntropy`] if no seed is given and the system provides none.
    pub(crate) fn new(params: &SamplingParams, vocab_size: usize) -> Result<Self, SamplingError> {
        let options = params.options().clone();
        for (token, _) in &options.logit_bias {
            if usize::try_from(*token).map_or(true, |token| token >= vocab_size) {
                return Err(SamplingError::TokenOutOfVocabulary {
                    origin: "logit_bias",
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
            random: ChaCha8Rng::seed_from_u64(seed),
            logits: vec![0.0; vocab_size],
            scratch: Vec::new(),
        })
    }

    /// Samples a token from `logits`, `[vocab]`. `history` contains the previous tokens, prompt
    /// included, for the penalties. A draw consumes one random number, greedy sampling none.
    ///
    /// # Errors
    /// [`SamplingError::WrongWidth`], [`SamplingError::InvalidLogit`],
    /// [`SamplingError::NoCandidates`].
    pub(crate) fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
    ) -> Result<Sample, SamplingError> {
        if logits.len() != self.logits.len() {
            let expected = self.logits.len();
            return Err(SamplingError::WrongWidth { expected, found: logits.len() });
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

    /// Draws one of the candidates with probability proportional to e^(logit / temperature).
    /// `None` only if rounding leaves no candidate with a positive weight.
    fn draw(&mut self, peak: f32) -> Option<u32> {
        let mut cutoff = Cutoff::find(&self.options, &self.logits, peak, &mut self.scratch);
        let temperature = self.options.temperature;
        self.scratch.clear();
        self.scratch.extend(self.logits.iter().map(|logit| match cutoff.keeps(*logit) {
            true => *logit,
            false => f32::NEG_INFINITY,
        }));
        for weight in &mut self.scratch {
            *weight = exp((*weight - peak) / temperature);
        }
        let total = sum(&self.scratch, |weight| weight);
        let drawn = uniform(&mut self.random) * total;
        let mut cumulative = 0.0;
        let weights = (0_u32..).zip(&self.scratch).filter(|(_, weight)| **weight > 0.0);
        let mut last = None;
        for (token, weight) in weights {
            cumulative += f64::from(*weight);
            last = Some(token);
            if cumulative > drawn {
                break;
            }
        }
        last
    }
}

/// Uniform number in [0, 1), from the upper 53 bits of one random word.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a f64 exactly")]
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Token id and value of the largest logit, the first of equal ones.
fn likeliest(logits: &[f32]) -> Result<(u32, f32), SamplingError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, value) in (0_u32..).zip(logits.iter().copied()) {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::InvalidLogit { token: token as usize, value });
        }
        if value > best.1 {
            best = (token, value);
        }
    }
    if best.1 == f32::NEG_INFINITY { Err(SamplingError::NoCandidates) } else { Ok(best) }
}

#[cfg(test)]
mod tests;
