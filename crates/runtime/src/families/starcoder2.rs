//! `starcoder2`: StarCoder 2: layer norms, biases everywhere, a plain MLP, and in some sizes a
//! sliding window over every layer.

use serde::Deserialize;

use super::config::{DecoderConfig, activation};
use super::dense::{Attention, DecoderBlock, Model, PlainMlp, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Starcoder2Config {
    use_bias: Option<bool>,
    hidden_act: Option<String>,
}

fn mlp(w: &Weights, c: &Starcoder2Config, hidden: usize, inner: usize) -> Result<PlainMlp> {
    let bias = Bias::when(c.use_bias.unwrap_or(true));
    Ok(PlainMlp {
        input: w.linear("c_fc", hidden, inner, bias)?,
        output: w.linear("c_proj", inner, hidden, bias)?,
        activation: activation(c.hidden_act.as_deref().unwrap_or("gelu_pytorch_tanh"))?,
    })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Starcoder2Config) -> Result<Model> {
    let hidden = d.sizes.hidden_size;
    let bias = ProjectionBias::all(Bias::when(c.use_bias.unwrap_or(true)));
    let rope = d.rope.build(d.head_dim()?)?;
    let norm = d.sizes.norm_or(NormKind::Layer, 1e-5);
    Model::load(w, &d.sizes, norm, |w, layer| {
        let rope = Some(rope.clone());
        let attention = Attention::load(&w.at("self_attn"), hidden, d.heads(layer)?, bias, rope)?;
        let mlp = mlp(&w.at("mlp"), c, hidden, d.inner(layer)?)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)
    })
}
