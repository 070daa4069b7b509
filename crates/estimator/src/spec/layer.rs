//! The layers of a decoder with every size resolved: token mixers and feed-forward parts.
//!
//! This is what a family description (`families/*.txt`) and a `config.json` say together. The
//! estimate's formulas and the runtime's loaders both read these types, so that a model is sized
//! and built from the same numbers. Sizes are in elements unless their name says otherwise.

use super::state::LayerState;

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LayerSpec {
    /// Token mixers: usually one. A Falcon-H1 layer runs two side by side, an indexer is listed
    /// behind the attention that it serves, and a layer may be a feed-forward part alone.
    pub mixers: Vec<Mixer>,
    /// Feed-forward parts: usually one. Gemma 4 runs experts beside a dense MLP.
    pub feed_forward: Vec<FeedForward>,
}

impl LayerSpec {
    /// A layer of these parts.
    #[must_use]
    pub fn new(mixers: Vec<Mixer>, feed_forward: Vec<FeedForward>) -> Self {
        Self { mixers, feed_forward }
    }

    /// The state that the layer caches for a sequence, one entry per mixer that caches any.
    pub fn states(&self) -> impl Iterator<Item = LayerState> + '_ {
        self.mixers.iter().filter_map(Mixer::state)
    }

    /// The layer's self-attention over keys and values, if it has one.
    #[must_use]
    pub fn attention(&self) -> Option<&AttentionShape> {
        self.mixers.iter().find_map(|mixer| match mixer {
            Mixer::Attention(shape) => Some(shape),
            _ => None,
        })
    }

    /// The layer's multi-head latent attention, if it has one.
    #[must_use]
    pub fn latent(&self) -> Option<&LatentShape> {
        self.mixers.iter().find_map(|mixer| match mixer {
            Mixer::Latent(shape) => Some(shape),
            _ => None,
        })
    }

    /// The layer's cross-attention, if it has one.
    #[must_use]
    pub fn cross_attention(&self) -> Option<&CrossShape> {
        self.mixers.iter().find_map(|mixer| match mixer {
            Mixer::Cross(shape) => Some(shape),
            _ => None,
        })
    }

    /// The layer's dense MLP, if it has one.
    #[must_use]
    pub fn dense(&self) -> Option<&DenseShape> {
        self.feed_forward.iter().find_map(|part| match part {
            FeedForward::Dense(shape) => Some(shape),
            FeedForward::Experts(_) => None,
        })
    }

    /// The layer's mixture of experts, if it has one.
    #[must_use]
    pub fn experts(&self) -> Option<&ExpertsShape> {
        self.feed_forward.iter().find_map(|part| match part {
            FeedForward::Experts(shape) => Some(shape),
            FeedForward::Dense(_) => None,
        })
    }
}

/// A part of a layer that mixes the tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mixer {
    /// Multi-head, grouped-query or multi-query attention.
    Attention(AttentionShape),
    /// Multi-head latent attention (DeepSeek's MLA).
    Latent(LatentShape),
    /// Attention to an image instead of the text.
    Cross(CrossShape),
    /// Indexer of a sparse attention: picks the keys that the attention reads.
    Indexer(IndexerShape),
    /// Compressed memories behind a sliding window (DeepSeek V4).
    Compressed(CompressedShape),
    /// Mamba 1.
    Mamba(MambaShape),
    /// Mamba 2.
    Mamba2(Mamba2Shape),
    /// Gated delta net (Qwen3-Next).
    GatedDelta(GatedDeltaShape),
    /// Gated short convolution (LFM2).
    ShortConv(ShortConvShape),
    /// Another recurrence, of which only the size of its state is known.
    Recurrent(RecurrentShape),
    /// A mixer whose cache is not known.
    Unknown,
}

impl Mixer {
    /// The state that this mixer caches for a sequence; `None` where it reads another layer's.
    #[must_use]
    pub fn state(&self) -> Option<LayerState> {
        match *self {
            Self::Attention(shape) if shape.shares_cache => None,
            Self::Attention(shape) => {
                let AttentionShape { kv_heads, key_dim, value_dim, cached_window, .. } = shape;
                let window = cached_window;
                Some(LayerState::Attention { kv_heads, key_dim, value_dim, window })
            }
            Self::Latent(shape) => Some(LayerState::Latent { dim: shape.cached_dim() }),
            Self::Cross(CrossShape { kv_heads, key_dim, value_dim, .. }) => {
                Some(LayerState::Cross { kv_heads, key_dim, value_dim })
            }
            Self::Indexer(IndexerShape { key_dim, .. }) => {
                Some(LayerState::Indexer { dim: key_dim })
            }
            Self::Compressed(CompressedShape { dim, ratio_tokens }) => {
                Some(LayerState::Compressed { dim, ratio_tokens })
            }
            Self::Mamba(shape) => Some(LayerState::Recurrent(shape.state())),
            Self::Mamba2(shape) => Some(LayerState::Recurrent(shape.state())),
            Self::GatedDelta(shape) => Some(LayerState::Recurrent(shape.state())),
            Self::ShortConv(shape) => Some(LayerState::Recurrent(shape.state())),
            Self::Recurrent(shape) => Some(LayerState::Recurrent(shape)),
            Self::Unknown => Some(LayerState::Unknown),
        }
    }

