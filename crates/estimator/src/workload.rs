//! What is asked of a model: sequences, how they are prefilled, and how their cache is stored.

use crate::kv::KvMode;
use crate::weights::WeightQuant;

/// Tokens of a prefill chunk where nobody says otherwise.
pub const DEFAULT_PREFILL_CHUNK_TOKENS: u64 = 512;

/// The context that `inspect` asks for where nobody says otherwise.
pub const DEFAULT_CONTEXT_TOKENS: u64 = 8192;

/// Sequences of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens whose cache is already in memory and shared: their keys are read, not allocated.
    pub cached_tokens: u64,
    /// Tokens to come: the rest of the prompt and what is generated.
    pub new_tokens: u64,
    /// Tokens of images. Cross-attention layers hold them; in other models they are new tokens.
    pub image_tokens: u64,
    /// How many sequences have this shape.
    pub count: u64,
}

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The sequences that live at once.
    pub sequences: Vec<Sequence>,
    /// Tokens that one prefill step takes.
    pub prefill_chunk_tokens: u64,
    /// How the cache is stored.
    pub kv_mode: KvMode,
    /// How the weights are re-sized before loading.
    pub quant: WeightQuant,
}

impl Workload {
    /// `batch` sequences of `context_tokens` new tokens each, fp16 cache, weights as they are.
    #[must_use]
    pub fn uniform(context_tokens: u64, batch: u64) -> Self {
        let sequence = Sequence {
            cached_tokens: 0,
            new_tokens: context_tokens,
            image_tokens: 0,
            count: batch,
        };
        Self {
            sequences: vec![sequence],
            prefill_chunk_tokens: DEFAULT_PREFILL_CHUNK_TOKENS,
            kv_mode: KvMode::default(),
            quant: WeightQuant::default(),
        }
    }

    /// The same with another cache mode.
    #[must_use]
    pub fn with_kv_mode(self, kv_mode: KvMode) -> Self {
        Self { kv_mode, ..self }
    }

    /// The same with another prefill chunk.
    #[must_use]
    pub fn with_prefill_chunk(self, prefill_chunk_tokens: u64) -> Self {
        Self { prefill_chunk_tokens, ..self }
    }

    /// The same with re-sized weights.
    #[must_use]
    pub fn with_quant(self, quant: WeightQuant) -> Self {
        Self { quant, ..self }
    }

    /// The same mode, chunk and quantisation over uniform sequences. Each has the images of the
    /// sequence with most of them, as a part of its `context_tokens`.
    #[must_use]
    pub fn with_shape(&self, context_tokens: u64, batch: u64) -> Self {
        let images = self.sequences.iter().filter(|s| s.count > 0).map(|s| s.image_tokens);
        let image_tokens = images.max().unwrap_or(0).min(context_tokens);
        let new_tokens = context_tokens.saturating_sub(image_tokens);
        let sequence = Sequence { cached_tokens: 0, new_tokens, image_tokens, count: batch };
        Self { sequences: vec![sequence], ..self.clone() }
    }

    /// Tokens of the longest sequence, cached ones and those of images included.
    #[must_use]
    pub fn context_tokens(&self) -> u64 {
        let lengths = self.sequences.iter().filter(|s| s.count > 0);
        let all = |s: &Sequence| s.cached_tokens.saturating_add(s.new_tokens);
        lengths.map(|s| all(s).saturating_add(s.image_tokens)).max().unwrap_or(0)
    }

    /// Number of sequences.
    #[must_use]
    pub fn batch(&self) -> u64 {
        self.sequences.iter().fold(0, |sum, s| sum.saturating_add(s.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_shape_keeps_the_images() {
        let mut workload = Workload::uniform(1000, 2);
        assert_eq!(workload.with_shape(300, 3).sequences, Workload::uniform(300, 3).sequences);
        workload.sequences[0] =
            Sequence { cached_tokens: 0, new_tokens: 744, image_tokens: 256, count: 1 };
        let shaped = |context| {
            let shaped = workload.with_shape(context, 3);
            assert_eq!((shaped.context_tokens(), shaped.batch()), (context, 3));
            (shaped.sequences[0].new_tokens, shaped.sequences[0].image_tokens)
        };
        assert_eq!(shaped(1000), (744, 256));
        assert_eq!(shaped(300), (44, 256));
        assert_eq!(shaped(100), (0, 100));
    }
}
