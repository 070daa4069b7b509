//! The decoder that dense families share: embeddings, layers of attention and a feed-forward part
//! with norms around each, a last norm and a head.
//!
//! Owns the blocks `Attention`, `Block` and `Model` (`mlp` has the feed-forward parts); a family that
//! uses them adds its `Config` and says which norms, scales and parts there are. A family whose
//! blocks differ writes its own behind [`Layer`], [`Mixer`] or [`FeedForward`].

use mlxcel_core::layers::{Embedding, Linear, Norm, RmsNorm};
use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, AttentionSpec, Batch, LayerLayout, Map, Ops, Rope};

use super::LanguageModel;
use super::config::{DecoderConfig, HeadShape, Sizes};
use super::kept::{Kept, Slot};
pub(super) use super::mlp::{Mlp, PlainMlp};
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

/// What mixes the tokens of a sequence: attention, or something that takes its place.
pub(super) trait Mixer {
    /// What it keeps of a sequence.
    fn kept(&self) -> Kept;

    /// `[total tokens, hidden]` to the same; `slot` says where it keeps what it keeps.
    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array>;
}

/// What transforms each token by itself.
pub(super) trait FeedForward {
    /// `[total tokens, hidden]` to the same.
    fn forward(&self, cx: &Batch, x: &Array) -> Result<Array>;
}

/// Grouped-query attention; norms and rotation only where the family has them.
pub(super) struct Attention {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) o_proj: Linear,
    /// Over each head or over all of them, as long as the norms' weights are.
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
        let o_proj = w.linear("o_proj", heads.query_size(), hidden, bias.output)?;
        Self::with_output(w, heads, bias.qkv, o_proj, rope)
    }

    /// The same around an output projection of another name.
    pub(super) fn with_output(
        w: &Weights,
        heads: HeadShape,
        bias: Bias,
        o_proj: Linear,
        rope: Option<Rope>,
    ) -> Result<Self> {
        let (hidden, _) = o_proj.weight.shape();
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, heads.query_size(), bias)?,
            k_proj: w.linear("k_proj", hidden, heads.kv_size(), bias)?,
            v_proj: w.linear("v_proj", hidden, heads.kv_size(), bias)?,
            o_proj,
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
}

impl Mixer for Attention {
    fn kept(&self) -> Kept {
        self.spec.layout().into()
    }

    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array> {
        let [mut q, mut k, v] = cx.ops().linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = cx.ops().rms_norm(&q, q_norm)?;
            k = cx.ops().rms_norm(&k, k_norm)?;
        }
        if let Some(rope) = &self.rope {
            q = cx.rope(&q, self.spec.query_heads(), rope)?;
            k = cx.rope(&k, self.spec.kv_heads(), rope)?;
        }
        let attended = cx.attention(slot.cache, &q, &k, &v, &self.spec)?;
        Ok(cx.ops().linear(&attended, &self.o_proj)?)
    }
}

/// What stands around a part of a block: `x + scale · after(part(before(x)))`.
#[derive(Default)]
pub(super) struct Around {
    pub(super) before: Option<Norm>,
    pub(super) after: Option<Norm>,
    pub(super) scale: Option<f32>,
}

impl Around {
    /// The norm `name` before the part.
    pub(super) fn before(w: &Weights, name: &str, hidden: usize, norm: NormRule) -> Result<Self> {
        Ok(Self { before: Some(w.norm(name, hidden, norm)?), ..Self::default() })
    }

    fn apply(
        &self,
        ops: &Ops,
        x: &Array,
        part: impl FnOnce(&Array) -> Result<Array>,
    ) -> Result<Array> {
        let mut y = match &self.before {
            Some(norm) => part(&ops.norm(x, norm)?)?,
            None => part(x)?,
        };
        if let Some(norm) = &self.after {
            y = ops.norm(&y, norm)?;
        }
        if let Some(scale) = self.scale {
            y = ops.map(&y, Map::Scale(scale))?;
        }
        Ok(ops.add(x, &y)?)
    }
}

/// One layer of a [`Model`]; as a [`Mixer`].
pub(super) trait Layer {
    fn kept(&self) -> Kept;
    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array>;
}

/// A mixer, then a feed-forward part.
pub(super) struct Block {
    pub(super) mixer: Box<dyn Mixer>,
    pub(super) mlp: Box<dyn FeedForward>,
    pub(super) around_mixer: Around,
    pub(super) around_mlp: Around,
}

impl Block {
    /// A block with `input_layernorm` before the mixer and `post_attention_layernorm` before the
    /// feed-forward part.
    pub(super) fn pre_norm(
        w: &Weights,
        hidden: usize,
        norm: NormRule,
        mixer: impl Mixer + 'static,
        mlp: impl FeedForward + 'static,
    ) -> Result<Self> {
        Ok(Self {
            mixer: Box::new(mixer),
            mlp: Box::new(mlp),
            around_mixer: Around::before(w, "input_layernorm", hidden, norm)?,
            around_mlp: Around::before(w, "post_attention_layernorm", hidden, norm)?,
        })
    }
}

