//! `lfm2`: LFM2: gated short convolutions with occasional attention layers.

use mlxcel_core::layers::Linear;
use mlxcel_core::recurrent::{Convolution, StateLayout};
use mlxcel_core::{Activation, Array, Pass};
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, positive};
use super::dense::{Attention, DecoderBlock, Mixer, Mlp, Model, Residual};
use super::layer_state::{LayerState, StateIndex};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    layer_types: Option<Vec<String>>,
    full_attn_idxs: Option<Vec<usize>>,
    #[serde(rename = "conv_L_cache")]
    conv_l_cache: usize,
    #[serde(default)]
    conv_bias: bool,
    block_ff_dim: Option<usize>,
    block_multiple_of: Option<usize>,
    block_ffn_dim_multiplier: Option<f64>,
    block_auto_adjust_ff_dim: Option<bool>,
}

impl Config {
    /// Returns true if layer `layer` is attention.
    fn attends(&self, layer: usize) -> Result<bool> {
        let kind = self.layer_types.as_ref().and_then(|types| types.get(layer));
        match (kind.map(String::as_str), &self.full_attn_idxs) {
            (Some("full_attention"), _) => Ok(true),
            (Some("conv"), _) => Ok(false),
            (Some(other), _) => Err(Error::config(format!(
                "layer_types says \"{other}\" of layer {layer} (known: full_attention, conv)"
            ))),
            (None, Some(attending)) => Ok(attending.contains(&layer)),
            (None, None) => Ok(true),
        }
    }

    /// Elements between the matrices of a feed-forward part.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "truncated as the reference implementations do; sizes are below 2^28"
    )]
    fn inner(&self, intermediate_size: usize) -> Result<usize> {
        let stated = self.block_ff_dim.unwrap_or(intermediate_size);
        positive(&[("block_ff_dim", stated)])?;
        if !self.block_auto_adjust_ff_dim.unwrap_or(true) {
            return Ok(stated);
        }
        let scaled = match self.block_ffn_dim_multiplier {
            Some(factor) => (factor * (2 * stated / 3) as f64) as usize,
            None => 2 * stated / 3,
        };
        let multiple = self.block_multiple_of.unwrap_or(256);
        positive(&[("block_multiple_of", multiple), ("block_ffn_dim_multiplier", scaled)])?;
        Ok(scaled.next_multiple_of(multiple))
    }
}

/// `out(c · convolution(b · x))`.
struct ShortConv {
    /// Projections to b, c and x.
    in_proj: [Linear; 3],
    convolution: Convolution,
    out_proj: Linear,
}

impl ShortConv {
    fn load(w: &Weights, c: &Config, hidden: usize) -> Result<Self> {
        let bias = Bias::when(c.conv_bias);
        Ok(Self {
            in_proj: w.fused_linear("in_proj", hidden, [hidden; 3], bias)?,
            convolution: w.convolution("conv", hidden, c.conv_l_cache, c.conv_bias, None)?,
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

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Config) -> Result<Model> {
    positive(&[("conv_L_cache", c.conv_l_cache)])?;
    let heads = d.heads()?;
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let inner = c.inner(d.sizes.intermediate_size)?;
    Model::load_with([&w.at("model"), w], &d.sizes, "embedding_norm", norm, |w, layer| {
        let mixer: Box<dyn Mixer> = match c.attends(layer)? {
            true => Box::new(attention(&w.at("self_attn"), d, heads, norm)?),
            false => Box::new(ShortConv::load(&w.at("conv"), c, hidden)?),
        };
        let mlp = feed_forward(&w.at("feed_forward"), hidden, inner)?;
        Ok(DecoderBlock {
            mixer,
            mlp: Box::new(mlp),
            mixer_residual: Residual::before(w, "operator_norm", hidden, norm)?,
            mlp_residual: Residual::before(w, "ffn_norm", hidden, norm)?,
        })
    })
}
