//! `mamba` and `falcon_mamba`: Mamba 1: layers of a short convolution and a selective scan with a
//! decay per channel. Falcon's norms the inputs of the scan.

use mlxcel_core::layers::{Linear, RmsNorm};
use mlxcel_core::recurrent::{self, Convolution, Scan, StateLayout};
use mlxcel_core::{Activation, Array, Pass};
use mlxcel_estimator::{MambaShape, Mixer as LayerMixer};
use serde::Deserialize;

use super::config::{DecoderConfig, size};
use super::dense::{Mixer, Model};
use super::layer_state::{LayerState, StateIndex};
use super::single::backbone;
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct MambaConfig {
    model_type: String,
    mixer_rms_eps: Option<f32>,
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
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
    fn load(w: &Weights, c: &MambaConfig, hidden: usize, shape: &MambaShape) -> Result<Self> {
        let inner = size(shape.inner);
        let state = size(shape.state_dim);
        let bias = Bias::when(c.use_bias);
        let [x_proj, z_proj] = w.fused_linear("in_proj", hidden, [inner; 2], bias)?;
        let widths = [size(shape.step_rank), state, state];
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
            convolution: w.convolution(
                "conv1d",
                inner,
                size(shape.conv_kernel),
                conv_bias,
                silu,
            )?,
            inputs: w.fused_linear("x_proj", inner, widths, Bias::None)?,
            norms,
            dt_proj: w.linear("dt_proj", widths[0], inner, Bias::Required)?,
            scan: Scan::Mamba(scan),
            out_proj: w.linear("out_proj", inner, hidden, bias)?,
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

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &MambaConfig) -> Result<Model> {
    let norm = d.sizes.norm_or(NormKind::Rms, 1e-5);
    let hidden = d.sizes.hidden_size;
    let model = backbone(w, d, norm, |w, layer| match d.mixer(layer)? {
        LayerMixer::Mamba(shape) => MambaMixer::load(w, c, hidden, &shape),
        _ => Err(d.lacks(layer, "Mamba 1 mixer")),
    })?;
    // The class ties the head if the configuration is silent.
    let lm_head = model.lm_head.filter(|_| d.sizes.tie_word_embeddings.is_some());
    Ok(Model { lm_head, ..model })
}
