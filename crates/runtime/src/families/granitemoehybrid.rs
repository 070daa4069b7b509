//! `granitemoehybrid`: Granite 4: Mamba 2 with occasional attention layers, each followed by an MLP, in
//! some sizes with experts. Granite's factors on embeddings, scores, residuals and logits.

use mlxcel_core::experts::RouteRule;
use mlxcel_core::{Activation, Map};
use mlxcel_estimator::Mixer as LayerMixer;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, DecoderBlock, FeedForward, Mixer, Mlp, Model, ProjectionBias};
use super::granite::GraniteMultipliers;
use super::mamba2::{Mamba2Mixer, MixerShape, TimeStepLimit};
use super::moe::{Moe, NAMES};
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, NormRule, Weights};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct GraniteMoeHybridConfig {
    #[serde(flatten)]
    factors: GraniteMultipliers,
    #[serde(default)]
    attention_bias: bool,
    position_embedding_type: Option<String>,
    mamba_conv_bias: Option<bool>,
    #[serde(default)]
    mamba_proj_bias: bool,
    time_step_limit: Option<TimeStepLimit>,
}

impl GraniteMoeHybridConfig {
    fn mixer(&self, d: &DecoderConfig, layer: usize, norm: NormRule) -> Result<MixerShape> {
        let bias = Bias::when(self.mamba_proj_bias);
        let limits = self.time_step_limit.as_ref().map(TimeStepLimit::limits).transpose()?;
        Ok(MixerShape {
            limits: limits.unwrap_or((0.001, 100.0)),
            conv_bias: self.mamba_conv_bias.unwrap_or(true),
            in_bias: bias,
            out_bias: bias,
            norm: Some(norm),
            ..MixerShape::new(d, layer)?
        })
    }
}

/// The MLP of a layer without experts: published files call it `shared_mlp`, converted ones `mlp`.
fn plain_mlp(w: &Weights, hidden: usize, inner: usize) -> Result<Mlp> {
    match w.at("mlp").has("gate_proj.weight") {
        true => Mlp::load(&w.at("mlp"), hidden, inner, Bias::None),
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

fn feed_forward(w: &Weights, d: &DecoderConfig, layer: usize) -> Result<Box<dyn FeedForward>> {
    let hidden = d.sizes.hidden_size;
    let Some(mixture) = d.experts(layer)? else {
        return Ok(Box::new(plain_mlp(w, hidden, d.inner(layer)?)?));
    };
    let rule = RouteRule::softmax(mixture.experts, mixture.active, true);
    let moe = w.at("block_sparse_moe");
    let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
    let fused = ["input_linear.weight", "output_linear.weight"];
    Ok(Box::new(Moe {
        gate: moe.linear("router.layer", hidden, mixture.experts, Bias::None)?,
        experts: moe.fused_experts(shape, rule, fused)?,
        shared_experts: Some(stacked_mlp(&w.at("shared_mlp"), hidden, mixture.shared_inner)?),
    }))
}

fn attention(
    w: &Weights,
    d: &DecoderConfig,
    c: &GraniteMoeHybridConfig,
    heads: HeadShape,
) -> Result<Attention> {
    let rotates = c.position_embedding_type.as_deref() != Some("nope");
    let rope = rotates.then(|| d.rope.build(heads.head_dim)).transpose()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, rope)?;
    let spec = plain.spec.with_scale(c.factors.attention_multiplier);
    Ok(Attention { spec, ..plain })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &GraniteMoeHybridConfig) -> Result<Model> {
    c.factors.check()?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let model = Model::load(w, &d.sizes, norm, |w, layer| {
        let mixer: Box<dyn Mixer> = match d.mixer(layer)? {
            LayerMixer::Attention(_) => {
                Box::new(attention(&w.at("self_attn"), d, c, d.heads(layer)?)?)
            }
            _ => Box::new(Mamba2Mixer::load(&w.at("mamba"), &c.mixer(d, layer, norm)?)?),
        };
        let mlp = feed_forward(w, d, layer)?;
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
