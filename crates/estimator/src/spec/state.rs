//! State that a layer caches for a sequence between tokens, and its size in bytes.

use super::layer::RecurrentShape;
use crate::error::EstimatorError;
use crate::kv::{self, CacheType, ComputeDtype, KvBytes, KvMode, KvStorage};

/// State that one mixer caches for a sequence. Sizes are in elements unless named otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerState {
    /// Keys and values of every token, or of the last `window` ones.
    Attention {
        /// Key-value heads.
        kv_heads: u64,
        /// Elements of a key.
        key_dim: u64,
        /// Elements of a value; 0 where the key serves as value.
        value_dim: u64,
        /// Sliding window, in tokens; all tokens are cached where `None`.
        window: Option<u64>,
    },
    /// Multi-head latent attention: one vector per token for all heads, stored once.
    Latent {
        /// The latent's rank plus the rotary part of the key.
        dim: u64,
    },
    /// Keys of a sparse attention's indexer, per token, 16 bits.
    Indexer {
        /// Elements of a key.
        dim: u64,
    },
    /// One compressed memory per `ratio_tokens` tokens, 16 bits.
    Compressed {
        /// Elements of a memory.
        dim: u64,
        /// Tokens that a memory covers.
        ratio_tokens: u64,
    },
    /// A recurrence: past inputs of its convolution and its state.
    Recurrent(RecurrentShape),
    /// Keys and values of an image, 16 bits, for as long as the sequence lives.
    Cross {
        /// Key-value heads.
        kv_heads: u64,
        /// Elements of a key.
        key_dim: u64,
        /// Elements of a value.
        value_dim: u64,
    },
    /// State of unknown size.
    Unknown,
}

/// Number of tokens of a sequence that a layer must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceTokens {
    /// Tokens in the sequence.
    pub context: u64,
    /// Tokens beyond a window that a prefill chunk still needs: `chunk − 1`, or 0 at rest.
    pub beyond_window: u64,
    /// Tokens of images that cross-attention layers hold.
    pub images: u64,
}

impl LayerState {
    /// Bytes of the growing cache of one sequence: keys, values, latents and indexer keys.
    ///
    /// # Errors
    /// A mode that cannot hold this layer's vectors.
    pub fn cache_bytes(
        &self,
        storage: impl Into<KvStorage>,
        tokens: SequenceTokens,
    ) -> Result<KvBytes, EstimatorError> {
        let storage = storage.into();
        let plain = storage.plain();
        let context = kv::round_up_to_block(tokens.context);
        match *self {
            Self::Attention { kv_heads, key_dim, value_dim, window } => {
                let held = held_tokens(tokens, window, storage.mode);
                let keys = side_bytes(storage.keys(), plain, kv_heads, key_dim, held)?;
                let values = side_bytes(storage.values(), plain, kv_heads, value_dim, held)?;
                Ok(keys.plus(values))
            }
            Self::Latent { dim } => {
                check_latent(storage.mode)?;
                side_bytes(storage.keys(), plain, 1, dim, context)
            }
            Self::Indexer { dim } => side_bytes(plain, plain, 1, dim, context),
            Self::Compressed { dim, ratio_tokens } => {
                let memories = tokens.context.div_ceil(ratio_tokens.max(1));
                side_bytes(plain, plain, 1, dim, kv::round_up_to_block(memories))
            }
            Self::Recurrent(_) | Self::Cross { .. } | Self::Unknown => Ok(KvBytes::default()),
        }
    }

