//! Cache of a whole model for a whole workload: the sum over layers and sequences.

use crate::error::EstimatorError;
use crate::kv::{KV_BLOCK_TOKENS, KvBytes, KvStorage};
use crate::scratch::{LayerCopies, Phase};
use crate::spec::{CodecBytes, LayerSpec, LayerState, SequenceTokens};
use crate::workload::{Sequence, Workload};

/// Bytes of the caches of all sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheBytes {
    /// Keys, values, latents, indexer keys, images' keys and values.
    pub kv: KvBytes,
    /// Recurrent state.
    pub state_bytes: u64,
}

/// Sums the cache of `layers` for `workload`. In the prefill phase a windowed layer holds a chunk more.
///
/// # Errors
/// A cache mode that cannot hold the vectors of one of the layers.
pub fn cache_bytes(
    layers: &[LayerSpec],
    workload: &Workload,
    phase: Phase,
) -> Result<CacheBytes, EstimatorError> {
    CacheLayout::new(layers).bytes(workload, phase)
}

/// Bytes by which one sequence's keys and values grow with a token in the long run, scales
/// excluded.
///
/// # Errors
/// Same as [`cache_bytes`].
pub fn kv_bytes_per_token(
    layers: &[LayerSpec],
    storage: impl Into<KvStorage>,
) -> Result<u64, EstimatorError> {
    CacheLayout::new(layers).bytes_per_token(storage.into())
}

/// The states of all layers, layers of equal state counted together: a solver sums over them
/// hundreds of times, and most layers are alike.
pub(crate) struct CacheLayout {
    groups: Vec<LayerGroup>,
}

/// Layers of equal state.
struct LayerGroup {
    /// State of one layer.
    states: Vec<LayerState>,
    /// Number of layers.
    layers: u64,
}

impl CacheLayout {
    pub(crate) fn new(layers: &[LayerSpec]) -> Self {
        let mut groups: Vec<LayerGroup> = Vec::new();
        for layer in layers {
            match groups.iter_mut().find(|group| layer.states().eq(group.states.iter().copied())) {
                Some(group) => group.layers = group.layers.saturating_add(1),
                None => groups.push(LayerGroup { states: layer.states().collect(), layers: 1 }),
            }
        }
        Self { groups }
    }

    /// Every distinct state.
    pub(crate) fn states(&self) -> impl Iterator<Item = &LayerState> {
        self.groups.iter().flat_map(|group| &group.states)
    }

    /// Bytes for `workload`, see [`cache_bytes`].
    pub(crate) fn bytes(
        &self,
        workload: &Workload,
        phase: Phase,
    ) -> Result<CacheBytes, EstimatorError> {
        let mut sum = CacheBytes::default();
        for sequence in &workload.sequences {
            let view = SequenceView::new(sequence, workload, phase);
            for group in &self.groups {
                let count = group.layers.saturating_mul(sequence.count);
                for state in &group.states {
                    let allocated = view.allocated(state, workload.kv_storage())?;
                    sum.kv = sum.kv.plus(allocated.times(count));
                    let bytes = state.state_bytes(workload.dtype).saturating_mul(count);
                    sum.state_bytes = sum.state_bytes.saturating_add(bytes);
                }
            }
        }
        Ok(sum)
    }

    /// Growth of one sequence with a token, see [`kv_bytes_per_token`].
    pub(crate) fn bytes_per_token(&self, storage: KvStorage) -> Result<u64, EstimatorError> {
        let mut sum = 0_u64;
        for group in &self.groups {
            for state in &group.states {
                let bytes = state.bytes_per_token(storage)?.saturating_mul(group.layers);
                sum = sum.saturating_add(bytes);
            }
        }
        Ok(sum)
    }

