//! `falcon_h1`: Falcon-H1: attention and Mamba 2 side by side in every layer, and a factor on nearly
//! every projection. Converted files have the factors in their weights.

use mlxcel_core::layers::{Linear, Norm};
use mlxcel_core::{Activation, Array, Map, Ops, Pass};
use serde::Deserialize;

use super::config::{DecoderConfig, RopeDefaults};
use super::dense::{Attention, DecoderLayer, Mixer, Mlp, Model, ProjectionBias};
use super::layer_state::{LayerState, StateIndex};
use super::mamba2::{Factors, Mamba2Mixer, MixerShape, is_one};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct FalconH1Config {
    #[serde(flatten)]
    multipliers: FalconMultipliers,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    projectors_bias: bool,
    mamba_d_head: Option<usize>,
    mamba_conv_bias: Option<bool>,
    #[serde(default)]
    mamba_proj_bias: bool,
    #[serde(default)]
    mamba_rms_norm: bool,
    #[serde(default)]
    mamba_norm_before_gate: bool,
}

/// Factors, 1 where they are not stated.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
struct FalconMultipliers {
    embedding_multiplier: f32,
    lm_head_multiplier: f32,
    attention_in_multiplier: f32,
    attention_out_multiplier: f32,
    key_multiplier: f32,
    ssm_in_multiplier: f32,
    ssm_out_multiplier: f32,
    /// On gate, x, B, C and step sizes.
    ssm_multipliers: [f32; 5],
    /// On the gate and the output.
    mlp_multipliers: [f32; 2],
}

impl Default for FalconMultipliers {
    fn default() -> Self {
        Self {
            embedding_multiplier: 1.0,
            lm_head_multiplier: 1.0,
            attention_in_multiplier: 1.0,
            attention_out_multiplier: 1.0,
            key_multiplier: 1.0,
            ssm_in_multiplier: 1.0,
            ssm_out_multiplier: 1.0,
            ssm_multipliers: [1.0; 5],
            mlp_multipliers: [1.0; 2],
        }
    }
}

impl FalconH1Config {
    /// The Mamba 2 mixer of layer `layer`.
    fn mixer(
        &self,
        d: &DecoderConfig,
        layer: usize,
        norm: NormRule,
        factors: Factors,
    ) -> Result<MixerShape> {
        let shape = MixerShape::new(d, layer)?;
        let head_dim = self.mamba_d_head.unwrap_or(shape.head_dim);
        if head_dim != shape.head_dim {
            let heads = shape.heads;
            let expected = format!("mamba_n_heads ({heads}) times mamba_d_head ({head_dim})");
            return Err(Error::invalid_value("mamba_d_ssm", shape.inner(), expected));
        }
        if self.mamba_rms_norm && (self.mamba_norm_before_gate || shape.groups > 1) {
            let supported = "false, or true after the gate and with one group";
            return Err(Error::unsupported_value("mamba_rms_norm", true, supported));
        }
        Ok(MixerShape {
            conv_bias: self.mamba_conv_bias.unwrap_or(true),
            in_bias: Bias::when(self.mamba_proj_bias),
            out_bias: Bias::when(self.projectors_bias),
            norm: self.mamba_rms_norm.then_some(norm),
            factors,
            ..shape
        })
    }
}

/// A SwiGLU with a factor on its gate.
struct ScaledMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    gate_factor: f32,
}

impl ScaledMlp {
    fn new(mlp: Mlp, gate_factor: f32) -> Self {
        let Mlp { gate_proj, up_proj, down_proj, .. } = mlp;
        Self { gate_proj, up_proj, down_proj, gate_factor }
    }

    fn forward(&self, ops: &Ops, x: &Array) -> Result<Array> {
        let [gate, up] = ops.linears(x, [&self.gate_proj, &self.up_proj])?;
        let gate = scaled(ops, &gate, self.gate_factor)?;
        Ok(ops.linear(&ops.gated(&gate, &up, Activation::Silu)?, &self.down_proj)?)
    }
}

fn scaled(ops: &Ops, x: &Array, factor: f32) -> Result<Array> {
    if is_one(factor) { Ok(x.clone()) } else { Ok(ops.map(x, Map::Scale(factor))?) }
}

/// `h = x + mamba(norm(x)) + attention(norm(x))`, then `h + mlp(norm(h))`.
struct FalconH1Block {
    input_layernorm: Norm,
    mamba: Mamba2Mixer,
    self_attn: Attention,
    pre_ff_layernorm: Norm,
    feed_forward: ScaledMlp,
    multipliers: FalconMultipliers,
}

