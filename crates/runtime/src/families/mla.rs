//! Multi-head latent attention in its absorbed form: a cache of one latent for all heads.
//!
//! A head's query is projected into the space of the latents (`embed_q`) and attends to latents and
//! the rotary part of the key; the result is projected to the head's value (`unembed_out`).

use mlxcel_core::layers::{Linear, RmsNorm, Weight};
use mlxcel_core::{AbsorbedStorage, Array, AttentionSpec, Pass, Rope};

use super::config::{DecoderConfig, size};
use super::dense::Mixer;
use super::layer_state::{LayerState, StateIndex};
use crate::Result;
use crate::loading::{Bias, LatentShape, NormKind, NormRule, Weights};

/// The norms of the compressed queries and of the latents, independent of the model's epsilon.
const NORM: NormRule = NormRule { kind: NormKind::Rms, eps: 1e-6 };

/// The sizes of latent attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatentSizes {
    heads: usize,
    query_rank: Option<usize>,
    latent: usize,
    nope: usize,
    pub(super) rotary: usize,
    value: usize,
}

impl LatentSizes {
    /// The sizes of layer `layer`.
    pub(super) fn new(d: &DecoderConfig, layer: usize) -> Result<Self> {
        let shape = d.layer(layer)?.latent().copied();
        let shape = shape.ok_or_else(|| d.lacks(layer, "latent attention"))?;
        Ok(Self {
            heads: size(shape.query_heads),
            query_rank: shape.query_rank.map(size),
            latent: size(shape.kv_rank),
            nope: size(shape.nope_dim),
            rotary: size(shape.rope_dim),
            value: size(shape.value_dim),
        })
    }

    fn head_dim(&self) -> usize {
        self.nope + self.rotary
    }
}

/// Rotation of latent attention, and its factor on the scores beside `1/√head_dim`.
#[derive(Clone)]
pub(super) struct LatentRope {
    pub(super) rope: Rope,
    pub(super) temperature: f32,
}

/// Where the queries come from.
enum Query {
    /// One projection.
    Plain(Linear),
    /// Down to a few dimensions, a norm, and up.
    Compressed { q_a_proj: Linear, q_a_layernorm: RmsNorm, q_b_proj: Linear },
}

/// Latent attention.
pub(super) struct LatentAttention {
    sizes: LatentSizes,
    query: Query,
    kv_a_proj_with_mqa: Linear,
    kv_a_layernorm: RmsNorm,
    embed_q: Weight,
    unembed_out: Weight,
    o_proj: Linear,
    rope: Rope,
    spec: AttentionSpec,
}

impl LatentAttention {
    pub(super) fn load(
        w: &Weights,
        hidden: usize,
        sizes: LatentSizes,
        rotation: LatentRope,
        bias: Bias,
        storage: AbsorbedStorage,
    ) -> Result<Self> {
        let LatentSizes { heads, latent, nope, rotary, value, .. } = sizes;
        let LatentRope { rope, temperature } = rotation;
        let queries = heads * sizes.head_dim();
        let query = match sizes.query_rank {
            None => Query::Plain(w.linear("q_proj", hidden, queries, Bias::None)?),
            Some(rank) => Query::Compressed {
                q_a_proj: w.linear("q_a_proj", hidden, rank, bias)?,
                q_a_layernorm: w.rms_norm("q_a_layernorm", rank, NORM)?,
                q_b_proj: w.linear("q_b_proj", rank, queries, Bias::None)?,
            },
        };
        let shape = LatentShape { heads, latent, nope, value };
        let [embed_q, unembed_out] = w.latent_matrices(shape, storage)?;
        #[expect(clippy::cast_precision_loss, reason = "head dimensions are small")]
        let scale = temperature / (sizes.head_dim() as f32).sqrt();
        Ok(Self {
            query,
            kv_a_proj_with_mqa: w.linear("kv_a_proj_with_mqa", hidden, latent + rotary, bias)?,
            kv_a_layernorm: w.rms_norm("kv_a_layernorm", latent, NORM)?,
            embed_q,
            unembed_out,
            o_proj: w.linear("o_proj", heads * value, hidden, bias)?,
            rope,
            spec: AttentionSpec::latent(heads, latent, rotary, scale),
            sizes,
        })
    }

    /// Absorbed queries `[total tokens, heads · (latent + rotary)]`.
    fn queries(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let heads = self.sizes.heads;
        let q = match &self.query {
            Query::Plain(q_proj) => ops.linear(x, q_proj)?,
            Query::Compressed { q_a_proj, q_a_layernorm, q_b_proj } => {
                let compressed = ops.linear(x, q_a_proj)?;
                ops.linear(&ops.rms_norm(&compressed, q_a_layernorm)?, q_b_proj)?
            }
        };
        let [nope, rotary] = ops.split_heads(&q, heads, self.sizes.nope)?;
        let rotary = pass.rope(&rotary, heads, &self.rope)?;
        Ok(ops.join_heads(&ops.linear_per_head(&nope, &self.embed_q, heads)?, &rotary, heads)?)
    }

    /// Latents, each followed by the rotary part of its key.
    fn keys(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let compressed = pass.ops().linear(x, &self.kv_a_proj_with_mqa)?;
        let [latent, rotary] = pass.ops().split_heads(&compressed, 1, self.sizes.latent)?;
        let latent = pass.ops().rms_norm(&latent, &self.kv_a_layernorm)?;
        Ok(pass.ops().join_heads(&latent, &pass.rope(&rotary, 1, &self.rope)?, 1)?)
    }
}

impl Mixer for LatentAttention {
    fn layer_state(&self) -> LayerState {
        self.spec.layout().into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let q = self.queries(pass, x)?;
        let keys = self.keys(pass, x)?;
        let latents = pass.latent_attention(index.cache, &q, &keys, &self.spec)?;
        let heads = self.sizes.heads;
        let values = pass.ops().linear_per_head(&latents, &self.unembed_out, heads)?;
        Ok(pass.ops().linear(&values, &self.o_proj)?)
    }
}
