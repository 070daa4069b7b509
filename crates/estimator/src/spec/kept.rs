//! What a layer keeps for a sequence between tokens, and how many bytes that is.

use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::{Keep, Where};
use crate::kv::{self, CacheType, ComputeDtype, KvBytes, KvMode, KvStorage};
use crate::spec::Architecture;
use crate::tensors;

/// One thing that a layer keeps. All sizes are in elements unless named otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kept {
    /// Keys and values of every token, or of the last `window` ones.
    Attention {
        /// Key-value heads.
        kv_heads: u64,
        /// Elements of a key.
        k_dim: u64,
        /// Elements of a value; 0 where the key serves as value.
        v_dim: u64,
        /// Tokens that are kept; all where `None`.
        window: Option<u64>,
    },
    /// Multi-head latent attention: one vector per token for all heads, stored once.
    Latent {
        /// The latent's rank plus the rotary part of the key.
        dim: u64,
    },
    /// Keys of a sparse-attention indexer, per token, 16 bits.
    Index {
        /// Elements of one.
        dim: u64,
    },
    /// One compressed memory per `ratio` tokens, 16 bits.
    Pooled {
        /// Elements of one.
        dim: u64,
        /// Tokens that it covers.
        ratio: u64,
    },
    /// A recurrent layer's convolution inputs (16 bits) and state.
    State {
        /// Elements of the convolution's window.
        conv_elems: u64,
        /// Elements of the state.
        state_elems: u64,
        /// Bytes of a state element.
        state_elem_bytes: u64,
    },
    /// Keys and values of an image, 16 bits, for as long as the sequence lives.
    Cross {
        /// Key-value heads.
        kv_heads: u64,
        /// Elements of a key.
        k_dim: u64,
        /// Elements of a value.
        v_dim: u64,
        /// Tokens of one image.
        image_tokens: u64,
    },
    /// Another layer's cache is used.
    Shared,
    /// Something whose size is not known.
    Unknown,
}

/// What one layer keeps; nothing at all where the list is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerSpec {
    /// The things kept.
    pub kept: Vec<Kept>,
}

/// How many tokens of a sequence a layer must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceTokens {
    /// Tokens in the sequence.
    pub context: u64,
    /// Tokens beyond a window that a prefill chunk still needs: `chunk − 1`, or 0 at rest.
    pub beyond_window: u64,
    /// Tokens of images that cross-attention layers hold.
    pub images: u64,
}

