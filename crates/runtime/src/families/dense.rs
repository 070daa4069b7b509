//! The pre-norm decoder that most dense families share: RMS norm, grouped-query attention with
//! rotary embeddings, SwiGLU.
//!
//! Owns the four blocks `Attention`, `Mlp`, `Block`, `Model`; a family that uses them adds its
//! `Config` and says how its attention is built. A family whose blocks differ writes its own.

use mlxcel_core::layers::{Embedding, Linear, RmsNorm};
use mlxcel_core::{Array, AttentionSpec, Batch, LayerLayout, Ops, Rope};
use serde::Deserialize;

use super::LanguageModel;
use super::config::HeadShape;
use crate::Result;
use crate::loading::{Bias, Weights};

/// The sizes that every family of this layout states under the same names.
#[derive(Debug, Deserialize)]
pub(super) struct Sizes {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) intermediate_size: usize,
    pub(super) rms_norm_eps: f32,
    pub(super) vocab_size: usize,
    pub(super) tie_word_embeddings: Option<bool>,
}

/// Grouped-query attention; norms over heads and rotation only where the family has them.
pub(super) struct Attention {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) o_proj: Linear,
    pub(super) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(super) rope: Option<Rope>,
    pub(super) spec: AttentionSpec,
}

/// Which of the projections of an attention have a bias.
#[derive(Clone, Copy)]
pub(super) struct ProjectionBias {
    pub(super) qkv: Bias,
    pub(super) output: Bias,
}

impl ProjectionBias {
    /// The same for all four projections.
    pub(super) fn all(bias: Bias) -> Self {
        Self { qkv: bias, output: bias }
    }
}

impl Attention {
    /// Reads `q_proj`, `k_proj`, `v_proj` and `o_proj`.
    pub(super) fn load(
        w: &Weights,
        hidden: usize,
        heads: HeadShape,
        bias: ProjectionBias,
        rope: Option<Rope>,
    ) -> Result<Self> {
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, heads.query_size(), bias.qkv)?,
            k_proj: w.linear("k_proj", hidden, heads.kv_size(), bias.qkv)?,
            v_proj: w.linear("v_proj", hidden, heads.kv_size(), bias.qkv)?,
            o_proj: w.linear("o_proj", heads.query_size(), hidden, bias.output)?,
            qk_norm: None,
            rope,
            spec: heads.attention(),
        })
    }

    /// The same attention over a sliding window of tokens, or over everything.
    pub(super) fn windowed(mut self, window: Option<usize>) -> Result<Self> {
        self.spec = self.spec.with_window(window)?;
        Ok(self)
    }

    fn forward(&self, cx: &Batch, layer: usize, x: &Array) -> Result<Array> {
        let [mut q, mut k, v] = cx.ops().linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = cx.ops().rms_norm(&q, q_norm)?;
            k = cx.ops().rms_norm(&k, k_norm)?;
        }
        if let Some(rope) = &self.rope {
            q = cx.rope(&q, self.spec.query_heads(), rope)?;
            k = cx.rope(&k, self.spec.kv_heads(), rope)?;
        }
        let attended = cx.attention(layer, &q, &k, &v, &self.spec)?;
        Ok(cx.ops().linear(&attended, &self.o_proj)?)
    }
}

/// SwiGLU: `down(silu(gate(x)) · up(x))`.
pub(super) struct Mlp {
    pub(super) gate_proj: Linear,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
}

impl Mlp {
    /// Reads `gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn load(w: &Weights, s: &Sizes, bias: Bias) -> Result<Self> {
        Ok(Self {
            gate_proj: w.linear("gate_proj", s.hidden_size, s.intermediate_size, bias)?,
            up_proj: w.linear("up_proj", s.hidden_size, s.intermediate_size, bias)?,
            down_proj: w.linear("down_proj", s.intermediate_size, s.hidden_size, bias)?,
        })
    }

    fn forward(&self, cx: &Batch, x: &Array) -> Result<Array> {
        let hidden = cx.ops().swiglu(x, &self.gate_proj, &self.up_proj)?;
        Ok(cx.ops().linear(&hidden, &self.down_proj)?)
    }
}

/// One pre-norm layer.
pub(super) struct Block {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
}

impl Block {
    fn load(w: &Weights, s: &Sizes, self_attn: Attention, mlp: Mlp) -> Result<Self> {
        let norm = |name| w.rms_norm(name, s.hidden_size, s.rms_norm_eps);
        Ok(Self {
            self_attn,
            mlp,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        })
    }

    fn forward(&self, cx: &Batch, layer: usize, x: &Array) -> Result<Array> {
        let normed = cx.ops().rms_norm(x, &self.input_layernorm)?;
        let x = cx.ops().add(x, &self.self_attn.forward(cx, layer, &normed)?)?;
        let normed = cx.ops().rms_norm(&x, &self.post_attention_layernorm)?;
        Ok(cx.ops().add(&x, &self.mlp.forward(cx, &normed)?)?)
    }
}

/// The whole decoder.
pub(super) struct Model {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Option<Linear>,
}

impl Model {
    /// Reads the decoder; `attention` and `mlp` build those of a layer from its `self_attn` and
    /// `mlp` tensors and its index.
    pub(super) fn load(
        w: &Weights,
        s: &Sizes,
        attention: impl Fn(&Weights, usize) -> Result<Attention>,
        mlp: impl Fn(&Weights) -> Result<Mlp>,
    ) -> Result<Self> {
        let model = w.at("model");
        let block = |w: &Weights, layer| {
            Block::load(w, s, attention(&w.at("self_attn"), layer)?, mlp(&w.at("mlp"))?)
        };
        Ok(Self {
            embed_tokens: model.embedding("embed_tokens", s.vocab_size, s.hidden_size)?,
            layers: model.layers(s.num_hidden_layers, block)?,
            norm: model.rms_norm("norm", s.hidden_size, s.rms_norm_eps)?,
            lm_head: w.lm_head(s.tie_word_embeddings, s.hidden_size, s.vocab_size)?,
        })
    }
}

impl LanguageModel for Model {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        self.layers.iter().map(|layer| layer.self_attn.spec.layout()).collect()
    }

    fn forward(&self, cx: &Batch) -> Result<Array> {
        let mut x = cx.ops().embed(cx.tokens(), &self.embed_tokens)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(cx, i, &x)?;
            cx.ops().settle(&x)?;
        }
        Ok(cx.ops().rms_norm(&x, &self.norm)?)
    }

    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(head) => Ok(ops.linear(hidden, head)?),
            None => Ok(ops.embedding_logits(hidden, &self.embed_tokens)?),
        }
    }
}
