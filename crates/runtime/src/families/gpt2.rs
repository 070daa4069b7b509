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
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
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
    let spec = heads.attention();
    Ok(Attention { q_proj, k_proj, v_proj, o_proj, qk_norm: None, rope: None, spec })
}

fn mlp(w: &Weights, stored: ProjectionLayout, c: &Config) -> Result<PlainMlp> {
    let hidden = c.decoder.sizes.hidden_size;
    let inner = c.decoder.sizes.intermediate_size;
    let [input] = stored.linears(w, "c_fc", hidden, [inner])?;
    let [output] = stored.linears(w, "c_proj", inner, [hidden])?;
    let activation = activation(c.activation_function.as_deref().unwrap_or("gelu_new"))?;
    Ok(PlainMlp { input, output, activation })
}

fn block(
    w: &Weights,
    stored: ProjectionLayout,
    c: &Config,
    norm: NormRule,
) -> Result<DecoderBlock> {
    let hidden = c.decoder.sizes.hidden_size;
    Ok(DecoderBlock {
        mixer: Box::new(attention(&w.at("attn"), stored, hidden, c.decoder.heads()?)?),
        mlp: Box::new(mlp(&w.at("mlp"), stored, c)?),
        mixer_residual: Residual::before(w, "ln_1", hidden, norm)?,
        mlp_residual: Residual::before(w, "ln_2", hidden, norm)?,
    })
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let s = &c.decoder.sizes;
    let norm = s.norm_or(NormKind::Layer, 1e-5);
    let (stored, model) = ProjectionLayout::find(w);
    let layers = model.layers("h", s.num_hidden_layers, |w, _| {
        Ok(Box::new(block(w, stored, c, norm)?) as Box<dyn DecoderLayer>)
    })?;
    Ok(Model {
        embed_tokens: model.embedding("wte", s.vocab_size, s.hidden_size)?,
        positions: Some(model.embedding("wpe", c.decoder.positions()?, s.hidden_size)?),
        embed_scale: None,
        layers,
        norm: model.norm("ln_f", s.hidden_size, norm)?,
        lm_head: w.lm_head(s.tie_word_embeddings, s.hidden_size, s.vocab_size)?,
        logits: None,
    })
}
