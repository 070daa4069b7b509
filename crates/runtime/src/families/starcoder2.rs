//! `starcoder2`: StarCoder 2: layer norms, biases everywhere, a plain MLP, and in some sizes a
//! sliding window over every layer.

use serde::Deserialize;

use super::config::{DecoderConfig, activation};
use super::dense::{Attention, DecoderBlock, Model, PlainMlp, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    use_bias: Option<bool>,
    hidden_act: Option<String>,
}

fn mlp(w: &Weights, c: &Config, bias: Bias) -> Result<PlainMlp> {
    let s = &c.decoder.sizes;
    Ok(PlainMlp {
        input: w.linear("c_fc", s.hidden_size, s.intermediate_size, bias)?,
        output: w.linear("c_proj", s.intermediate_size, s.hidden_size, bias)?,
        activation: activation(c.hidden_act.as_deref().unwrap_or("gelu_pytorch_tanh"))?,
    })
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let s = &c.decoder.sizes;
    let heads = c.decoder.heads()?;
    let bias = Bias::when(c.use_bias.unwrap_or(true));
    let rope = c.decoder.rope.build(heads.head_dim)?;
    let norm = s.norm_or(NormKind::Layer, 1e-5);
    Model::load(w, s, norm, |w, _| {
        let all = ProjectionBias::all(bias);
        let attention =
            Attention::load(&w.at("self_attn"), s.hidden_size, heads, all, Some(rope.clone()))?
                .windowed(c.decoder.windows.everywhere())?;
        DecoderBlock::pre_norm(w, s.hidden_size, norm, attention, mlp(&w.at("mlp"), c, bias)?)
    })
}
