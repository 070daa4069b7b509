//! What is asked of a model: sequences, how they are prefilled, and how their cache is stored.

use crate::kv::{ComputeDtype, KvMode, KvStorage};
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
    /// Tokens of images, which are to come as well.
    pub image_tokens: u64,
    /// Tokens of images that stand beside the sequence, where cross-attention layers hold them.
    pub cross_tokens: u64,
    /// How many sequences have this shape.
    pub count: u64,
}

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The sequences that live at once.
    pub sequences: Vec<Sequence>,
    /// Tokens of the largest image, which its encoder computes at once; `None` takes all of a
    /// sequence's image tokens for one.
    pub largest_image_tokens: Option<u64>,
    /// Tokens that one prefill step takes.
    pub prefill_chunk_tokens: u64,
    /// How the cache is stored.
    pub kv_mode: KvMode,
    /// What is computed in, and cached where the mode does not quantise.
    pub dtype: ComputeDtype,
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

    /// The same with another cache mode.
    #[must_use]
    pub fn with_kv_mode(self, kv_mode: KvMode) -> Self {
        Self { kv_mode, ..self }
    }

    /// The same computed in another type.
    #[must_use]
    pub fn with_dtype(self, dtype: ComputeDtype) -> Self {
        Self { dtype, ..self }
    }

    /// The mode, and what its unquantised sides are made of.
    #[must_use]
    pub fn kv_storage(&self) -> KvStorage {
        KvStorage { mode: self.kv_mode, dtype: self.dtype }
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

    /// The same where these images are among each sequence's new tokens.
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

    /// The same where these images stand beside each sequence, for cross-attention layers.
    #[must_use]
    pub fn with_images_beside(mut self, image_tokens: &[u64]) -> Self {
        let all = image_tokens.iter().fold(0, |sum: u64, tokens| sum.saturating_add(*tokens));
        self.sequences.iter_mut().for_each(|sequence| sequence.cross_tokens = all);
        self.largest_image_tokens = image_tokens.iter().max().copied();
        self
    }

    /// The same mode, chunk, quantisation and images over uniform sequences.
    #[must_use]
    pub fn with_shape(&self, context_tokens: u64, batch: u64) -> Self {
        let most = |of: fn(&Sequence) -> u64| self.sequences.iter().map(of).max().unwrap_or(0);
        let uniform = Self::uniform(context_tokens, batch).with_images(&[most(|s| s.image_tokens)]);
        let Self { sequences, .. } = uniform.with_images_beside(&[most(|s| s.cross_tokens)]);
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
