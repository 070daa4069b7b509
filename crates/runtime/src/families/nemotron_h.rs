//! `nemotron_h`: Nemotron-H and Nemotron Nano 2: layers of one part each, in the order of a pattern:
//! Mamba 2, attention without positions, or an MLP. Models whose pattern has experts are refused.

use mlxcel_core::{Activation, Array, Pass};
use serde::Deserialize;

use super::config::{Heads, positive};
use super::dense::{Attention, FeedForward, Mixer, Model, PlainMlp, ProjectionBias};
use super::layer_state::{LayerState, StateIndex};
use super::mamba2::{Factors, Mamba2Mixer, MixerShape, TimeStepLimit, check_shape};
use super::single::{BackboneSizes, backbone};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    hidden_size: usize,
    vocab_size: usize,
    intermediate_size: usize,
    #[serde(flatten)]
    heads: Heads,
    hybrid_override_pattern: Option<String>,
    layers_block_type: Option<Vec<String>>,
    num_hidden_layers: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    mlp_hidden_act: Option<String>,
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
    mamba_num_heads: usize,
    mamba_head_dim: usize,
    n_groups: usize,
    ssm_state_size: usize,
    conv_kernel: usize,
    time_step_limit: Option<TimeStepLimit>,
}

/// Kind of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NemotronLayer {
    Mamba,
    Attention,
    Mlp,
}

impl NemotronLayer {
    fn of_letter(letter: char) -> Option<Self> {
        match letter {
            'M' => Some(Self::Mamba),
            '*' => Some(Self::Attention),
            '-' => Some(Self::Mlp),
            _ => None,
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        match name {
            "mamba" | "linear_attention" => Some(Self::Mamba),
            "attention" | "full_attention" => Some(Self::Attention),
            "mlp" => Some(Self::Mlp),
            _ => None,
        }
    }
}

/// The error of a kind that is not supported.
fn unknown(layer: usize, kind: &dyn std::fmt::Display) -> Error {
    Error::config(format!(
        "layer {layer} is \"{kind}\" (supported: Mamba \"M\", attention \"*\", MLP \"-\")"
    ))
}

impl Config {
    /// Kind of each layer.
    fn parts(&self) -> Result<Vec<NemotronLayer>> {
        let mut parts = Vec::new();
        match (&self.hybrid_override_pattern, &self.layers_block_type) {
            (Some(pattern), _) => {
                for (layer, letter) in pattern.chars().enumerate() {
                    parts.push(
                        NemotronLayer::of_letter(letter).ok_or_else(|| unknown(layer, &letter))?,
                    );
                }
            }
            (None, Some(names)) => {
                for (layer, name) in names.iter().enumerate() {
                    parts.push(NemotronLayer::of_name(name).ok_or_else(|| unknown(layer, name))?);
                }
            }
            (None, None) => {
                let what = "it has neither hybrid_override_pattern nor layers_block_type";
                return Err(Error::config(what));
            }
        }
        match self.num_hidden_layers.filter(|layers| *layers != parts.len()) {
            Some(layers) => Err(Error::config(format!(
                "the pattern has {} layers, but num_hidden_layers is {layers}",
                parts.len()
            ))),
            None => Ok(parts),
        }
    }

    fn norm(&self) -> NormRule {
        NormRule { kind: NormKind::Rms, eps: self.layer_norm_epsilon.unwrap_or(1e-5) }
    }

    fn mixer(&self) -> Result<MixerShape> {
        let bias = Bias::when(self.use_bias);
        let limits = self.time_step_limit.as_ref().map(TimeStepLimit::limits).transpose()?;
        let shape = MixerShape {
            hidden: self.hidden_size,
            heads: self.mamba_num_heads,
            head_dim: self.mamba_head_dim,
            groups: self.n_groups,
            state_size: self.ssm_state_size,
            kernel: self.conv_kernel,
            limits: limits.unwrap_or((0.0, f32::INFINITY)),
            conv_bias: self.use_conv_bias.unwrap_or(true),
            in_bias: bias,
            out_bias: bias,
            norm: Some(self.norm()),
            norm_groups: self.n_groups,
            factors: Factors::NONE,
        };
        let names =
            ["mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"];
        check_shape(&shape, names)?;
        Ok(shape)
    }

    fn mlp(&self, w: &Weights) -> Result<PlainMlp> {
        let hidden = self.hidden_size;
        let inner = self.intermediate_size;
        let bias = Bias::when(self.mlp_bias);
        Ok(PlainMlp {
            input: w.linear("up_proj", hidden, inner, bias)?,
            output: w.linear("down_proj", inner, hidden, bias)?,
            activation: Activation::ReluSquared,
        })
    }
}

/// A feed-forward part as a layer, which has no state.
struct MlpLayer<F>(F);

impl<F: FeedForward> Mixer for MlpLayer<F> {
    fn layer_state(&self) -> LayerState {
        LayerState::default()
    }

    fn forward(&self, pass: &mut Pass<'_>, _: StateIndex, x: &Array) -> Result<Array> {
        self.0.forward(pass, x)
    }
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    positive(&[("hidden_size", c.hidden_size), ("intermediate_size", c.intermediate_size)])?;
    if let Some(other) = c.mlp_hidden_act.as_deref().filter(|name| *name != "relu2") {
        return Err(Error::config(format!("mlp_hidden_act is \"{other}\" (supported: relu2)")));
    }
    let parts = c.parts()?;
    let shape = c.mixer()?;
    let heads = c.heads.shape(c.hidden_size)?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let sizes = BackboneSizes {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        layers: parts.len(),
        tied: c.tie_word_embeddings,
        norm: c.norm(),
    };
    backbone(w, &sizes, |w, layer| -> Result<Box<dyn Mixer>> {
        Ok(match parts[layer] {
            NemotronLayer::Mamba => Box::new(Mamba2Mixer::load(w, &shape)?),
            NemotronLayer::Attention => {
                Box::new(Attention::load(w, c.hidden_size, heads, bias, None)?)
            }
            NemotronLayer::Mlp => Box::new(MlpLayer(c.mlp(w)?)),
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parts(fields: &Value) -> std::result::Result<Vec<NemotronLayer>, String> {
        let mut config = json!({"hidden_size": 64, "vocab_size": 300, "intermediate_size": 64,
            "num_attention_heads": 4, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2,
            "ssm_state_size": 16, "conv_kernel": 4});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let config: Config = serde_json::from_value(config).unwrap();
        config.parts().map_err(|error| error.to_string())
    }

    #[test]
    fn layers_are_read_from_a_pattern_or_a_list() {
        let expected = [NemotronLayer::Mamba, NemotronLayer::Mlp, NemotronLayer::Attention];
        assert_eq!(parts(&json!({"hybrid_override_pattern": "M-*"})).unwrap(), expected);
        let names = json!({"layers_block_type": ["mamba", "mlp", "full_attention"]});
        assert_eq!(parts(&names).unwrap(), expected);
    }

    #[test]
    fn unknown_layers_are_refused() {
        let refused = |fields: Value| parts(&fields).unwrap_err();
        let experts = refused(json!({"hybrid_override_pattern": "ME*"}));
        assert!(experts.contains("layer 1 is \"E\""), "{experts}");
        let short = refused(json!({"hybrid_override_pattern": "M-", "num_hidden_layers": 3}));
        assert!(short.contains("has 2 layers, but num_hidden_layers is 3"), "{short}");
        assert!(refused(json!({})).contains("neither hybrid_override_pattern"));
        assert!(refused(json!({"layers_block_type": ["moe"]})).contains("layer 0 is \"moe\""));
    }
}
