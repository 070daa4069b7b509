//! `lfm2`: LFM2: gated short convolutions with occasional attention layers.

use mlxcel_core::layers::Linear;
use mlxcel_core::recurrent::{Convolution, StateLayout};
use mlxcel_core::{Activation, Array, Pass};
use mlxcel_estimator::Mixer as LayerMixer;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, size};
use super::dense::{Attention, DecoderBlock, Mixer, Mlp, Model, Residual};
use super::layer_state::{LayerState, StateIndex};
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Lfm2Config {
    #[serde(default)]
    conv_bias: bool,
}

/// `out(c · convolution(b · x))`.
struct ShortConv {
    /// Projections to b, c and x.
    in_proj: [Linear; 3],
    convolution: Convolution,
    out_proj: Linear,
}

impl ShortConv {
    fn load(w: &Weights, c: &Lfm2Config, hidden: usize, kernel: usize) -> Result<Self> {
        let bias = Bias::when(c.conv_bias);
        Ok(Self {
            in_proj: w.fused_linear("in_proj", hidden, [hidden; 3], bias)?,
            convolution: w.convolution("conv", hidden, kernel, c.conv_bias, None)?,
            out_proj: w.linear("out_proj", hidden, hidden, bias)?,
        })
    }
}

impl Mixer for ShortConv {
    fn layer_state(&self) -> LayerState {
        StateLayout::new(&self.convolution, None).into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let [b, c, mut x] = ops.linears(x, self.in_proj.each_ref())?;
        x = ops.gated(&b, &x, Activation::Identity)?;
        x = pass.convolve(index.state, &x, &self.convolution)?;
        x = ops.gated(&c, &x, Activation::Identity)?;
        Ok(ops.linear(&x, &self.out_proj)?)
    }
}

fn attention(
    w: &Weights,
    d: &DecoderConfig,
    heads: HeadShape,
    rule: NormRule,
) -> Result<Attention> {
    let hidden = d.sizes.hidden_size;
    let out = w.linear("out_proj", heads.query_size(), hidden, Bias::None)?;
    let rope = d.rope.build(heads.head_dim)?;
    let q_norm = w.rms_norm("q_layernorm", heads.head_dim, rule)?;
    let k_norm = w.rms_norm("k_layernorm", heads.head_dim, rule)?;
    let plain = Attention::with_output(w, heads, Bias::None, out, Some(rope))?;
    Ok(Attention { qk_norm: Some((q_norm, k_norm)), ..plain })
}

fn feed_forward(w: &Weights, hidden: usize, inner: usize) -> Result<Mlp> {
    Ok(Mlp {
        gate_proj: w.linear("w1", hidden, inner, Bias::None)?,
        up_proj: w.linear("w3", hidden, inner, Bias::None)?,
        down_proj: w.linear("w2", inner, hidden, Bias::None)?,
        activation: Activation::Silu,
    })
}

fn mixer(
    w: &Weights,
    d: &DecoderConfig,
    c: &Lfm2Config,
    norm: NormRule,
    layer: usize,
) -> Result<Box<dyn Mixer>> {
    let hidden = d.sizes.hidden_size;
    match d.mixer(layer)? {
        LayerMixer::ShortConv(shape) => {
            Ok(Box::new(ShortConv::load(&w.at("conv"), c, hidden, size(shape.conv_kernel))?))
        }
        _ => Ok(Box::new(attention(&w.at("self_attn"), d, d.heads(layer)?, norm)?)),
    }
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Lfm2Config) -> Result<Model> {
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm(NormKind::Rms)?;
    Model::load_with([&w.at("model"), w], &d.sizes, "embedding_norm", norm, |w, layer| {
        let mlp = feed_forward(&w.at("feed_forward"), hidden, d.inner(layer)?)?;
        Ok(DecoderBlock {
            mixer: mixer(w, d, c, norm, layer)?,
            mlp: Box::new(mlp),
            mixer_residual: Residual::before(w, "operator_norm", hidden, norm)?,
            mlp_residual: Residual::before(w, "ffn_norm", hidden, norm)?,
        })
    })
}
