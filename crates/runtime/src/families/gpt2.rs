//! `gpt2`: learned positions, layer norms, fused query-key-value projections, a plain MLP.
//!
//! Published checkpoints hold matrices as `[in, out]`, which are copied transposed; those that
//! mlx-lm has converted have them as `[out, in]` below `model.`, and stay mapped.

use mlxcel_core::layers::Linear;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, activation};
use super::dense::{Attention, DecoderBlock, DecoderLayer, Model, PlainMlp, Residual};
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Gpt2Config {
    activation_function: Option<String>,
}

/// Order of the dimensions of a checkpoint's matrices.
#[derive(Clone, Copy)]
enum ProjectionLayout {
    InOut,
    OutIn,
}

impl ProjectionLayout {
    /// The tensors of the decoder, and the layout of its matrices.
    fn find<'a>(w: &Weights<'a>) -> (Self, Weights<'a>) {
        let converted = w.at("model");
        let published = w.at("transformer");
        if converted.has("wte.weight") {
            (Self::OutIn, converted)
        } else if published.has("wte.weight") {
            (Self::InOut, published)
        } else {
            (Self::InOut, w.root())
        }
    }

    fn linears<const N: usize>(
        self,
        w: &Weights,
        name: &str,
        cols: usize,
        sizes: [usize; N],
    ) -> Result<[Linear; N]> {
        match self {
            Self::InOut => w.transposed_linear(name, cols, sizes, Bias::Required),
            Self::OutIn => w.fused_linear(name, cols, sizes, Bias::Required),
        }
    }
}

fn attention(
    w: &Weights,
    stored: ProjectionLayout,
    hidden: usize,
    heads: HeadShape,
) -> Result<Attention> {
    let [q_proj, k_proj, v_proj] = stored.linears(w, "c_attn", hidden, [hidden; 3])?;
    let [o_proj] = stored.linears(w, "c_proj", hidden, [hidden])?;
    let spec = heads.attention()?;
    Ok(Attention { q_proj, k_proj, v_proj, o_proj, qk_norm: None, rope: None, spec })
}

fn mlp(
    w: &Weights,
    stored: ProjectionLayout,
    c: &Gpt2Config,
    hidden: usize,
    inner: usize,
) -> Result<PlainMlp> {
    let [input] = stored.linears(w, "c_fc", hidden, [inner])?;
    let [output] = stored.linears(w, "c_proj", inner, [hidden])?;
    let activation = activation(c.activation_function.as_deref().unwrap_or("gelu_new"))?;
    Ok(PlainMlp { input, output, activation })
}

fn block(
    w: &Weights,
    stored: ProjectionLayout,
    d: &DecoderConfig,
    c: &Gpt2Config,
    layer: usize,
) -> Result<DecoderBlock> {
    let hidden = d.sizes.hidden_size;
    let norm = norm(d);
    let attention = attention(&w.at("attn"), stored, hidden, d.heads(layer)?)?;
    let mlp = mlp(&w.at("mlp"), stored, c, hidden, d.inner(layer)?)?;
    Ok(DecoderBlock {
        mixer: Box::new(attention),
        mlp: Box::new(mlp),
        mixer_residual: Residual::before(w, "ln_1", hidden, norm)?,
        mlp_residual: Residual::before(w, "ln_2", hidden, norm)?,
    })
}

fn norm(d: &DecoderConfig) -> NormRule {
    d.sizes.norm_or(NormKind::Layer, 1e-5)
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Gpt2Config) -> Result<Model> {
    let s = &d.sizes;
    let (stored, model) = ProjectionLayout::find(w);
    let layers = model.layers("h", s.num_hidden_layers, |w, layer| {
        Ok(Box::new(block(w, stored, d, c, layer)?) as Box<dyn DecoderLayer>)
    })?;
    Ok(Model {
        embed_tokens: model.embedding("wte", s.vocab_size, s.hidden_size)?,
        positions: Some(model.embedding("wpe", d.positions()?, s.hidden_size)?),
        embed_scale: None,
        layers,
        norm: model.norm("ln_f", s.hidden_size, norm(d))?,
        lm_head: w.lm_head(s.tie_word_embeddings, s.hidden_size, s.vocab_size)?,
        logits: None,
    })
}