    /// Copies that the MLX kernel set makes of the largest layer of the longest sequence.
    /// `elem_bytes` is the size of an activation.
    ///
    /// # Errors
    /// Same as [`cache_bytes`].
    pub(crate) fn largest_copies(
        &self,
        workload: &Workload,
        elem_bytes: u64,
    ) -> Result<LayerCopies, EstimatorError> {
        let tokens =
            SequenceTokens { context: workload.context_tokens(), beyond_window: 0, images: 0 };
        let beyond_window = workload.prefill_chunk_tokens.saturating_sub(1);
        let held = SequenceTokens { beyond_window, ..tokens };
        let plain = KvStorage { dtype: workload.dtype, ..KvStorage::default() };
        let mut largest = LayerCopies::default();
        for group in &self.groups {
            let mut growth_bytes = 0_u64;
            let mut codec = CodecBytes::default();
            for state in &group.states {
                let growth = state.cache_bytes(plain, tokens)?.total();
                growth_bytes = growth_bytes.saturating_add(growth);
                codec = codec.plus(state.codec_bytes(workload.kv_mode, held, elem_bytes));
            }
            largest.growth_bytes = largest.growth_bytes.max(growth_bytes);
            largest.decoded_bytes = largest.decoded_bytes.max(codec.decoding);
            largest.coding_bytes_per_token =
                largest.coding_bytes_per_token.max(codec.encoding_per_token);
        }
        Ok(largest)
    }
}

/// One sequence as the layers see it.
struct SequenceView {
    tokens: SequenceTokens,
    /// Tokens in whole blocks of the cached prefix, which are allocated already.
    shared_tokens: u64,
}

impl SequenceView {
    fn new(sequence: &Sequence, workload: &Workload, phase: Phase) -> Self {
        let new = sequence.new_tokens.saturating_add(sequence.image_tokens);
        let chunk = workload.prefill_chunk_tokens.min(new);
        let beyond_window = if phase == Phase::Prefill { chunk.saturating_sub(1) } else { 0 };
        let rest = sequence.cached_tokens.checked_rem(KV_BLOCK_TOKENS).unwrap_or(0);
        Self {
            tokens: SequenceTokens {
                context: sequence.cached_tokens.saturating_add(new),
                beyond_window,
                images: sequence.cross_tokens,
            },
            shared_tokens: sequence.cached_tokens.saturating_sub(rest),
        }
    }

    /// Bytes that this state allocates beyond the shared prefix. A window is never shared.
    fn allocated(&self, state: &LayerState, storage: KvStorage) -> Result<KvBytes, EstimatorError> {
        let all = state.cache_bytes(storage, self.tokens)?;
        let cross = state.cross_bytes(self.tokens.images, storage.dtype);
        let all = KvBytes { code_bytes: all.code_bytes.saturating_add(cross), ..all };
        let windowed = matches!(state, LayerState::Attention { window: Some(_), .. });
        if self.shared_tokens == 0 || windowed {
            return Ok(all);
        }
        let prefix = SequenceTokens { context: self.shared_tokens, beyond_window: 0, images: 0 };
        let shared = state.cache_bytes(storage, prefix)?;
        Ok(KvBytes {
            code_bytes: all.code_bytes.saturating_sub(shared.code_bytes),
            scale_bytes: all.scale_bytes.saturating_sub(shared.scale_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{AttentionShape, CrossShape, Mixer};

    fn layers() -> Vec<LayerSpec> {
        let attention = Mixer::Attention(AttentionShape::new(2, 2, 64));
        vec![LayerSpec::new(vec![attention], Vec::new()); 3]
    }

    fn kv(cached: u64, new: u64) -> u64 {
        let [mut sequence] = Workload::uniform(new, 2).sequences[..] else { panic!("one shape") };
        sequence.cached_tokens = cached;
        let workload = Workload { sequences: vec![sequence], ..Workload::uniform(0, 0) };
        cache_bytes(&layers(), &workload, Phase::Decode).unwrap().kv.total() / (2 * 3 * 512)
    }

    #[test]
    fn a_cached_prefix_is_not_allocated_again() {
        assert_eq!(kv(0, 1000), 1024);
        assert_eq!(kv(99_072, 1000), 1024);
        assert_eq!(kv(100, 1), 256);
        assert_eq!(kv(300, 1), 256);
    }

    #[test]
    fn images_are_tokens_or_stand_beside_them() {
        let workload = Workload::uniform(1010, 1).with_images(&[1000]);
        let inline = cache_bytes(&layers(), &workload, Phase::Decode).unwrap().kv.total();
        assert_eq!(inline, 3 * 512 * 1024);
        let mut crossed = layers();
        let cross = Mixer::Cross(CrossShape::new(2, 2, 64, 1000));
        crossed.push(LayerSpec::new(vec![cross], Vec::new()));
        let beside = Workload::uniform(10, 1).with_images_beside(&[600, 400]);
        let crossed = cache_bytes(&crossed, &beside, Phase::Decode).unwrap().kv.total();
        assert_eq!(crossed, 3 * 512 * 256 + 512 * 1024);
    }
}
