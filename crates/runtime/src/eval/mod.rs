//! Evaluation of a model on a text: perplexity, comparison of KV cache modes, export of logits.
//!
//! [`comparison`] scores modes relative to fp16; [`measurement`] stores the result under the model's
//! fingerprint, for the advisor.

pub mod comparison;
pub mod measurement;

use std::path::Path;

use mlxcel_core::SequenceRun;

use crate::engine::{Engine, LogitRows};
use crate::{Error, Result};

/// Computes the logits of every position of `tokens` with an empty cache, fp32 `[tokens, vocab]`, in
/// chunks of the engine's prefill size.
///
/// # Errors
/// Tokens outside the vocabulary, failed operations.
pub fn window_logits(engine: &Engine, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut cache = engine.new_cache()?;
    let mut logits = Vec::with_capacity(tokens.len() * engine.vocab());
    for chunk in tokens.chunks(engine.chunk_tokens()) {
        let run = SequenceRun { tokens: chunk, cache: &mut cache };
        logits.extend(engine.forward(&mut [run], LogitRows::All)?);
    }
    Ok(logits)
}

/// Running perplexity over windows; the first token of each window is not scored.
#[derive(Clone, Debug, Default)]
pub struct Perplexity {
    nats: f64,
    tokens: usize,
}

impl Perplexity {
    /// Adds one window and its logits, `[tokens, vocab]`.
    pub fn add(&mut self, tokens: &[u32], logits: &[f32], vocab: usize) {
        self.add_rows(tokens.get(1..).unwrap_or_default(), logits, vocab);
    }

    /// Adds rows of logits, `[rows, vocab]`, and the token that follows each. Rows without a `next`
    /// token are skipped.
    pub(crate) fn add_rows(&mut self, next: &[u32], logits: &[f32], vocab: usize) {
        for (row, &next) in logits.chunks_exact(vocab).zip(next) {
            self.nats -= f64::from(row[next as usize]) - log_sum_exp(row);
            self.tokens += 1;
        }
    }

    /// Number of scored tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Nats per token.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.nats / self.tokens as f64)
    }

    /// `exp(loss)`.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        self.loss().map(f64::exp)
    }
}

/// `ln Σ exp(row)` in f64, the normalisation of log-probabilities.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    max + sum.ln()
}

/// Writes logits to a safetensors file, as the fp32 tensor `logits`, `[tokens, vocab]`.
///
/// # Errors
/// Failure to write the file.
pub fn save_logits(path: &Path, logits: &[f32], vocab: usize) -> Result<()> {
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(
        safetensors::Dtype::F32,
        vec![logits.len() / vocab.max(1), vocab],
        &bytes,
    )
    .map_err(|error| Error::safetensors(path, error))?;
    safetensors::serialize_to_file([("logits", view)], None, path)
        .map_err(|error| Error::safetensors(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_perplexity_of_uniform_logits_is_the_vocabulary_size() {
        let mut score = Perplexity::default();
        score.add(&[0, 1, 2], &[0.5; 3 * 8], 8);
        assert_eq!(score.tokens(), 2);
        assert!((score.perplexity().unwrap() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn a_single_token_has_no_perplexity() {
        let mut score = Perplexity::default();
        score.add(&[3], &[0.0; 8], 8);
        assert_eq!(score.perplexity(), None);
    }
}