    /// Query heads, of a mixer that computes attention scores.
    pub(super) fn query_heads(&self) -> Option<u64> {
        match self {
            Self::Attention(shape) => Some(shape.query_heads),
            Self::Latent(shape) => Some(shape.query_heads),
            Self::Cross(shape) => Some(shape.query_heads),
            _ => None,
        }
    }

    /// Elements per token of the widest step of a recurrence.
    pub(super) fn recurrent_width(&self) -> Option<u64> {
        match self {
            Self::Mamba(shape) => Some(shape.inner),
            Self::Mamba2(shape) => Some(shape.inner),
            Self::GatedDelta(shape) => Some(shape.channels()),
            _ => None,
        }
    }
}

/// Sizes of an attention whose keys and values are cached per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttentionShape {
    /// Query heads.
    pub query_heads: u64,
    /// Key-value heads.
    pub kv_heads: u64,
    /// Elements of a query head and of a key head.
    pub key_dim: u64,
    /// Elements of a value head; 0 where the key serves as value and is cached once.
    pub value_dim: u64,
    /// Sliding window, in tokens; `None` for attention to the whole context.
    pub window: Option<u64>,
    /// Most tokens that the cache holds: the window, unless the model's longest context fits into it.
    pub cached_window: Option<u64>,
    /// Reads the keys and values of an earlier layer and caches none of its own.
    pub shares_cache: bool,
}

impl AttentionShape {
    /// Attention to the whole context with keys and values of `head_dim` elements.
    #[must_use]
    pub fn new(query_heads: u64, kv_heads: u64, head_dim: u64) -> Self {
        Self {
            query_heads,
            kv_heads,
            key_dim: head_dim,
            value_dim: head_dim,
            window: None,
            cached_window: None,
            shares_cache: false,
        }
    }

    /// Sets the sliding window, in tokens.
    #[must_use]
    pub fn with_window(self, window: Option<u64>) -> Self {
        Self { window, cached_window: window, ..self }
    }

    /// Sets another width for values than for keys.
    #[must_use]
    pub fn with_value_dim(self, value_dim: u64) -> Self {
        Self { value_dim, ..self }
    }
}

/// Sizes of a multi-head latent attention. One latent per token is cached for all heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatentShape {
    /// Query heads.
    pub query_heads: u64,
    /// Rank of the compressed query; `None` where queries are projected directly.
    pub query_rank: Option<u64>,
    /// Rank of the latent (`kv_lora_rank`).
    pub kv_rank: u64,
    /// Elements of a head without rotary positions (`qk_nope_head_dim`).
    pub nope_dim: u64,
    /// Elements of a head with rotary positions (`qk_rope_head_dim`).
    pub rope_dim: u64,
    /// Elements of a value head (`v_head_dim`).
    pub value_dim: u64,
}

impl LatentShape {
    /// Elements of the cached vector: the latent and the rotary part of the key.
    #[must_use]
    pub fn cached_dim(&self) -> u64 {
        self.kv_rank.saturating_add(self.rope_dim)
    }
}

/// Sizes of a cross-attention to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CrossShape {
    /// Query heads.
    pub query_heads: u64,
    /// Key-value heads.
    pub kv_heads: u64,
    /// Elements of a query head and of a key head.
    pub key_dim: u64,
    /// Elements of a value head.
    pub value_dim: u64,
    /// Tokens of one image.
    pub image_tokens: u64,
}

impl CrossShape {
    /// Cross-attention with keys and values of `head_dim` elements.
    #[must_use]
    pub fn new(query_heads: u64, kv_heads: u64, head_dim: u64, image_tokens: u64) -> Self {
        Self { query_heads, kv_heads, key_dim: head_dim, value_dim: head_dim, image_tokens }
    }
}

/// Sizes of a sparse attention's indexer, whose keys are cached per token in 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexerShape {
    /// Query heads; all share one key.
    pub heads: u64,
    /// Elements of a key.
    pub key_dim: u64,
}

/// Sizes of compressed memories, cached in 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompressedShape {
    /// Elements of a memory.
    pub dim: u64,
    /// Tokens that a memory covers.
    pub ratio_tokens: u64,
}

/// Sizes of a Mamba 1 mixer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MambaShape {
    /// Channels of the convolution and of the scan.
    pub inner: u64,
    /// Elements of the state per channel.
    pub state_dim: u64,
    /// Taps of the convolution, in tokens.
    pub conv_kernel: u64,
    /// Rank of the step size's projection.
    pub step_rank: u64,
}

