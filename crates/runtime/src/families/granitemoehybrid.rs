//! `granitemoehybrid`: Granite 4: Mamba 2 with occasional attention layers, each followed by an MLP, in
//! some sizes with experts. Granite's factors on embeddings, scores, residuals and logits.

use mlxcel_core::experts::RouteRule;
use mlxcel_core::{Activation, Map};
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, DecoderBlock, FeedForward, Mixer, Mlp, Model, ProjectionBias};
use super::granite::GraniteMultipliers;
use super::mamba2::{Factors, Mamba2Mixer, MixerShape, TimeStepLimit, check_shape};
use super::moe::{Moe, NAMES, swiglu};
use crate::loading::{Bias, ExpertShape, NormKind, NormRule, Weights};
use crate::{Error, Result};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    factors: GraniteMultipliers,
    layer_types: Vec<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    num_experts: usize,
    num_experts_per_tok: Option<usize>,
    shared_intermediate_size: Option<usize>,
    position_embedding_type: Option<String>,
    mamba_n_heads: usize,
    mamba_d_head: usize,
    mamba_n_groups: usize,
    mamba_d_state: usize,
    mamba_d_conv: usize,
    mamba_conv_bias: Option<bool>,
    #[serde(default)]
    mamba_proj_bias: bool,
    time_step_limit: Option<TimeStepLimit>,
}

impl Config {
    /// Returns true if layer `layer` is attention.
    fn attends(&self, layer: usize) -> Result<bool> {
        match self.layer_types.get(layer).map(String::as_str) {
            Some("attention") => Ok(true),
            Some("mamba") => Ok(false),
            other => Err(Error::config(format!(
                "layer_types says \"{}\" of layer {layer} (known: attention, mamba)",
                other.unwrap_or_default()
            ))),
        }
    }

    fn mixer(&self, hidden: usize, norm: NormRule) -> Result<MixerShape> {
        let bias = Bias::when(self.mamba_proj_bias);
        let limits = self.time_step_limit.as_ref().map(TimeStepLimit::limits).transpose()?;
        let shape = MixerShape {
            hidden,
            heads: self.mamba_n_heads,
            head_dim: self.mamba_d_head,
            groups: self.mamba_n_groups,
            state_size: self.mamba_d_state,
            kernel: self.mamba_d_conv,
            limits: limits.unwrap_or((0.001, 100.0)),
            conv_bias: self.mamba_conv_bias.unwrap_or(true),
            in_bias: bias,
            out_bias: bias,
            norm: Some(norm),
            norm_groups: 1,
            factors: Factors::NONE,
        };
        let names =
            ["mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"];
        check_shape(&shape, names)?;
        Ok(shape)
    }
}

/// The MLP of a layer without experts: published files call it `shared_mlp`, converted ones `mlp`.
fn plain_mlp(w: &Weights, hidden: usize, inner: usize) -> Result<Mlp> {
    match w.at("mlp").has("gate_proj.weight") {
        true => swiglu(&w.at("mlp"), hidden, inner),
        false => stacked_mlp(&w.at("shared_mlp"), hidden, inner),
    }
}

fn stacked_mlp(w: &Weights, hidden: usize, inner: usize) -> Result<Mlp> {
    let [gate_proj, up_proj] = w.fused_linear("input_linear", hidden, [inner; 2], Bias::None)?;
    Ok(Mlp {
        gate_proj,
        up_proj,
        down_proj: w.linear("output_linear", inner, hidden, Bias::None)?,
        activation: Activation::Silu,
    })
}

fn feed_forward(w: &Weights, d: &DecoderConfig, c: &Config) -> Result<Box<dyn FeedForward>> {
    let hidden = d.sizes.hidden_size;
    let inner = d.sizes.intermediate_size;
    let shared = c.shared_intermediate_size.unwrap_or(inner);
    if c.num_experts == 0 {
        return Ok(Box::new(plain_mlp(w, hidden, shared)?));
    }
    let active = c.num_experts_per_tok.unwrap_or(0);
    let rule = RouteRule::softmax(c.num_experts, active, true);
    let moe = w.at("block_sparse_moe");
    let shape = ExpertShape { hidden, inner, names: NAMES };
    let fused = ["input_linear.weight", "output_linear.weight"];
    Ok(Box::new(Moe {
        gate: moe.linear("router.layer", hidden, c.num_experts, Bias::None)?,
        experts: moe.fused_experts(shape, rule, fused)?,
        shared_experts: Some(stacked_mlp(&w.at("shared_mlp"), hidden, shared)?),
    }))
}

fn attention(w: &Weights, d: &DecoderConfig, c: &Config, heads: HeadShape) -> Result<Attention> {
    let rotates = c.position_embedding_type.as_deref() != Some("nope");
    let rope = rotates.then(|| d.rope.build(heads.head_dim)).transpose()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, rope)?;
    let spec = plain.spec.with_scale(c.factors.attention_multiplier);
    Ok(Attention { spec, ..plain })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Config) -> Result<Model> {
    c.factors.check()?;
    let heads = d.heads()?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let shape = c.mixer(d.sizes.hidden_size, norm)?;
    let model = Model::load(w, &d.sizes, norm, |w, layer| {
        let mixer: Box<dyn Mixer> = match c.attends(layer)? {
            true => Box::new(attention(&w.at("self_attn"), d, c, heads)?),
            false => Box::new(Mamba2Mixer::load(&w.at("mamba"), &shape)?),
        };
        let mlp = feed_forward(w, d, c)?;
        let mut block = DecoderBlock::pre_norm(w, d.sizes.hidden_size, norm, mixer, mlp)?;
        block.mixer_residual.scale = Some(c.factors.residual_multiplier);
        block.mlp_residual.scale = Some(c.factors.residual_multiplier);
        Ok(block)
    })?;
    Ok(Model {
        embed_scale: Some(c.factors.embedding_multiplier),
        logits: Some(Map::Scale(c.factors.logits_scaling.recip())),
        ..model
    })
}
