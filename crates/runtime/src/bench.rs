//! Speed of one engine: prefill and decode at a chosen depth, which is filled synthetically.

use std::time::Instant;

use mlxcel_core::SequenceRun;

use crate::Result;
use crate::engine::{Engine, NoProgress};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Reading a prompt of so many tokens.
    Prefill,
    /// Decoding so many tokens one by one.
    Decode,
}

impl Test {
    /// The name that llama-bench uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "pp",
            Self::Decode => "tg",
        }
    }
}

/// One measurement to make.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What is timed.
    pub test: Test,
    /// How many tokens.
    pub tokens: usize,
    /// Tokens in the cache beforehand.
    pub depth: usize,
}

/// A measured speed.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// What was measured.
    pub plan: Plan,
    /// Mean over the repetitions.
    pub tokens_per_second: f64,
    /// Standard deviation over the repetitions.
    pub stddev: f64,
}

impl Engine {
    /// Times `plan` `repetitions` times after one short warm-up.
    ///
    /// # Errors
    /// Failed operations.
    pub fn measure(&self, plan: Plan, repetitions: usize) -> Result<Measurement> {
        self.time(Plan { tokens: plan.tokens.min(8), ..plan })?;
        let mut rates = Vec::with_capacity(repetitions);
        for _ in 0..repetitions {
            rates.push(plan.tokens as f64 / self.time(plan)?);
        }
        let mean = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>()
            / rates.len().saturating_sub(1).max(1) as f64;
        Ok(Measurement { plan, tokens_per_second: mean, stddev: variance.sqrt() })
    }

    /// Seconds for one repetition.
    fn time(&self, plan: Plan) -> Result<f64> {
        let mut cache = self.new_cache()?;
        cache.fill_synthetic(self.ops(), plan.depth)?;
        let tokens: Vec<u32> = (0..plan.tokens).map(|i| pseudo_token(i, self.vocab())).collect();
        let start = Instant::now();
        match plan.test {
            Test::Prefill => {
                self.prefill(&tokens, &mut cache, &mut NoProgress)?;
            }
            Test::Decode => {
                for token in &tokens {
                    let tokens = std::slice::from_ref(token);
                    let run = SequenceRun { tokens, cache: &mut cache };
                    self.decode(&mut [run])?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A token id that varies with `i`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below the vocabulary, which fits u32"
)]
fn pseudo_token(i: usize, vocab: usize) -> u32 {
    (i.wrapping_mul(7919) % vocab.max(1)) as u32
}