impl Kept {
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
        let side = |cache, heads, dim, held| side_bytes(cache, storage.plain(), heads, dim, held);
        let context = kv::round_up_to_block(tokens.context);
        match *self {
            Self::Attention { kv_heads, k_dim, v_dim, window } => {
                let held = held_tokens(tokens, window, storage.mode);
                let keys = side(storage.keys(), kv_heads, k_dim, held)?;
                Ok(keys.plus(side(storage.values(), kv_heads, v_dim, held)?))
            }
            Self::Latent { dim } => {
                check_latent(storage.mode)?;
                side(storage.keys(), 1, dim, context)
            }
            Self::Index { dim } => side(storage.plain(), 1, dim, context),
            Self::Pooled { dim, ratio } => {
                let memories = tokens.context.div_ceil(ratio.max(1));
                side(storage.plain(), 1, dim, kv::round_up_to_block(memories))
            }
            _ => Ok(KvBytes::default()),
        }
    }

    /// Bytes that the MLX kernel set takes for a moment to decode what `tokens` left of codes, and to
    /// code one token more; `elem_bytes` is the size of what attention reads.
    pub(crate) fn decoding_bytes(
        &self,
        mode: KvMode,
        tokens: SequenceTokens,
        elem_bytes: u64,
    ) -> (u64, u64) {
        let side = |cache, held: u64, heads: u64, dim: u64| {
            let elems = heads.saturating_mul(dim);
            let (decoding, coding) = coding_elem_bytes(cache, elem_bytes);
            (elems.saturating_mul(held).saturating_mul(decoding), elems.saturating_mul(coding))
        };
        match *self {
            Self::Attention { kv_heads, k_dim, v_dim, window } => {
                let held = held_tokens(tokens, window, mode);
                let keys = side(mode.keys(), held, kv_heads, k_dim);
                let values = side(mode.values(), held, kv_heads, v_dim);
                (keys.0.saturating_add(values.0), keys.1.saturating_add(values.1))
            }
            // Decoded, then in two parts.
            Self::Latent { dim } => {
                let held = kv::round_up_to_block(tokens.context);
                side(mode.keys(), held, 1, dim.saturating_mul(2))
            }
            _ => (0, 0),
        }
    }

    /// Bytes that one sequence keeps whatever its length: recurrent state.
    #[must_use]
    pub fn state_bytes(&self, dtype: ComputeDtype) -> u64 {
        match *self {
            Self::State { conv_elems, state_elems, state_elem_bytes } => {
                let state = state_elems.saturating_mul(state_elem_bytes);
                state.saturating_add(conv_elems.saturating_mul(dtype.float_bytes()))
            }
            _ => 0,
        }
    }

    /// Bytes of the images' keys and values that one sequence keeps.
    #[must_use]
    pub fn cross_bytes(&self, images: u64, dtype: ComputeDtype) -> u64 {
        match *self {
            Self::Cross { kv_heads, k_dim, v_dim, .. } => {
                let token = k_dim.saturating_add(v_dim).saturating_mul(kv_heads);
                let token = token.saturating_mul(dtype.float_bytes());
                token.saturating_mul(kv::round_up_to_block(images))
            }
            _ => 0,
        }
    }

    /// Bytes by which one sequence's keys and values grow with a token in the long run; scales,
    /// indexer keys and compressed memories are not in it.
    ///
    /// # Errors
    /// A mode that cannot hold this layer's vectors.
    pub fn bytes_per_token(&self, storage: impl Into<KvStorage>) -> Result<u64, EstimatorError> {
        let storage = storage.into();
        match *self {
            Self::Attention { kv_heads, k_dim, v_dim, window: None } => {
                let keys = kv::vector_bytes(storage.keys(), k_dim)?;
                let both = keys.plus(kv::vector_bytes(storage.values(), v_dim)?);
                Ok(both.times(kv_heads).code_bytes)
            }
            Self::Latent { dim } => {
                check_latent(storage.mode)?;
                Ok(kv::vector_bytes(storage.keys(), dim)?.code_bytes)
            }
            _ => Ok(0),
        }
    }

    /// Elements of the vectors whose scores this layer computes.
    pub(crate) fn score_dim(&self) -> Option<u64> {
        match *self {
            Self::Attention { k_dim, .. } | Self::Cross { k_dim, .. } => Some(k_dim),
            Self::Latent { dim } => Some(dim),
            _ => None,
        }
    }

    /// Key-value heads, of what has heads; a latent serves all queries as one.
    pub(crate) fn kv_heads(&self) -> Option<u64> {
        match *self {
            Self::Attention { kv_heads, .. } | Self::Cross { kv_heads, .. } => Some(kv_heads),
            Self::Latent { .. } => Some(1),
            _ => None,
        }
    }

    fn read(scope: &Scope<'_>, keep: &Keep, longest: Option<u64>) -> Result<Self, EstimatorError> {
        let size = |n: usize| match keep.sizes.get(n) {
            Some(expr) => scope.size(expr),
            None => Err(internal(scope, format!("`keep {}` needs more sizes", keep.kind))),
        };
        match keep.kind.as_str() {
            "attention" => Ok(Self::Attention {
                kv_heads: size(0)?,
                k_dim: size(1)?,
                v_dim: size(2)?,
                window: None,
            }),
            "window" => {
                let stated =
                    keep.sizes.get(3).map(|expr| scope.optional(expr)).transpose()?.flatten();
                let window =
                    stated.filter(|w| *w > 0 && longest.is_none_or(|longest| *w < longest));
                Ok(Self::Attention { kv_heads: size(0)?, k_dim: size(1)?, v_dim: size(2)?, window })
            }
            "latent" => Ok(Self::Latent { dim: size(0)?.saturating_add(size(1)?) }),
            "index" => Ok(Self::Index { dim: size(0)? }),
            "pooled" => Ok(Self::Pooled { dim: size(0)?, ratio: size(1)? }),
            "state" => Ok(Self::State {
                conv_elems: size(0)?,
                state_elems: size(1)?,
                state_elem_bytes: size(2)?,
            }),
            "cross" => Ok(Self::Cross {
                kv_heads: size(0)?,
                k_dim: size(1)?,
                v_dim: size(2)?,
                image_tokens: size(3)?,
            }),
            "shared" => Ok(Self::Shared),
            "unknown" => Ok(Self::Unknown),
            other => Err(internal(scope, format!("nothing is kept as `{other}`"))),
        }
    }
}

/// Tokens that a layer with this window holds, in whole blocks.
///
/// Behind a window blocks rotate, so that it takes the blocks of its tokens and no more. A sealed
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

