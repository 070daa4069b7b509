//! Progress reports of loading, prefill and decoding, and the statistics of a generation.

use std::ops::ControlFlow;
use std::time::Duration;

/// Receives progress reports; by default each method ignores them.
pub trait Progress {
    /// `done` of `total` layers are loaded.
    fn loading(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }

    /// The model is fully loaded.
    fn loaded(&mut self) {}

    /// `done` of `total` prompt tokens are in the cache. `Break` stops the prefill before the next
    /// chunk.
    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        let _ = (done, total);
        ControlFlow::Continue(())
    }

    /// A token was sampled; `so_far` includes it. Called also for tokens that complete no text.
    /// `Break` ends the generation.
    fn decoded(&mut self, so_far: &Statistics) -> ControlFlow<()> {
        let _ = so_far;
        ControlFlow::Continue(())
    }
}

/// Ignores all progress.
pub struct NoProgress;

impl Progress for NoProgress {}

/// Token counts and times of one generation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens that the cache already held.
    pub reused_tokens: usize,
    /// Time from the start to the first sampled token.
    pub prompt_time: Duration,
    /// Number of sampled tokens.
    pub generated_tokens: usize,
    /// Time from the first sampled token to the last.
    pub decode_time: Duration,
    /// Size of the sequence's KV cache at the end, in bytes.
    pub kv_cache_bytes: usize,
}

impl Statistics {
    /// Prefill speed, in tokens per second; reused tokens do not count.
    #[must_use]
    pub fn prompt_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prompt_time)
    }

    /// Decode speed, in tokens per second; the first token counts as prefill.
    #[must_use]
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.generated_tokens.saturating_sub(1), self.decode_time)
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}
