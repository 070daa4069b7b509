//! The workload of a model: sequences, their prefill chunk, and the storage of their cache.

use crate::kv::{ComputeDtype, KvMode, KvStorage};
use crate::weights::WeightQuant;

/// Default tokens of a prefill chunk.
pub const DEFAULT_PREFILL_CHUNK_TOKENS: u64 = 512;

/// Default context of `inspect`, in tokens.
pub const DEFAULT_CONTEXT_TOKENS: u64 = 8192;

/// Sequences of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens whose cache is already in memory and shared: their keys are read, not allocated.
    pub cached_tokens: u64,
    /// Tokens to compute: the rest of the prompt and the generated text.
    pub new_tokens: u64,
    /// Tokens of images among the tokens to compute.
    pub image_tokens: u64,
    /// Tokens of images beside the sequence, which cross-attention layers hold.
    pub cross_tokens: u64,
    /// Number of sequences of this shape.
    pub count: u64,
}

impl Sequence {
    /// Tokens of one sequence, cached ones and those of images among them included.
    fn context_tokens(&self) -> u64 {
        let text = self.cached_tokens.saturating_add(self.new_tokens);
        text.saturating_add(self.image_tokens)
    }
}

/// Work that a model is sized for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Sequences that are in memory at once.
    pub sequences: Vec<Sequence>,
    /// Tokens of the largest image, which its encoder computes at once; `None` takes all of a
    /// sequence's image tokens for one.
    pub largest_image_tokens: Option<u64>,
    /// Tokens that one prefill step takes.
    pub prefill_chunk_tokens: u64,
    /// Cache mode.
    pub kv_mode: KvMode,
    /// Type of activations, and of cached vectors that the mode does not quantise.
    pub dtype: ComputeDtype,
    /// Quantisation of the weights before loading.
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
            cross_tokens: 0,
            count: batch,
        };
        Self {
            sequences: vec![sequence],
            largest_image_tokens: None,
            prefill_chunk_tokens: DEFAULT_PREFILL_CHUNK_TOKENS,
            kv_mode: KvMode::default(),
            dtype: ComputeDtype::default(),
            quant: WeightQuant::default(),
        }
    }

    /// Sets the cache mode.
    #[must_use]
    pub fn with_kv_mode(self, kv_mode: KvMode) -> Self {
        Self { kv_mode, ..self }
    }

    /// Sets the compute type.
    #[must_use]
    pub fn with_dtype(self, dtype: ComputeDtype) -> Self {
        Self { dtype, ..self }
    }

    /// The cache mode together with the type of its unquantised sides.
    #[must_use]
    pub fn kv_storage(&self) -> KvStorage {
        KvStorage { mode: self.kv_mode, dtype: self.dtype }
    }

    /// Sets the tokens of a prefill chunk.
    #[must_use]
    pub fn with_prefill_chunk(self, prefill_chunk_tokens: u64) -> Self {
        Self { prefill_chunk_tokens, ..self }
    }

    /// Sets the quantisation of the weights.
    #[must_use]
    pub fn with_quant(self, quant: WeightQuant) -> Self {
        Self { quant, ..self }
    }

    /// Puts images of these many tokens among the new tokens of each sequence.
    #[must_use]
    pub fn with_images(mut self, image_tokens: &[u64]) -> Self {
        let all = image_tokens.iter().fold(0, |sum: u64, tokens| sum.saturating_add(*tokens));
        for sequence in &mut self.sequences {
            sequence.image_tokens = all.min(sequence.new_tokens);
            sequence.new_tokens = sequence.new_tokens.saturating_sub(all);
        }
        self.largest_image_tokens = image_tokens.iter().max().copied();
        self
    }

    /// Puts images of these many tokens beside each sequence, for cross-attention layers.
    #[must_use]
    pub fn with_images_beside(mut self, image_tokens: &[u64]) -> Self {
        let all = image_tokens.iter().fold(0, |sum: u64, tokens| sum.saturating_add(*tokens));
        self.sequences.iter_mut().for_each(|sequence| sequence.cross_tokens = all);
        self.largest_image_tokens = image_tokens.iter().max().copied();
        self
    }

    /// Keeps mode, chunk, quantisation and images for `batch` uniform sequences of `context_tokens`.
    #[must_use]
    pub fn with_shape(&self, context_tokens: u64, batch: u64) -> Self {
        let image_tokens = self.sequences.iter().map(|s| s.image_tokens).max().unwrap_or(0);
        let cross_tokens = self.sequences.iter().map(|s| s.cross_tokens).max().unwrap_or(0);
        let uniform = Self::uniform(context_tokens, batch).with_images(&[image_tokens]);
        let Self { sequences, .. } = uniform.with_images_beside(&[cross_tokens]);
        Self { sequences, ..self.clone() }
    }

    /// Tokens of the largest image; 0 where there is none.
    #[must_use]
    pub fn largest_image(&self) -> u64 {
        let counted = self.sequences.iter().filter(|s| s.count > 0);
        let all = counted.map(|s| s.image_tokens.max(s.cross_tokens)).max().unwrap_or(0);
        self.largest_image_tokens.map_or(all, |largest| largest.min(all))
    }

    /// Tokens of all images beside a sequence, of the sequence with most; 0 where there are none.
    #[must_use]
    pub fn cross_tokens(&self) -> u64 {
        let counted = self.sequences.iter().filter(|s| s.count > 0);
        counted.map(|s| s.cross_tokens).max().unwrap_or(0)
    }

    /// Tokens of the longest sequence, cached ones and those of images among them included.
    #[must_use]
    pub fn context_tokens(&self) -> u64 {
        let counted = self.sequences.iter().filter(|s| s.count > 0);
        counted.map(Sequence::context_tokens).max().unwrap_or(0)
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
    fn images_are_among_the_tokens_and_stay_in_other_shapes() {
        let workload = Workload::uniform(1000, 2).with_images(&[300, 200]);
        assert_eq!((workload.context_tokens(), workload.largest_image()), (1000, 300));
        let [sequence] = workload.sequences[..] else { panic!("one shape") };
        assert_eq!((sequence.new_tokens, sequence.image_tokens), (500, 500));
        let shorter = workload.with_shape(400, 1);
        assert_eq!((shorter.context_tokens(), shorter.largest_image()), (400, 300));
        assert_eq!(Workload::uniform(1000, 2).largest_image(), 0);
        assert_eq!(workload.with_shape(1000, 0).largest_image(), 0);
    }

    #[test]
    fn images_beside_a_sequence_take_none_of_its_tokens() {
        let workload = Workload::uniform(1000, 2).with_images_beside(&[300, 200]);
        assert_eq!((workload.context_tokens(), workload.largest_image()), (1000, 300));
        assert_eq!((workload.sequences[0].new_tokens, workload.cross_tokens()), (1000, 500));
        let shorter = workload.with_shape(400, 1);
        assert_eq!((shorter.context_tokens(), shorter.cross_tokens()), (400, 500));
        assert_eq!((shorter.largest_image(), shorter.with_shape(400, 0).cross_tokens()), (300, 0));
    }
}