/// Bytes per element while the MLX kernel set decodes, and while it codes. Decoding makes fp32 of the
/// codes (of turbo3 twice, magnitudes and signs), then what attention reads, which of a delegated
/// side is put together with the open block. Coding keeps a handful of fp32 arrays alive; Turbo
/// compares each coordinate with the 7 or 15 edges of its codebook besides.
fn coding_elem_bytes(cache: CacheType, elem_bytes: u64) -> (u64, u64) {
    const SINGLE: u64 = 4;
    let decoded = |singles: u64, copies: u64| {
        singles.saturating_mul(SINGLE).saturating_add(copies.saturating_mul(elem_bytes))
    };
    match cache {
        CacheType::Fp16 | CacheType::Fp32 => (0, 0),
        CacheType::Int8 => (decoded(1, 1), 3 * SINGLE),
        CacheType::Turbo4 => (decoded(1, 1), 4 * SINGLE + 16),
        CacheType::Turbo3 => (decoded(2, 1), 4 * SINGLE + 8),
        CacheType::Turbo4Delegated => (decoded(1, 2), 4 * SINGLE + 16),
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

fn internal(scope: &Scope<'_>, reason: String) -> EstimatorError {
    EstimatorError::Family { family: scope.family.name.clone(), line: 0, reason }
}

/// What every layer keeps. A window that is no shorter than the longest context is none.
pub(crate) fn layers(
    scope: &Scope<'_>,
    longest: Option<u64>,
) -> Result<Vec<LayerSpec>, EstimatorError> {
    let sections = || scope.family.sections.iter().filter(|s| s.place == Where::Layer);
    (0..tensors::layers(scope)?)
        .map(|layer| {
            let scope = scope.at_layer(layer);
            let mut kept = Vec::new();
            for section in sections().filter(|s| !s.keeps.is_empty()) {
                if !tensors::admitted(&scope, section.guard.as_ref())? {
                    continue;
                }
                for keep in &section.keeps {
                    if tensors::admitted(&scope, keep.guard.as_ref())? {
                        kept.push(Kept::read(&scope, keep, longest)?);
                    }
                }
            }
            Ok(LayerSpec { kept })
        })
        .collect()
}

/// The class that what is kept implies.
pub(crate) fn architecture(layers: &[LayerSpec]) -> Architecture {
    let any = |test: fn(&Kept) -> bool| layers.iter().flat_map(|layer| &layer.kept).any(test);
    let recurrent = any(|kept| matches!(kept, Kept::State { .. }));
    let latent = any(|kept| matches!(kept, Kept::Latent { .. }));
    let attends = latent || any(|kept| matches!(kept, Kept::Attention { .. }));
    match (recurrent, attends) {
        _ if any(|kept| matches!(kept, Kept::Unknown)) => Architecture::Unknown,
        (true, true) => Architecture::Hybrid,
        (true, false) => Architecture::Ssm,
        (false, true) if latent => Architecture::Mla,
        (false, true) if any(|kept| matches!(kept, Kept::Attention { window: Some(_), .. })) => {
            Architecture::SlidingWindow
        }
        (false, true) => Architecture::Standard,
        (false, false) => Architecture::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: SequenceTokens = SequenceTokens { context: 10_000, beyond_window: 0, images: 0 };

    fn attention(window: Option<u64>) -> Kept {
        Kept::Attention { kv_heads: 2, k_dim: 64, v_dim: 64, window }
    }

    #[test]
    fn a_window_holds_more_while_prefilling() {
        let at = |kept: Kept, beyond_window| {
            kept.cache_bytes(KvMode::Fp16, SequenceTokens { beyond_window, ..REST })
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
        let cross = Kept::Cross { kv_heads: 2, k_dim: 64, v_dim: 64, image_tokens: 9 };
        assert_eq!(cross.cross_bytes(9, ComputeDtype::Fp32), 256 * 2 * 2 * 64 * 4);
    }

    #[test]
    fn a_latent_is_stored_once() {
        let latent = Kept::Latent { dim: 576 };
        assert_eq!(latent.bytes_per_token(KvMode::Fp16).unwrap(), 1152);
        assert_eq!(latent.bytes_per_token(KvMode::Int8).unwrap(), 576);
        let error = latent.bytes_per_token(KvMode::Turbo4).unwrap_err().to_string();
        assert!(error.contains("takes no turbo mode; use int8 or fp16"), "{error}");
    }

    #[test]
    fn recurrent_state() {
        let state =
            Kept::State { conv_elems: 3 * 8192, state_elems: 32 * 128 * 128, state_elem_bytes: 4 };
        assert_eq!(24 * state.state_bytes(ComputeDtype::Checkpoint), 51_511_296);
        let wider = 24 * 3 * 8192 * 2;
        assert_eq!(24 * state.state_bytes(ComputeDtype::Fp32), 51_511_296 + wider);
    }
}