    /// Transient bytes of the MLX kernel set around a quantised cache; `elem_bytes` is the size of
    /// an element that attention reads.
    pub(crate) fn codec_bytes(
        &self,
        mode: KvMode,
        tokens: SequenceTokens,
        elem_bytes: u64,
    ) -> CodecBytes {
        match *self {
            Self::Attention { kv_heads, key_dim, value_dim, window } => {
                let held = held_tokens(tokens, window, mode);
                let key_elems = kv_heads.saturating_mul(key_dim);
                let value_elems = kv_heads.saturating_mul(value_dim);
                let keys = CodecBytes::of_side(mode.keys(), held, key_elems, elem_bytes);
                let values = CodecBytes::of_side(mode.values(), held, value_elems, elem_bytes);
                keys.plus(values)
            }
            // Decoded, then split in two parts.
            Self::Latent { dim } => {
                let held = kv::round_up_to_block(tokens.context);
                CodecBytes::of_side(mode.keys(), held, dim.saturating_mul(2), elem_bytes)
            }
            _ => CodecBytes::default(),
        }
    }

    /// Bytes of recurrent state of one sequence, independent of its length.
    #[must_use]
    pub fn state_bytes(&self, dtype: ComputeDtype) -> u64 {
        match *self {
            Self::Recurrent(RecurrentShape { conv_elems, state_elems, state_elem_bytes }) => {
                let state = state_elems.saturating_mul(state_elem_bytes);
                state.saturating_add(conv_elems.saturating_mul(dtype.float_bytes()))
            }
            _ => 0,
        }
    }

    /// Bytes of the images' keys and values of one sequence.
    #[must_use]
    pub fn cross_bytes(&self, images: u64, dtype: ComputeDtype) -> u64 {
        match *self {
            Self::Cross { kv_heads, key_dim, value_dim } => {
                let elems = key_dim.saturating_add(value_dim).saturating_mul(kv_heads);
                let token_bytes = elems.saturating_mul(dtype.float_bytes());
                token_bytes.saturating_mul(kv::round_up_to_block(images))
            }
            _ => 0,
        }
    }

    /// Bytes by which one sequence's keys and values grow with a token in the long run, without
    /// scales, indexer keys and compressed memories.
    ///
    /// # Errors
    /// A mode that cannot hold this layer's vectors.
    pub fn bytes_per_token(&self, storage: impl Into<KvStorage>) -> Result<u64, EstimatorError> {
        let storage = storage.into();
        match *self {
            Self::Attention { kv_heads, key_dim, value_dim, window: None } => {
                let keys = kv::vector_bytes(storage.keys(), key_dim)?;
                let both = keys.plus(kv::vector_bytes(storage.values(), value_dim)?);
                Ok(both.times(kv_heads).code_bytes)
            }
            Self::Latent { dim } => {
                check_latent(storage.mode)?;
                Ok(kv::vector_bytes(storage.keys(), dim)?.code_bytes)
            }
            _ => Ok(0),
        }
    }

    /// Elements of the vectors that attention scores are computed from.
    pub(crate) fn score_dim(&self) -> Option<u64> {
        match *self {
            Self::Attention { key_dim, .. } | Self::Cross { key_dim, .. } => Some(key_dim),
            Self::Latent { dim } => Some(dim),
            _ => None,
        }
    }

    /// Key-value heads, of a state that has heads; a latent serves all queries as one.
    pub(crate) fn kv_heads(&self) -> Option<u64> {
        match *self {
            Self::Attention { kv_heads, .. } | Self::Cross { kv_heads, .. } => Some(kv_heads),
            Self::Latent { .. } => Some(1),
            _ => None,
        }
    }
}

/// Tokens that a layer with this window holds, in whole blocks.
///
/// Blocks rotate behind a window, so that it takes the blocks of its tokens and no more. A sealed
/// block takes no new tokens: a delegated mode holds every block that the window touches.
fn held_tokens(tokens: SequenceTokens, window: Option<u64>, mode: KvMode) -> u64 {
    let Some(window) = window else { return kv::round_up_to_block(tokens.context) };
    let span = window.saturating_add(tokens.beyond_window);
    let most = if mode.values() == CacheType::Turbo4Delegated {
        kv::round_up_to_block(span.saturating_sub(1)).saturating_add(kv::KV_BLOCK_TOKENS)
    } else {
        kv::round_up_to_block(span)
    };
    kv::round_up_to_block(tokens.context).min(most)
}

