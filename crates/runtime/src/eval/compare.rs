//! KV cache modes against fp16 on the same text: perplexity, KL divergence, top-1 agreement, bytes.
//!
//! One loaded model serves all modes, each with its own cache. A window goes through all of them
//! chunk by chunk, so that the logits of two chunks and the caches of one window are all that is
//! held, whatever the text's length.

use mlxcel_core::{SequenceCache, SequenceRun};
use mlxcel_estimator::{KvMode, KvStorage};

use super::{Perplexity, log_sum_exp};
use crate::Result;
use crate::engine::{Engine, LogitRows};

/// What one mode does to a text's predictions.
#[derive(Clone, Debug, PartialEq)]
pub struct ModeScore {
    /// The mode.
    pub mode: KvMode,
    /// Nats per token; `None` when no token had a prediction.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Perplexity relative to fp16's, less 1.
    pub perplexity_change: Option<f64>,
    /// Mean of KL(fp16 ‖ mode) over scored positions, nats.
    pub mean_kl: Option<f64>,
    /// Share of scored positions whose most likely token is fp16's.
    pub top1_agreement: Option<f64>,
    /// Bytes that a token takes in all layers' caches, scales included.
    pub bytes_per_token: u64,
}

/// Scores of several modes, fp16 first.
pub struct Comparison<'e> {
    engine: &'e Engine,
    baseline: Perplexity,
    modes: Vec<Tally>,
}

impl<'e> Comparison<'e> {
    /// A comparison of `modes` (each once) with fp16, which is computed in any case.
    ///
    /// # Errors
    /// A mode that the model cannot run, before anything is computed.
    pub fn new(engine: &'e Engine, modes: &[KvMode]) -> Result<Self> {
        let mut tallies: Vec<Tally> = Vec::new();
        for &mode in modes.iter().filter(|mode| **mode != KvMode::Fp16) {
            SequenceCache::check(engine.ops(), engine.layout(), mode)?;
            if tallies.iter().all(|tally| tally.mode != mode) {
                tallies.push(Tally::new(mode));
            }
        }
        Ok(Self { engine, baseline: Perplexity::default(), modes: tallies })
    }

    /// Scores one window from empty caches.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, failed operations.
    pub fn add(&mut self, window: &[u32]) -> Result<()> {
        let (engine, vocab) = (self.engine, self.engine.vocab());
        let cache = |mode| -> Result<SequenceCache> { engine.new_cache_in(mode) };
        let mut fp16 = cache(KvMode::Fp16)?;
        let mut caches: Vec<_> = self.modes.iter().map(|m| cache(m.mode)).collect::<Result<_>>()?;
        let logits = |tokens: &[u32], cache: &mut SequenceCache| {
            engine.forward(&mut [SequenceRun { tokens, cache }], LogitRows::All)
        };
        let mut done = 0;
        for chunk in window.chunks(engine.prefill_chunk()) {
            done += chunk.len();
            let first = done - chunk.len() + 1;
            let next = &window[first..(done + 1).min(window.len())];
            let expected = logits(chunk, &mut fp16)?;
            self.baseline.add_rows(next, &expected, vocab);
            for (tally, cache) in self.modes.iter_mut().zip(&mut caches) {
                tally.add(next, &logits(chunk, cache)?, &expected, vocab);
            }
        }
        Ok(())
    }

    /// Positions scored per mode.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.baseline.tokens()
    }

    /// The scores so far: fp16, then the modes as they were given.
    ///
    /// # Errors
    /// None in practice: every mode was checked.
    pub fn scores(&self) -> Result<Vec<ModeScore>> {
        let layout = self.engine.layout();
        let dtype = self.engine.ops().dtype();
        let bytes = |mode| SequenceCache::bytes_per_token(layout, KvStorage { mode, dtype });
        let mut scores = vec![ModeScore {
            mode: KvMode::Fp16,
            loss: self.baseline.loss(),
            perplexity: self.baseline.perplexity(),
            perplexity_change: None,
            mean_kl: None,
            top1_agreement: None,
            bytes_per_token: bytes(KvMode::Fp16)?,
        }];
        for tally in &self.modes {
            scores.push(tally.score(&self.baseline, bytes(tally.mode)?));
        }
        Ok(scores)
    }
}

/// Sums of one mode.
struct Tally {
    mode: KvMode,
    perplexity: Perplexity,
    kl: f64,
    same_top: usize,
}

impl Tally {
    fn new(mode: KvMode) -> Self {
        Self { mode, perplexity: Perplexity::default(), kl: 0.0, same_top: 0 }
    }

    /// Adds rows of logits of the mode and of fp16, as [`Perplexity::add_rows`].
    fn add(&mut self, next: &[u32], logits: &[f32], expected: &[f32], vocab: usize) {
        self.perplexity.add_rows(next, logits, vocab);
        let rows = expected.chunks_exact(vocab).zip(logits.chunks_exact(vocab));
        for (expected, row) in rows.take(next.len()) {
            self.kl += kl_divergence(expected, row);
            self.same_top += usize::from(argmax(expected) == argmax(row));
        }
    }

    fn score(&self, baseline: &Perplexity, bytes_per_token: u64) -> ModeScore {
        let mean = |sum: f64| {
            (self.perplexity.tokens() > 0).then(|| sum / self.perplexity.tokens() as f64)
        };
        let losses = self.perplexity.loss().zip(baseline.loss());
        ModeScore {
            mode: self.mode,
            loss: self.perplexity.loss(),
            perplexity: self.perplexity.perplexity(),
            perplexity_change: losses.map(|(mode, fp16)| (mode - fp16).exp_m1()),
            mean_kl: mean(self.kl),
            top1_agreement: mean(self.same_top as f64),
            bytes_per_token,
        }
    }
}

/// KL(p ‖ q) in nats between the distributions of two rows of logits, in f64.
///
/// Σ p·(ln p − ln q), where ln p − ln q = (a − b) − (lse(a) − lse(b)).
#[must_use]
pub fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p_logits), log_sum_exp(q_logits));
    let terms = p_logits.iter().zip(q_logits).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    terms.map(|(a, b)| (a - p_sum).exp() * ((a - p_sum) - (b - q_sum))).sum()
}

/// Index of the largest element, the first of equal ones.
fn argmax(row: &[f32]) -> usize {
    let better = |best: usize, (i, x): (usize, &f32)| if *x > row[best] { i } else { best };
    row.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_divergence_of_two_coins() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4·ln(3/2) + 1/4·ln(1/2).
        let expected = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let p = [3.0f32.ln() + 7.0, 7.0];
        assert!((kl_divergence(&p, &[-2.0, -2.0]) - expected).abs() < 1e-7);
        assert!(kl_divergence(&p, &p).abs() < 1e-15);
    }

    #[test]
    fn a_tally_counts_scored_rows_only() {
        let mut tally = Tally::new(KvMode::Int8);
        let expected = [1.0, 0.0, 0.0, 1.0, 5.0, 0.0];
        let logits = [1.0, 0.0, 1.0, 0.0, 0.0, 5.0];
        tally.add(&[0, 1], &logits, &expected, 2);
        assert_eq!((tally.perplexity.tokens(), tally.same_top), (2, 1));
        let one = kl_divergence(&[0.0, 1.0], &[1.0, 0.0]);
        assert!((tally.kl - one).abs() < 1e-12, "{}", tally.kl);
    }
}