impl Layer for Block {
    fn kept(&self) -> Kept {
        self.mixer.kept()
    }

    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array> {
        let x = self.around_mixer.apply(cx.ops(), x, |x| self.mixer.forward(cx, slot, x))?;
        self.around_mlp.apply(cx.ops(), &x, |x| self.mlp.forward(cx, x))
    }
}

/// The whole decoder.
pub(super) struct Model {
    pub(super) embed_tokens: Embedding,
    /// Learned positions, added to the tokens.
    pub(super) positions: Option<Embedding>,
    /// Factor on the embeddings.
    pub(super) embed_scale: Option<f32>,
    pub(super) layers: Vec<Box<dyn Layer>>,
    pub(super) norm: Norm,
    /// `None` where the embedding serves as head.
    pub(super) lm_head: Option<Linear>,
    /// What is done to the logits.
    pub(super) logits: Option<Map>,
}

impl Model {
    /// Reads `model.embed_tokens`, `model.layers`, `model.norm` and `lm_head`; `layer` builds a
    /// layer from its tensors and index.
    pub(super) fn load<L: Layer + 'static>(
        w: &Weights,
        s: &Sizes,
        norm: NormRule,
        layer: impl Fn(&Weights, usize) -> Result<L>,
    ) -> Result<Self> {
        Self::load_with([&w.at("model"), w], s, ("norm", norm), layer)
    }

    /// The same of what lies in other places, below `model` and beside `lm_head`, with a last norm
    /// of another name.
    pub(super) fn load_with<L: Layer + 'static>(
        [model, head]: [&Weights; 2],
        s: &Sizes,
        (last, norm): (&str, NormRule),
        layer: impl Fn(&Weights, usize) -> Result<L>,
    ) -> Result<Self> {
        let boxed = |w: &Weights, i| Ok(Box::new(layer(w, i)?) as Box<dyn Layer>);
        Ok(Self {
            embed_tokens: model.embedding("embed_tokens", s.vocab_size, s.hidden_size)?,
            positions: None,
            embed_scale: None,
            layers: model.layers("layers", s.num_hidden_layers, boxed)?,
            norm: model.norm(last, s.hidden_size, norm)?,
            lm_head: head.lm_head(s.tie_word_embeddings, s.hidden_size, s.vocab_size)?,
            logits: None,
        })
    }

    /// Reads a decoder of Llama's layout: RMS norms before each part. `attention` and `mlp` build
    /// those of a layer from its `self_attn` and `mlp` tensors and its index.
    pub(super) fn pre_norm<M: FeedForward + 'static>(
        w: &Weights,
        c: &DecoderConfig,
        attention: impl Fn(&Weights, usize) -> Result<Attention>,
        mlp: impl Fn(&Weights) -> Result<M>,
    ) -> Result<Self> {
        let norm = c.sizes.norm(NormKind::Rms)?;
        Self::load(w, &c.sizes, norm, |w, layer| {
            let attention = attention(&w.at("self_attn"), layer)?;
            Block::pre_norm(w, c.sizes.hidden_size, norm, attention, mlp(&w.at("mlp"))?)
        })
    }
}

impl LanguageModel for Model {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        self.layers.iter().filter_map(|layer| layer.kept().cache).collect()
    }

    fn state_layout(&self) -> Vec<StateLayout> {
        self.layers.iter().filter_map(|layer| layer.kept().state).collect()
    }

    fn forward(&self, cx: &Batch) -> Result<Array> {
        let mut x = cx.ops().embed(cx.tokens(), &self.embed_tokens)?;
        if let Some(scale) = self.embed_scale {
            x = cx.ops().map(&x, Map::Scale(scale))?;
        }
        x = cx.place_images(&x)?;
        if let Some(positions) = &self.positions {
            x = cx.ops().add(&x, &cx.embed_positions(positions)?)?;
        }
        let mut slot = Slot::default();
        for layer in &self.layers {
            x = layer.forward(cx, slot, &x)?;
            slot = slot.after(layer.kept());
            cx.ops().settle(&x)?;
        }
        Ok(cx.ops().norm(&x, &self.norm)?)
    }

    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array> {
        let logits = match &self.lm_head {
            Some(head) => ops.linear(hidden, head)?,
            None => ops.embedding_logits(hidden, &self.embed_tokens)?,
        };
        match self.logits {
            Some(function) => Ok(ops.map(&logits, function)?),
            None => Ok(logits),
        }
    }
}