/// Bytes of one side over `held` tokens, a whole number of blocks. The open block of a delegated
/// side is `plain`.
fn side_bytes(
    cache: CacheType,
    plain: CacheType,
    heads: u64,
    dim: u64,
    held: u64,
) -> Result<KvBytes, EstimatorError> {
    let sealed = kv::vector_bytes(cache, dim)?.times(heads);
    if cache != CacheType::Turbo4Delegated || held == 0 {
        return Ok(sealed.times(held));
    }
    let open = kv::block_bytes(plain, heads, dim)?;
    Ok(sealed.times(held.saturating_sub(kv::KV_BLOCK_TOKENS)).plus(open))
}

/// Transient bytes of decoding a quantised cache and of encoding new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CodecBytes {
    /// Bytes of decoding all tokens that are held.
    pub(crate) decoding: u64,
    /// Bytes of encoding one token more.
    pub(crate) encoding_per_token: u64,
}

impl CodecBytes {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            decoding: self.decoding.saturating_add(other.decoding),
            encoding_per_token: self.encoding_per_token.saturating_add(other.encoding_per_token),
        }
    }

    /// Bytes for one side of `elems` elements per token.
    fn of_side(cache: CacheType, held: u64, elems: u64, elem_bytes: u64) -> Self {
        let per_elem = Self::per_element(cache, elem_bytes);
        Self {
            decoding: elems.saturating_mul(held).saturating_mul(per_elem.decoding),
            encoding_per_token: elems.saturating_mul(per_elem.encoding_per_token),
        }
    }

    /// Bytes per element. Decoding makes fp32 of the codes (of turbo3 twice, magnitudes and signs),
    /// then the type that attention reads, which of a delegated side is joined with the open block.
    /// Encoding keeps a handful of fp32 arrays alive; Turbo also compares each coordinate with the
    /// 7 or 15 edges of its codebook.
    fn per_element(cache: CacheType, elem_bytes: u64) -> Self {
        const SINGLE: u64 = 4;
        let once = SINGLE.saturating_add(elem_bytes);
        let (decoding, encoding_per_token) = match cache {
            CacheType::Fp16 | CacheType::Fp32 => (0, 0),
            CacheType::Int8 => (once, 3 * SINGLE),
            CacheType::Turbo4 => (once, 4 * SINGLE + 16),
            CacheType::Turbo3 => (once.saturating_add(SINGLE), 4 * SINGLE + 8),
            CacheType::Turbo4Delegated => (once.saturating_add(elem_bytes), 4 * SINGLE + 16),
        };
        Self { decoding, encoding_per_token }
    }
}

