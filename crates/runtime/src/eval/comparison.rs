//! Comparison of KV cache modes with fp16 on the same text: perplexity, KL divergence, top-1
//! agreement, bytes per token.
//!
//! All modes share one loaded model and have their own caches. Each window is computed chunk by chunk
//! in all modes, so that memory is limited to the logits of two chunks and the caches of one window.

use mlxcel_core::{SequenceCache, SequenceRun};
use mlxcel_estimator::{KvMode, KvStorage};

use super::{Perplexity, log_sum_exp};
use crate::Result;
use crate::engine::{Engine, LogitRows};

/// Quality of one KV cache mode on a text.
#[derive(Clone, Debug, PartialEq)]
pub struct ModeScore {
    /// KV cache mode.
    pub mode: KvMode,
    /// Nats per token; `None` if no token was scored.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Perplexity relative to that of fp16, minus 1.
    pub perplexity_change: Option<f64>,
    /// Mean of KL(fp16 ‖ mode) over scored positions, nats.
    pub mean_kl: Option<f64>,
    /// Fraction of scored positions whose most likely token is that of fp16.
    pub top1_agreement: Option<f64>,
    /// Cache size per token over all layers, scales included.
    pub bytes_per_token: u64,
}

/// Running scores of several modes, fp16 first.
pub struct Comparison<'e> {
    engine: &'e Engine,
    baseline: Perplexity,
    modes: Vec<ModeSums>,
}

impl<'e> Comparison<'e> {
    /// Creates a comparison of `modes`, without duplicates, with fp16, which is always included.
    ///
    /// # Errors
    /// A mode that the model does not support.
    pub fn new(engine: &'e Engine, modes: &[KvMode]) -> Result<Self> {
        let mut sums: Vec<ModeSums> = Vec::new();
        for &mode in modes.iter().filter(|mode| **mode != KvMode::Fp16) {
            SequenceCache::check(engine.ops(), engine.layout(), mode)?;
            if sums.iter().all(|sums| sums.mode != mode) {
                sums.push(ModeSums::new(mode));
            }
        }
        Ok(Self { engine, baseline: Perplexity::default(), modes: sums })
    }

    /// Scores one window, starting with empty caches.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, failed operations.
    pub fn add(&mut self, window: &[u32]) -> Result<()> {
        let engine = self.engine;
        let vocab = engine.vocab();
        let mut fp16 = engine.new_cache_in(KvMode::Fp16)?;
        let mut caches = Vec::with_capacity(self.modes.len());
        for sums in &self.modes {
            caches.push(engine.new_cache_in(sums.mode)?);
        }
        let mut done = 0;
        for chunk in window.chunks(engine.chunk_tokens()) {
            done += chunk.len();
            let first = done - chunk.len() + 1;
            let next = &window[first..(done + 1).min(window.len())];
            let expected = chunk_logits(engine, chunk, &mut fp16)?;
            self.baseline.add_rows(next, &expected, vocab);
            for (sums, cache) in self.modes.iter_mut().zip(&mut caches) {
                sums.add(next, &chunk_logits(engine, chunk, cache)?, &expected, vocab);
            }
        }
        Ok(())
    }

    /// Number of positions scored per mode.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.baseline.tokens()
    }

    /// Scores so far: fp16, then the modes in the given order.
    ///
    /// # Errors
    /// None in practice, since [`Self::new`] checks the modes.
    pub fn scores(&self) -> Result<Vec<ModeScore>> {
        let layout = self.engine.layout();
        let dtype = self.engine.ops().dtype();
        let fp16 = KvStorage { mode: KvMode::Fp16, dtype };
        let mut scores = vec![ModeScore {
            mode: KvMode::Fp16,
            loss: self.baseline.loss(),
            perplexity: self.baseline.perplexity(),
            perplexity_change: None,
            mean_kl: None,
            top1_agreement: None,
            bytes_per_token: SequenceCache::bytes_per_token(layout, fp16)?,
        }];
        for sums in &self.modes {
            let storage = KvStorage { mode: sums.mode, dtype };
            let bytes_per_token = SequenceCache::bytes_per_token(layout, storage)?;
            scores.push(sums.score(&self.baseline, bytes_per_token));
        }
        Ok(scores)
    }
}

/// Logits of every position of a chunk, `[tokens, vocab]`.
fn chunk_logits(engine: &Engine, tokens: &[u32], cache: &mut SequenceCache) -> Result<Vec<f32>> {
    engine.forward(&mut [SequenceRun { tokens, cache }], LogitRows::All)
}

/// Running sums of one mode.
struct ModeSums {
    mode: KvMode,
    perplexity: Perplexity,
    kl: f64,
    same_top: usize,
}

impl ModeSums {
    fn new(mode: KvMode) -> Self {
        Self { mode, perplexity: Perplexity::default(), kl: 0.0, same_top: 0 }
    }

    /// Adds rows of logits of the mode and the `expected` ones of fp16; the arguments are those of
    /// [`Perplexity::add_rows`].
    fn add(&mut self, next: &[u32], logits: &[f32], expected: &[f32], vocab: usize) {
        self.perplexity.add_rows(next, logits, vocab);
        let rows = expected.chunks_exact(vocab).zip(logits.chunks_exact(vocab));
        for (expected, row) in rows.take(next.len()) {
            self.kl += kl_divergence(expected, row);
            self.same_top += usize::from(argmax(expected) == argmax(row));
        }
    }

    fn score(&self, baseline: &Perplexity, bytes_per_token: u64) -> ModeScore {
        let losses = self.perplexity.loss().zip(baseline.loss());
        ModeScore {
            mode: self.mode,
            loss: self.perplexity.loss(),
            perplexity: self.perplexity.perplexity(),
            perplexity_change: losses.map(|(mode, fp16)| (mode - fp16).exp_m1()),
            mean_kl: self.mean(self.kl),
            top1_agreement: self.mean(self.same_top as f64),
            bytes_per_token,
        }
    }

    /// Mean over the scored tokens; `None` if there are none.
    fn mean(&self, sum: f64) -> Option<f64> {
        let tokens = self.perplexity.tokens();
        (tokens > 0).then(|| sum / tokens as f64)
    }
}

/// KL(p ‖ q) in nats of the distributions of two rows of logits, computed in f64.
///
/// Σ p·(ln p − ln q), where ln p − ln q = (a − b) − (lse(a) − lse(b)).
fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    let p_sum = log_sum_exp(p_logits);
    let q_sum = log_sum_exp(q_logits);
    let terms = p_logits.iter().zip(q_logits).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    terms.map(|(a, b)| (a - p_sum).exp() * ((a - p_sum) - (b - q_sum))).sum()
}

/// Index of the largest element, the first among equal ones.
fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
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
    fn only_scored_rows_count() {
        let mut sums = ModeSums::new(KvMode::Int8);
        let expected = [1.0, 0.0, 0.0, 1.0, 5.0, 0.0];
        let logits = [1.0, 0.0, 1.0, 0.0, 0.0, 5.0];
        sums.add(&[0, 1], &logits, &expected, 2);
        assert_eq!((sums.perplexity.tokens(), sums.same_top), (2, 1));
        let one = kl_divergence(&[0.0, 1.0], &[1.0, 0.0]);
        assert!((sums.kl - one).abs() < 1e-12, "{}", sums.kl);
    }
}
