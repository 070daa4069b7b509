//! Multi-head latent attention in its absorbed form: a cache of one latent for all heads.
//!
//! A head's query is projected into the space of the latents (`embed_q`) and attends to latents and
//! the rotary part of the key; the result is projected to the head's value (`unembed_out`).

use mlxcel_core::layers::{Linear, RmsNorm, Weight};
use mlxcel_core::{AbsorbedStorage, Array, AttentionSpec, Pass, Rope};
use serde::Deserialize;

use super::config::MAX_SIZE;
use super::dense::Mixer;
use super::layer_state::{LayerState, StateIndex};
use crate::loading::{Bias, LatentShape, NormKind, NormRule, Weights};
use crate::{Error, Result};

/// The norms of the compressed queries and of the latents, independent of the model's epsilon.
const NORM: NormRule = NormRule { kind: NormKind::Rms, eps: 1e-6 };

/// The sizes of latent attention as a configuration states them.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LatentSizes {
    num_attention_heads: usize,
    kv_lora_rank: usize,
    q_lora_rank: Option<usize>,
    qk_nope_head_dim: usize,
    pub(super) qk_rope_head_dim: usize,
    v_head_dim: usize,
    #[serde(default)]
    attention_bias: bool,
}

impl LatentSizes {
    fn check(&self) -> Result<()> {
        let sizes = [
            ("num_attention_heads", self.num_attention_heads),
            ("kv_lora_rank", self.kv_lora_rank),
            ("q_lora_rank", self.q_lora_rank.unwrap_or(1)),
            ("qk_nope_head_dim", self.qk_nope_head_dim),
            ("qk_rope_head_dim", self.qk_rope_head_dim),
            ("v_head_dim", self.v_head_dim),
        ];
        match sizes.into_iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
            Some((name, size)) => Err(Error::config(format!("{name} is {size}"))),
            None => Ok(()),
        }
    }

    fn head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }
}

/// Projection of the queries.
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
    /// Reads the attention; `temperature` is a factor on the scores besides `1/√head_dim`.
    pub(super) fn load(
        w: &Weights,
        hidden: usize,
        sizes: &LatentSizes,
        rope: Rope,
        temperature: f32,
        storage: AbsorbedStorage,
    ) -> Result<Self> {
        sizes.check()?;
        let heads = sizes.num_attention_heads;
        let latent = sizes.kv_lora_rank;
        let nope = sizes.qk_nope_head_dim;
        let rotary = sizes.qk_rope_head_dim;
        let value = sizes.v_head_dim;
        let bias = Bias::when(sizes.attention_bias);
        let queries = heads * sizes.head_dim();
        let query = match sizes.q_lora_rank {
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
            sizes: sizes.clone(),
        })
    }

    /// AbsorbedStorage queries `[total tokens, heads · (latent + rotary)]`.
    fn queries(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let heads = self.sizes.num_attention_heads;
        let q = match &self.query {
            Query::Plain(q_proj) => ops.linear(x, q_proj)?,
            Query::Compressed { q_a_proj, q_a_layernorm, q_b_proj } => {
                let compressed = ops.linear(x, q_a_proj)?;
                ops.linear(&ops.rms_norm(&compressed, q_a_layernorm)?, q_b_proj)?
            }
        };
        let [nope, rotary] = ops.split_heads(&q, heads, self.sizes.qk_nope_head_dim)?;
        let rotary = pass.rope(&rotary, heads, &self.rope)?;
        Ok(ops.join_heads(&ops.linear_per_head(&nope, &self.embed_q, heads)?, &rotary, heads)?)
    }

    /// Latents, each followed by the rotary part of its key.
    fn keys(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let compressed = pass.ops().linear(x, &self.kv_a_proj_with_mqa)?;
        let [latent, rotary] = pass.ops().split_heads(&compressed, 1, self.sizes.kv_lora_rank)?;
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
        let heads = self.sizes.num_attention_heads;
        let values = pass.ops().linear_per_head(&latents, &self.unembed_out, heads)?;
        Ok(pass.ops().linear(&values, &self.o_proj)?)
    }
}
