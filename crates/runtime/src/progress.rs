//! What a front end can show while a model loads and a prompt is read.

use std::ops::ControlFlow;
use std::time::Duration;

/// Receives progress; every method has a default that ignores it.
pub trait Progress {
    /// `done` of `total` layers are built.
    fn loading(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }

    /// The model is loaded.
    fn loaded(&mut self) {}

    /// `done` of `total` prompt tokens are in the cache. `Break` stops before the next chunk.
    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        let _ = (done, total);
        ControlFlow::Continue(())
    }

    /// A token is sampled, and the counts are `so_far`. `Break` ends the generation, also where a
    /// token made no text.
    fn decoded(&mut self, so_far: &Statistics) -> ControlFlow<()> {
        let _ = so_far;
        ControlFlow::Continue(())
    }
}

/// Shows nothing.
pub struct NoProgress;

impl Progress for NoProgress {}

/// Counts and times of one generation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the cache held already.
    pub reused_tokens: usize,
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
    /// Prompt tokens that were read, per second.
    #[must_use]
    pub fn prompt_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens.saturating_sub(self.reused_tokens), self.prompt_time)
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