fn check_latent(mode: KvMode) -> Result<(), EstimatorError> {
    if !mode.is_turbo() {
        return Ok(());
    }
    Err(EstimatorError::BadValue {
        name: "--kv-cache-mode".to_owned(),
        value: mode.name().to_owned(),
        reason: "a latent cache (MLA) takes no turbo mode; use int8 or fp16".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: SequenceTokens = SequenceTokens { context: 10_000, beyond_window: 0, images: 0 };

    fn attention(window: Option<u64>) -> LayerState {
        LayerState::Attention { kv_heads: 2, key_dim: 64, value_dim: 64, window }
    }

    #[test]
    fn a_window_holds_more_while_prefilling() {
        let at = |state: LayerState, beyond_window| {
            state
                .cache_bytes(KvMode::Fp16, SequenceTokens { beyond_window, ..REST })
                .unwrap()
                .total()
                / 512
        };
        assert_eq!(at(attention(None), 0), 10_240);
        assert_eq!(at(attention(Some(1024)), 0), 1024);
        assert_eq!(at(attention(Some(1024)), 511), 1536);
        assert_eq!(at(attention(Some(100_000)), 511), 10_240);
    }

    #[test]
    fn a_delegated_window_holds_every_block_that_it_touches() {
        let blocks = |window, context| {
            let tokens = SequenceTokens { context, ..REST };
            held_tokens(tokens, Some(window), KvMode::Turbo4Delegated) / 256
        };
        // Tokens 236 to 299 lie in two blocks, 255 and 256 in two, 255 to 512 in three.
        assert_eq!([blocks(64, 256), blocks(64, 300), blocks(1, 300)], [1, 2, 1]);
        assert_eq!([blocks(2, 300), blocks(257, 1000), blocks(258, 1000)], [2, 2, 3]);
    }

    #[test]
    fn scales_are_their_own_term() {
        let bytes = attention(None).cache_bytes(KvMode::Int8, REST).unwrap();
        assert_eq!(bytes.code_bytes, 10_240 * 2 * 2 * 64);
        assert_eq!(bytes.scale_bytes, 10_240 * 2 * 2 * 2);
        assert_eq!(attention(None).bytes_per_token(KvMode::Int8).unwrap(), 256);
        assert_eq!(attention(Some(5)).bytes_per_token(KvMode::Int8).unwrap(), 0);
    }

    #[test]
    fn a_delegated_side_keeps_its_open_block_in_fp16() {
        let mode = KvMode::Turbo4Delegated;
        let one = SequenceTokens { context: 256, ..REST };
        assert_eq!(attention(None).cache_bytes(mode, one).unwrap().total(), 256 * 512);
        let two = SequenceTokens { context: 257, ..REST };
        let sealed = 256 * 2 * (32 + 2);
        let keys = 512 * 256;
        assert_eq!(
            attention(None).cache_bytes(mode, two).unwrap().total(),
            keys + 256 * 256 + sealed
        );
    }

    #[test]
    fn fp32_stores_what_is_not_quantised_in_32_bits() {
        let fp32 = |mode| KvStorage { mode, dtype: ComputeDtype::Fp32 };
        let total = |mode| attention(None).cache_bytes(fp32(mode), REST).unwrap().total();
        let vectors = 10_240 * 2;
        assert_eq!(total(KvMode::Fp16), vectors * 2 * 64 * 4);
        assert_eq!(total(KvMode::Fp16Turbo4), vectors * (64 * 4 + 32 + 2));
        assert_eq!(total(KvMode::Int8), vectors * 2 * (64 + 2));
        let sealed = (10_240 - 256) * 2 * (32 + 2);
        assert_eq!(total(KvMode::Turbo4Delegated), (vectors + 256 * 2) * 64 * 4 + sealed);
        assert_eq!(attention(None).bytes_per_token(fp32(KvMode::Fp16)).unwrap(), 1024);
        let cross = LayerState::Cross { kv_heads: 2, key_dim: 64, value_dim: 64 };
        assert_eq!(cross.cross_bytes(9, ComputeDtype::Fp32), 256 * 2 * 2 * 64 * 4);
    }

    #[test]
    fn a_latent_is_stored_once() {
        let latent = LayerState::Latent { dim: 576 };
        assert_eq!(latent.bytes_per_token(KvMode::Fp16).unwrap(), 1152);
        assert_eq!(latent.bytes_per_token(KvMode::Int8).unwrap(), 576);
        let error = latent.bytes_per_token(KvMode::Turbo4).unwrap_err().to_string();
        assert!(error.contains("takes no turbo mode; use int8 or fp16"), "{error}");
    }

    #[test]
    fn recurrent_state() {
        let shape = RecurrentShape::new(3 * 8192, 32 * 128 * 128, 4);
        let state = LayerState::Recurrent(shape);
        assert_eq!(24 * state.state_bytes(ComputeDtype::Checkpoint), 51_511_296);
        let wider = 24 * 3 * 8192 * 2;
        assert_eq!(24 * state.state_bytes(ComputeDtype::Fp32), 51_511_296 + wider);
    }
}