impl FalconH1Block {
    fn load(
        w: &Weights,
        d: &DecoderConfig,
        c: &FalconH1Config,
        layer: usize,
        m: &FalconMultipliers,
    ) -> Result<Self> {
        let hidden = d.sizes.hidden_size;
        let heads = d.heads(layer)?;
        let norm = d.sizes.norm_or(NormKind::Rms, 1e-5);
        let [gate, x, b, c_factor, dt] = m.ssm_multipliers;
        let shape = c.mixer(d, layer, norm, Factors { gate, x, b, c: c_factor, dt })?;
        let theta = RopeDefaults { theta: 100_000_000_000.0, ..RopeDefaults::default() };
        let rope = d.rope.build_or(heads.head_dim, theta)?;
        let bias = ProjectionBias::all(Bias::when(c.attention_bias));
        let plain = Attention::load(&w.at("self_attn"), hidden, heads, bias, Some(rope))?;
        // A factor on the keys is one on the scores.
        let spec = plain.spec.clone().with_scale(plain.spec.scale() * m.key_multiplier);
        let bias = Bias::when(c.mlp_bias);
        let mlp = Mlp::load(&w.at("feed_forward"), hidden, d.inner(layer)?, bias)?;
        Ok(Self {
            input_layernorm: w.norm("input_layernorm", hidden, norm)?,
            mamba: Mamba2Mixer::load(&w.at("mamba"), &shape)?,
            self_attn: Attention { spec, ..plain },
            pre_ff_layernorm: w.norm("pre_ff_layernorm", hidden, norm)?,
            feed_forward: ScaledMlp::new(mlp, m.mlp_multipliers[0]),
            multipliers: *m,
        })
    }
}

impl DecoderLayer for FalconH1Block {
    fn layer_state(&self) -> LayerState {
        LayerState {
            cache: self.self_attn.layer_state().cache,
            state: self.mamba.layer_state().state,
        }
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let m = &self.multipliers;
        let normed = ops.norm(x, &self.input_layernorm)?;
        let mixed = scaled(ops, &normed, m.ssm_in_multiplier)?;
        let mixed = scaled(ops, &self.mamba.forward(pass, index, &mixed)?, m.ssm_out_multiplier)?;
        let attended = scaled(ops, &normed, m.attention_in_multiplier)?;
        let attended = self.self_attn.forward(pass, index, &attended)?;
        let attended = scaled(ops, &attended, m.attention_out_multiplier)?;
        let h = ops.add(&ops.add(x, &mixed)?, &attended)?;
        let y = self.feed_forward.forward(ops, &ops.norm(&h, &self.pre_ff_layernorm)?)?;
        Ok(ops.add(&h, &scaled(ops, &y, m.mlp_multipliers[1])?)?)
    }
}

/// Factors that remain to be applied, and those on embeddings and logits. Converted files have them
/// in their weights; a tied head then has the embeddings' factor, which is undone.
fn remaining(
    stated: &FalconMultipliers,
    converted: bool,
    tied: bool,
) -> (FalconMultipliers, [f32; 2]) {
    let logits = stated.lm_head_multiplier;
    match (converted, tied) {
        (false, _) => (*stated, [stated.embedding_multiplier, logits]),
        (true, true) => (FalconMultipliers::default(), [1.0, logits / stated.embedding_multiplier]),
        (true, false) => (FalconMultipliers::default(), [1.0, 1.0]),
    }
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &FalconH1Config) -> Result<Model> {
    let norm = d.sizes.norm_or(NormKind::Rms, 1e-5);
    let shape = c.mixer(d, 0, norm, Factors::NONE)?;
    let mamba = w.at("model.layers.0.mamba");
    let converted = mamba.is_converted("conv1d", shape.channels(), shape.kernel);
    let tied = !w.has("lm_head.weight");
    let (multipliers, [embed, logits]) = remaining(&c.multipliers, converted, tied);
    let places = [&w.at("model"), w];
    let model = Model::load_with(places, &d.sizes, "final_layernorm", norm, |w, layer| {
        FalconH1Block::load(w, d, c, layer, &multipliers)
    })?;
    Ok(Model { embed_scale: Some(embed), logits: Some(Map::Scale(logits)), ..model })
}
