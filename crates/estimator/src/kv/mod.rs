//! The byte formula of a KV cache.
//!
//! `core` allocates from [`block_bytes`], the estimate adds up the same numbers, and
//! [`kv_cache_bytes`] is the plain formula for other callers. Codes (the quantised numbers) and scales
//! (one fp16 per quantised vector) are separate terms throughout.

mod mode;
mod storage;

pub use mode::{CacheType, KvChoice, KvMode};
pub use storage::{ComputeDtype, KvStorage};

use crate::error::EstimatorError;

/// Tokens per block: the allocation step, the rounding of the estimate and the unit of sharing.
pub const KV_BLOCK_TOKENS: u64 = 256;

/// Bytes of one scale.
pub const SCALE_BYTES: u64 = 2;

/// `tokens` rounded up to whole blocks; saturates at the largest whole block.
#[must_use]
pub fn round_up_to_block(tokens: u64) -> u64 {
    let up = tokens.saturating_add(KV_BLOCK_TOKENS.saturating_sub(1));
    up.saturating_sub(up.checked_rem(KV_BLOCK_TOKENS).unwrap_or(0))
}

/// The plain formula: `2 × layers × kv_heads × head_dim × elem_bytes × round_up(context, 256)
/// × batch`, in bytes. A product beyond 64 bits gives `u64::MAX`, which fits nowhere.
///
/// ```
/// use mlxcel_estimator::kv_cache_bytes;
/// assert_eq!(kv_cache_bytes(32, 32, 128, 2, 8192, 1), 4 << 30);
/// assert_eq!(kv_cache_bytes(32, 8, 128, 2, 131_072, 1), 16 << 30);
/// ```
#[must_use]
pub fn kv_cache_bytes(
    layers: u64,
    kv_heads: u64,
    head_dim: u64,
    elem_bytes: u64,
    context_tokens: u64,
    batch: u64,
) -> u64 {
    let tokens = round_up_to_block(context_tokens);
    [layers, kv_heads, head_dim, elem_bytes, tokens, batch]
        .into_iter()
        .fold(2_u64, u64::saturating_mul)
}

/// Arguments of [`kv_cache_bytes`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheParams {
    /// Layers that cache keys and values.
    pub layers: u64,
    /// Key-value heads of a layer.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Bytes of an element: 2 for fp16, 1 for int8.
    pub elem_bytes: u64,
    /// Tokens of a sequence.
    pub context_tokens: u64,
    /// Sequences.
    pub batch: u64,
}

/// [`kv_cache_bytes`] with its arguments by name.
#[must_use]
pub fn kv_cache_bytes_from_params(params: &KvCacheParams) -> u64 {
    let KvCacheParams { layers, kv_heads, head_dim, elem_bytes, context_tokens, batch } = *params;
    kv_cache_bytes(layers, kv_heads, head_dim, elem_bytes, context_tokens, batch)
}

/// Bytes of codes and of scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvBytes {
    /// Bytes of the cached numbers.
    pub code_bytes: u64,
    /// Bytes of their scales.
    pub scale_bytes: u64,
}

impl KvBytes {
    /// Both together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.code_bytes.saturating_add(self.scale_bytes)
    }

    /// `n` times as much.
    #[must_use]
    pub fn times(self, n: u64) -> Self {
        Self {
            code_bytes: self.code_bytes.saturating_mul(n),
            scale_bytes: self.scale_bytes.saturating_mul(n),
        }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            code_bytes: self.code_bytes.saturating_add(other.code_bytes),
            scale_bytes: self.scale_bytes.saturating_add(other.scale_bytes),
        }
    }
}

/// Bytes that one vector of `dim` elements (one token, one head, keys or values) takes.
///
/// # Errors
/// [`EstimatorError::BadValue`] where `cache` cannot hold such a vector: turbo codes need a
/// power of two of at least 8.
pub fn vector_bytes(cache: CacheType, dim: u64) -> Result<KvBytes, EstimatorError> {
    if dim == 0 {
        return Ok(KvBytes::default());
    }
    if cache.is_turbo() && (!dim.is_power_of_two() || dim < 8) {
        return Err(EstimatorError::BadValue {
            name: "KV cache type".to_owned(),
            value: cache.name().to_owned(),
            reason: format!("a head of {dim} is not a power of two; use int8 or fp16"),
        });
    }
    let bits = dim.saturating_mul(cache.bits());
    let plain = matches!(cache, CacheType::Fp16 | CacheType::Fp32);
    let scale_bytes = if plain { 0 } else { SCALE_BYTES };
    Ok(KvBytes { code_bytes: bits.checked_div(8).unwrap_or(0), scale_bytes })
}

/// Bytes of one block (256 tokens) of one side of one layer, all heads: the unit of allocation.
/// Codes and scales are separate buffers.
///
/// # Errors
/// Same as [`vector_bytes`].
pub fn block_bytes(cache: CacheType, kv_heads: u64, dim: u64) -> Result<KvBytes, EstimatorError> {
    Ok(vector_bytes(cache, dim)?.times(kv_heads).times(KV_BLOCK_TOKENS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_formula() {
        let gib = 1_u64 << 30;
        assert_eq!(kv_cache_bytes(32, 32, 128, 2, 8192, 1), 4 * gib);
        assert_eq!(kv_cache_bytes(32, 8, 128, 2, 8192, 1), gib);
        assert_eq!(kv_cache_bytes(32, 8, 128, 2, 131_072, 1), 16 * gib);
        assert_eq!(kv_cache_bytes(32, 32, 128, 1, 8192, 1), 2 * gib);
        assert_eq!(kv_cache_bytes(24, 2, 64, 2, 8192, 1), 96 << 20);
        assert_eq!(kv_cache_bytes(u64::MAX, 2, 1, 1, 1, 1), u64::MAX);
    }

    #[test]
    fn blocks_of_256() {
        for (tokens, rounded) in [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512)] {
            assert_eq!(round_up_to_block(tokens), rounded);
        }
        assert_eq!(round_up_to_block(u64::MAX), u64::MAX - 255);
    }

    /// Bytes per token and KV head at head_dim 128, by mode.
    #[test]
    fn the_table_of_modes() {
        let table = [
            (KvMode::Fp16, 512),
            (KvMode::Int8, 260),
            (KvMode::Fp16Turbo4, 322),
            (KvMode::Fp16Turbo3, 306),
            (KvMode::Int8Turbo4, 196),
            (KvMode::Turbo4, 132),
            (KvMode::Turbo4Delegated, 322),
        ];
        for (mode, expected) in table {
            let both = vector_bytes(mode.keys(), 128)
                .unwrap()
                .plus(vector_bytes(mode.values(), 128).unwrap());
            assert_eq!(both.total(), expected, "{mode}");
        }
    }

    #[test]
    fn turbo_needs_a_power_of_two() {
        assert_eq!(vector_bytes(CacheType::Turbo3, 64).unwrap().code_bytes, 24);
        let error = vector_bytes(CacheType::Turbo4, 80).unwrap_err().to_string();
        assert!(error.contains("a head of 80 is not a power of two; use int8 or fp16"), "{error}");
        assert_eq!(vector_bytes(CacheType::Int8, 80).unwrap().total(), 82);
    }
}
