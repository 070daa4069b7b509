//! `nemotron_h`: Nemotron-H and Nemotron Nano 2: layers of one part each, in the order of a pattern:
//! Mamba 2, attention without positions, or an MLP. Patterns with experts are refused.

use mlxcel_core::{Activation, Array, Pass};
use mlxcel_estimator::Mixer as LayerMixer;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, FeedForward, Mixer, Model, PlainMlp, ProjectionBias};
use super::layer_state::{LayerState, StateIndex};
use super::mamba2::{Mamba2Mixer, MixerShape, TimeStepLimit};
use super::single::backbone;
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{ConfigProblem, Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct NemotronHConfig {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    mlp_hidden_act: Option<String>,
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
    time_step_limit: Option<TimeStepLimit>,
}

impl NemotronHConfig {
    fn mixer(&self, d: &DecoderConfig, layer: usize) -> Result<MixerShape> {
        let bias = Bias::when(self.use_bias);
        let limits = self.time_step_limit.as_ref().map(TimeStepLimit::limits).transpose()?;
        let shape = MixerShape::new(d, layer)?;
        Ok(MixerShape {
            limits: limits.unwrap_or(shape.limits),
            conv_bias: self.use_conv_bias.unwrap_or(true),
            in_bias: bias,
            out_bias: bias,
            norm: Some(norm(d)),
            norm_groups: shape.groups,
            ..shape
        })
    }

    fn mlp(&self, w: &Weights, hidden: usize, inner: usize) -> Result<PlainMlp> {
        let bias = Bias::when(self.mlp_bias);
        Ok(PlainMlp {
            input: w.linear("up_proj", hidden, inner, bias)?,
            output: w.linear("down_proj", inner, hidden, bias)?,
            activation: Activation::ReluSquared,
        })
    }
}

fn norm(d: &DecoderConfig) -> NormRule {
    d.sizes.norm_or(NormKind::Rms, 1e-5)
}

/// A feed-forward part as a layer of its own: it keeps nothing of a sequence.
struct MlpLayer<F>(F);

impl<F: FeedForward> Mixer for MlpLayer<F> {
    fn layer_state(&self) -> LayerState {
        LayerState::default()
    }

    fn forward(&self, pass: &mut Pass<'_>, _: StateIndex, x: &Array) -> Result<Array> {
        self.0.forward(pass, x)
    }
}

fn layer(
    w: &Weights,
    d: &DecoderConfig,
    c: &NemotronHConfig,
    layer: usize,
) -> Result<Box<dyn Mixer>> {
    let hidden = d.sizes.hidden_size;
    let spec = d.layer(layer)?;
    match spec.mixers.first() {
        Some(LayerMixer::Mamba2(_)) => Ok(Box::new(Mamba2Mixer::load(w, &c.mixer(d, layer)?)?)),
        Some(LayerMixer::Attention(_)) => {
            let bias = ProjectionBias::all(Bias::when(c.attention_bias));
            Ok(Box::new(Attention::load(w, hidden, d.heads(layer)?, bias, None)?))
        }
        None if spec.dense().is_some() => {
            Ok(Box::new(MlpLayer(c.mlp(w, hidden, d.inner(layer)?)?)))
        }
        _ => {
            let supported = "Mamba \"M\", attention \"*\", MLP \"-\"";
            let problem = ConfigProblem::LayerKind { layer, found: "experts", supported };
            Err(Error::invalid_config("hybrid_override_pattern", problem))
        }
    }
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &NemotronHConfig) -> Result<Model> {
    if let Some(other) = c.mlp_hidden_act.as_deref().filter(|name| *name != "relu2") {
        return Err(Error::unsupported_value("mlp_hidden_act", format!("\"{other}\""), "relu2"));
    }
    backbone(w, d, norm(d), |w, index| layer(w, d, c, index))
}
