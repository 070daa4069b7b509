//! `mamba` and `falcon_mamba`: Mamba 1: layers of a short convolution and a selective scan with a
//! decay per channel. Falcon's norms the inputs of the scan.

use mlxcel_core::layers::{Linear, RmsNorm};
use mlxcel_core::recurrent::{self, Convolution, Scan, StateLayout};
use mlxcel_core::{Activation, Array, Pass};
use serde::Deserialize;
use serde_json::Value;

use super::config::positive;
use super::dense::{Mixer, Model};
use super::layer_state::{LayerState, StateIndex};
use super::single::{BackboneSizes, backbone};
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    intermediate_size: usize,
    #[serde(default = "state_size")]
    state_size: usize,
    #[serde(default = "conv_kernel")]
    conv_kernel: usize,
    time_step_rank: Option<Value>,
    layer_norm_epsilon: Option<f32>,
    mixer_rms_eps: Option<f32>,
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

fn state_size() -> usize {
    16
}

fn conv_kernel() -> usize {
    4
}

impl Config {
    /// Elements of compressed step sizes; `"auto"`, the default, is a sixteenth of the width.
    fn rank(&self) -> Result<usize> {
        let auto = self.hidden_size.div_ceil(16);
        match &self.time_step_rank {
            None => Ok(auto),
            Some(Value::String(word)) if word == "auto" => Ok(auto),
            Some(stated) => {
                let rank = stated.as_u64().and_then(|rank| usize::try_from(rank).ok());
                rank.ok_or_else(|| Error::config(format!("time_step_rank is {stated}")))
            }
        }
    }

    fn check(&self) -> Result<()> {
        positive(&[
            ("state_size", self.state_size),
            ("conv_kernel", self.conv_kernel),
            ("time_step_rank", self.rank()?),
        ])
    }

    fn sizes(&self) -> BackboneSizes {
        let eps = self.layer_norm_epsilon.unwrap_or(1e-5);
        BackboneSizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            layers: self.num_hidden_layers,
            // The class ties by default.
            tied: Some(self.tie_word_embeddings.unwrap_or(true)),
            norm: NormRule { kind: NormKind::Rms, eps },
        }
    }
}

/// Projection, convolution, scan, gate, projection.
struct MambaMixer {
    x_proj: Linear,
    z_proj: Linear,
    convolution: Convolution,
    /// From the convolved input to compressed step sizes, B and C.
    inputs: [Linear; 3],
    /// Over each of these.
    norms: Option<[RmsNorm; 3]>,
    dt_proj: Linear,
    scan: Scan,
    out_proj: Linear,
}

impl MambaMixer {
    fn load(w: &Weights, c: &Config) -> Result<Self> {
        let inner = c.intermediate_size;
        let state = c.state_size;
        let bias = Bias::when(c.use_bias);
        let [x_proj, z_proj] = w.fused_linear("in_proj", c.hidden_size, [inner; 2], bias)?;
        let widths = [c.rank()?, state, state];
        let norms = match c.model_type.as_str() {
            "falcon_mamba" => {
                let eps = c.mixer_rms_eps.unwrap_or(1e-6);
                let [dt, b, c] = widths.map(|width| w.unit_norm(width, eps));
                Some([dt?, b?, c?])
            }
            _ => None,
        };
        let conv_bias = c.use_conv_bias.unwrap_or(true);
        let silu = Some(Activation::Silu);
        let scan = recurrent::Mamba {
            rates: w.decay_rates("A_log", inner, state)?,
            d: w.exact_vector("D", inner)?,
        };
        Ok(Self {
            x_proj,
            z_proj,
            convolution: w.convolution("conv1d", inner, c.conv_kernel, conv_bias, silu)?,
            inputs: w.fused_linear("x_proj", inner, widths, Bias::None)?,
            norms,
            dt_proj: w.linear("dt_proj", widths[0], inner, Bias::Required)?,
            scan: Scan::Mamba(scan),
            out_proj: w.linear("out_proj", inner, c.hidden_size, bias)?,
        })
    }
}

impl Mixer for MambaMixer {
    fn layer_state(&self) -> LayerState {
        StateLayout::new(&self.convolution, Some(&self.scan)).into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let [mut x, z] = ops.linears(x, [&self.x_proj, &self.z_proj])?;
        x = pass.convolve(index.state, &x, &self.convolution)?;
        let [mut dt, mut b, mut c] = ops.linears(&x, self.inputs.each_ref())?;
        if let Some([dt_norm, b_norm, c_norm]) = &self.norms {
            dt = ops.rms_norm(&dt, dt_norm)?;
            b = ops.rms_norm(&b, b_norm)?;
            c = ops.rms_norm(&c, c_norm)?;
        }
        dt = ops.linear(&dt, &self.dt_proj)?;
        let mut y = pass.scan(index.state, &[&x, &dt, &b, &c], &self.scan)?;
        y = ops.gated(&z, &y, Activation::Silu)?;
        Ok(ops.linear(&y, &self.out_proj)?)
    }
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    c.check()?;
    backbone(w, &c.sizes(), |w, _| MambaMixer::load(w, c))
}
