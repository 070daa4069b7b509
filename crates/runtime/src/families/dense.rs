//! The decoder that dense families share: embeddings, layers of attention and a feed-forward part
//! with norms around each, a last norm and a head.
//!
//! Owns the blocks `Attention`, `DecoderBlock` and `Model` (`mlp` has feed-forward parts); a family that
//! uses them adds its `Config` and chooses norms, scales and parts. A family whose blocks differ
//! implements [`DecoderLayer`], [`Mixer`] or [`FeedForward`].

use mlxcel_core::layers::{Embedding, Linear, Norm, RmsNorm};
use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, AttentionSpec, LayerLayout, Map, Ops, Pass, Rope};

use super::LanguageModel;
use super::config::{DecoderConfig, HeadShape, Sizes};
use super::layer_state::{LayerState, StateIndex};
pub(super) use super::mlp::{Mlp, PlainMlp};
pub(super) use super::residual::Residual;
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

/// Part of a layer that mixes the tokens of a sequence: attention, or its replacement.
pub(super) trait Mixer {
    /// State that it keeps of a sequence.
    fn layer_state(&self) -> LayerState;

    /// Maps `[total tokens, hidden]` to itself; `index` is that of its state.
    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array>;
}

/// Part of a layer that transforms each token independently.
pub(super) trait FeedForward {
    /// Maps `[total tokens, hidden]` to itself.
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array>;
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

/// Biases of the projections of an attention.
#[derive(Clone, Copy)]
pub(super) struct ProjectionBias {
    pub(super) qkv: Bias,
    pub(super) output: Bias,
}

impl ProjectionBias {
    /// One rule for all four projections.
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

    /// Reads `q_proj`, `k_proj` and `v_proj`, for an output projection of another name.
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
            spec: heads.attention()?,
        })
    }
}

impl Mixer for Attention {
    fn layer_state(&self) -> LayerState {
        self.spec.layout().into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let [mut q, mut k, v] =
            pass.ops().linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = pass.ops().rms_norm(&q, q_norm)?;
            k = pass.ops().rms_norm(&k, k_norm)?;
        }
        if let Some(rope) = &self.rope {
            q = pass.rope(&q, self.spec.query_heads(), rope)?;
            k = pass.rope(&k, self.spec.kv_heads(), rope)?;
        }
        let attended = pass.attention(index.cache, &q, &k, &v, &self.spec)?;
        Ok(pass.ops().linear(&attended, &self.o_proj)?)
    }
}

/// One layer of a [`Model`]; methods are those of [`Mixer`].
pub(super) trait DecoderLayer {
    fn layer_state(&self) -> LayerState;
    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array>;
}

/// A mixer, then a feed-forward part.
pub(super) struct DecoderBlock {
    pub(super) mixer: Box<dyn Mixer>,
    pub(super) mlp: Box<dyn FeedForward>,
    pub(super) mixer_residual: Residual,
    pub(super) mlp_residual: Residual,
}

impl DecoderBlock {
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
            mixer_residual: Residual::before(w, "input_layernorm", hidden, norm)?,
            mlp_residual: Residual::before(w, "post_attention_layernorm", hidden, norm)?,
        })
    }
}

impl DecoderLayer for DecoderBlock {
    fn layer_state(&self) -> LayerState {
        self.mixer.layer_state()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let x = self.mixer_residual.apply(pass.ops(), x, |x| self.mixer.forward(pass, index, x))?;
        self.mlp_residual.apply(pass.ops(), &x, |x| self.mlp.forward(pass, x))
    }
}

/// The whole decoder.
pub(super) struct Model {
    pub(super) embed_tokens: Embedding,
    /// Learned positions, added to the tokens.
    pub(super) positions: Option<Embedding>,
    /// Factor on the embeddings.
    pub(super) embed_scale: Option<f32>,
    pub(super) layers: Vec<Box<dyn DecoderLayer>>,
    pub(super) norm: Norm,
    /// `None` where the embedding serves as head.
    pub(super) lm_head: Option<Linear>,
    /// Function of the logits.
    pub(super) logits: Option<Map>,
}

impl Model {
    /// Reads `model.embed_tokens`, `model.layers`, `model.norm` and `lm_head`; `layer` builds a
    /// layer from its tensors and index.
    pub(super) fn load<L: DecoderLayer + 'static>(
        w: &Weights,
        s: &Sizes,
        norm: NormRule,
        layer: impl Fn(&Weights, usize) -> Result<L>,
    ) -> Result<Self> {
        Self::load_with([&w.at("model"), w], s, "norm", norm, layer)
    }

    /// Reads the decoder below `model` and `lm_head` below `head`, with a last norm called `last_norm`.
    pub(super) fn load_with<L: DecoderLayer + 'static>(
        [model, head]: [&Weights; 2],
        s: &Sizes,
        last_norm: &str,
        norm: NormRule,
        layer: impl Fn(&Weights, usize) -> Result<L>,
    ) -> Result<Self> {
        let layers = model.layers("layers", s.num_hidden_layers, |w, i| {
            Ok(Box::new(layer(w, i)?) as Box<dyn DecoderLayer>)
        })?;
        Ok(Self {
            embed_tokens: model.embedding("embed_tokens", s.vocab_size, s.hidden_size)?,
            positions: None,
            embed_scale: None,
            layers,
            norm: model.norm(last_norm, s.hidden_size, norm)?,
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
        mlp: impl Fn(&Weights, usize) -> Result<M>,
    ) -> Result<Self> {
        let norm = c.sizes.norm(NormKind::Rms)?;
        Self::load(w, &c.sizes, norm, |w, layer| {
            let attention = attention(&w.at("self_attn"), layer)?;
            let mlp = mlp(&w.at("mlp"), layer)?;
            DecoderBlock::pre_norm(w, c.sizes.hidden_size, norm, attention, mlp)
        })
    }
}

impl LanguageModel for Model {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        self.layers.iter().filter_map(|layer| layer.layer_state().cache).collect()
    }

    fn state_layout(&self) -> Vec<StateLayout> {
        self.layers.iter().filter_map(|layer| layer.layer_state().state).collect()
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Array> {
        let mut x = pass.embed_tokens(&self.embed_tokens)?;
        if let Some(scale) = self.embed_scale {
            x = pass.ops().map(&x, Map::Scale(scale))?;
        }
        x = pass.place_images(&x)?;
        if let Some(positions) = &self.positions {
            x = pass.ops().add(&x, &pass.embed_positions(positions)?)?;
        }
        let mut index = StateIndex::default();
        for layer in &self.layers {
            x = layer.forward(pass, index, &x)?;
            index = index.after(layer.layer_state());
            pass.ops().eval_layer(&x)?;
        }
        Ok(pass.ops().norm(&x, &self.norm)?)
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