impl MambaShape {
    fn state(&self) -> RecurrentShape {
        RecurrentShape {
            conv_elems: conv_elems(self.conv_kernel, self.inner),
            state_elems: self.inner.saturating_mul(self.state_dim),
            state_elem_bytes: SINGLE,
        }
    }
}

/// Sizes of a Mamba 2 mixer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mamba2Shape {
    /// Elements of all heads together.
    pub inner: u64,
    /// Heads.
    pub heads: u64,
    /// Groups of heads that share B and C.
    pub groups: u64,
    /// Elements of the state per element of a head.
    pub state_dim: u64,
    /// Taps of the convolution, in tokens.
    pub conv_kernel: u64,
    /// Bytes of a state element.
    pub state_elem_bytes: u64,
}

impl Mamba2Shape {
    /// Elements of a head; `None` where the heads do not divide `inner`.
    #[must_use]
    pub fn head_dim(&self) -> Option<u64> {
        let rest = self.inner.checked_rem(self.heads)?;
        self.inner.checked_div(self.heads).filter(|_| rest == 0)
    }

    /// Channels of the convolution: the heads, B and C.
    #[must_use]
    pub fn channels(&self) -> u64 {
        let shared = self.groups.saturating_mul(self.state_dim);
        self.inner.saturating_add(shared.saturating_mul(2))
    }

    fn state(&self) -> RecurrentShape {
        RecurrentShape {
            conv_elems: conv_elems(self.conv_kernel, self.channels()),
            state_elems: self.inner.saturating_mul(self.state_dim),
            state_elem_bytes: self.state_elem_bytes,
        }
    }
}

/// Sizes of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GatedDeltaShape {
    /// Query and key heads.
    pub key_heads: u64,
    /// Value heads.
    pub value_heads: u64,
    /// Elements of a query head and of a key head.
    pub key_dim: u64,
    /// Elements of a value head.
    pub value_dim: u64,
    /// Taps of the convolution, in tokens.
    pub conv_kernel: u64,
}

impl GatedDeltaShape {
    /// Elements of all queries, or of all keys.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.key_heads.saturating_mul(self.key_dim)
    }

    /// Elements of all values.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.value_heads.saturating_mul(self.value_dim)
    }

    /// Channels of the convolution: queries, keys and values.
    #[must_use]
    pub fn channels(&self) -> u64 {
        self.keys().saturating_mul(2).saturating_add(self.values())
    }

    fn state(&self) -> RecurrentShape {
        RecurrentShape {
            conv_elems: conv_elems(self.conv_kernel, self.channels()),
            state_elems: self.values().saturating_mul(self.key_dim),
            state_elem_bytes: SINGLE,
        }
    }
}

/// Sizes of a gated short convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShortConvShape {
    /// Channels.
    pub channels: u64,
    /// Taps of the convolution, in tokens.
    pub conv_kernel: u64,
}

impl ShortConvShape {
    fn state(&self) -> RecurrentShape {
        RecurrentShape {
            conv_elems: conv_elems(self.conv_kernel, self.channels),
            state_elems: 0,
            state_elem_bytes: SINGLE,
        }
    }
}

/// State of a recurrent mixer: of a fixed size, whatever the length of the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecurrentShape {
    /// Elements of the convolution's past inputs, stored as the cache stores floats.
    pub conv_elems: u64,
    /// Elements of the state.
    pub state_elems: u64,
    /// Bytes of a state element.
    pub state_elem_bytes: u64,
}

impl RecurrentShape {
    /// A state of `state_elems` elements of `state_elem_bytes`, with `conv_elems` past inputs.
    #[must_use]
    pub fn new(conv_elems: u64, state_elems: u64, state_elem_bytes: u64) -> Self {
        Self { conv_elems, state_elems, state_elem_bytes }
    }
}

/// Bytes of an fp32 element: the type of recurrent states.
const SINGLE: u64 = 4;

/// Past inputs of a causal convolution of `kernel` taps.
fn conv_elems(kernel: u64, channels: u64) -> u64 {
    kernel.saturating_sub(1).saturating_mul(channels)
}

/// A part of a layer that transforms each token by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedForward {
    /// One MLP for every token.
    Dense(DenseShape),
    /// A mixture of experts.
    Experts(ExpertsShape),
}

/// Sizes of a dense MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DenseShape {
    /// Elements between the matrices (`intermediate_size`).
    pub width: u64,
    /// Has a gate projection beside the up projection (SwiGLU, GeGLU).
    pub gated: bool,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpertsShape {
    /// Routed experts.
    pub count: u64,
    /// Routed experts that a token passes; `None` where neither the configuration nor its class
    /// says.
    pub active: Option<u64>,
    /// Elements between the matrices of one expert.
    pub width: u64,
    /// Elements between the matrices of all shared experts together, which every token passes; 0
    /// where there are none.
    pub shared_width: u64,
    /// Has a gate projection beside the up projection in each expert.
    pub gated: bool,
}
