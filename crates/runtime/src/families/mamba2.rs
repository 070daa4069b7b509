//! `mamba2`: Mamba 2: layers of a short convolution and a selective scan with a decay per head, no
//! attention. Hybrids use [`Mamba2Mixer`], too.

use mlxcel_core::layers::{Linear, RmsNorm};
use mlxcel_core::recurrent::{self, Convolution, Scan, StateLayout};
use mlxcel_core::{Activation, Array, Map, Pass};
use mlxcel_estimator::Mixer as LayerMixer;
use serde::Deserialize;
use serde_json::Value;

use super::config::{DecoderConfig, size};
use super::dense::{Mixer, Model};
use super::layer_state::{LayerState, StateIndex};
use super::single::backbone;
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Mamba2Config {
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
    time_step_limit: Option<TimeStepLimit>,
}

/// Least and largest step; Python's tools write infinity as a bare word.
#[derive(Debug, Deserialize)]
pub(super) struct TimeStepLimit([Value; 2]);

impl TimeStepLimit {
    pub(super) fn limits(&self) -> Result<(f32, f32)> {
        let Self([least, largest]) = self;
        let limits = limit(least).zip(limit(largest));
        limits.filter(|(least, largest)| least <= largest).ok_or_else(|| {
            let found = format!("[{least}, {largest}]");
            Error::invalid_value("time_step_limit", found, "two numbers in ascending order")
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a limit of fp32 numbers")]
fn limit(value: &Value) -> Option<f32> {
    match value {
        Value::String(word) if word == "Infinity" => Some(f32::INFINITY),
        value => value.as_f64().map(|number| number as f32),
    }
}

/// The sizes of a mixer, and the kinds of its projections and norm.
#[derive(Clone, Copy, Debug)]
pub(super) struct MixerShape {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) groups: usize,
    pub(super) state_size: usize,
    pub(super) kernel: usize,
    pub(super) limits: (f32, f32),
    pub(super) conv_bias: bool,
    pub(super) in_bias: Bias,
    pub(super) out_bias: Bias,
    /// The norm after the gate, where there is one.
    pub(super) norm: Option<NormRule>,
    /// Parts that have a mean square of their own in that norm.
    pub(super) norm_groups: usize,
    pub(super) factors: Factors,
}

/// Factors on the outputs of the input projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factors {
    pub(super) gate: f32,
    pub(super) x: f32,
    pub(super) b: f32,
    pub(super) c: f32,
    pub(super) dt: f32,
}

impl Factors {
    pub(super) const NONE: Self = Self { gate: 1.0, x: 1.0, b: 1.0, c: 1.0, dt: 1.0 };
}

impl MixerShape {
    /// The sizes of layer `layer`; without biases and a norm, and with steps of any length.
    pub(super) fn new(d: &DecoderConfig, layer: usize) -> Result<Self> {
        let shape = d.layer(layer)?.mixers.iter().find_map(|mixer| match mixer {
            LayerMixer::Mamba2(shape) => Some(*shape),
            _ => None,
        });
        let shape = shape.ok_or_else(|| d.lacks(layer, "Mamba 2 mixer"))?;
        let head_dim = shape.head_dim().ok_or_else(|| {
            let expected = format!("a divisor of the mixer's {} elements", shape.inner);
            Error::invalid_value("num_heads (mamba_n_heads)", shape.heads, expected)
        })?;
        Ok(Self {
            hidden: d.sizes.hidden_size,
            heads: size(shape.heads),
            head_dim: size(head_dim),
            groups: size(shape.groups),
            state_size: size(shape.state_dim),
            kernel: size(shape.conv_kernel),
            limits: (0.0, f32::INFINITY),
            conv_bias: true,
            in_bias: Bias::None,
            out_bias: Bias::None,
            norm: None,
            norm_groups: 1,
            factors: Factors::NONE,
        })
    }

    pub(super) fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of the convolution: x, B and C.
    pub(super) fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state_size
    }

    /// The factors of the convolution's channels.
    fn channel_factors(&self) -> Vec<f32> {
        let Factors { x, b, c, .. } = self.factors;
        let wide = self.groups * self.state_size;
        [vec![x; self.inner()], vec![b; wide], vec![c; wide]].concat()
    }
}

/// Projection, convolution, scan, gated norm, projection.
pub(super) struct Mamba2Mixer {
    gate_proj: Linear,
    conv_proj: Linear,
    dt_proj: Linear,
    convolution: Convolution,
    scan: Scan,
    norm: Option<RmsNorm>,
    out_proj: Linear,
    factors: Factors,
}

impl Mamba2Mixer {
    pub(super) fn load(w: &Weights, s: &MixerShape) -> Result<Self> {
        let scan = Scan::Mamba2(recurrent::Mamba2 {
            a_log: w.exact_vector("A_log", s.heads)?,
            d: w.exact_vector("D", s.heads)?,
            dt_bias: w.exact_vector("dt_bias", s.heads)?,
            limits: s.limits,
            head_dim: s.head_dim,
            groups: s.groups,
            state_size: s.state_size,
        })
        .checked()?;
        let factors = s.channel_factors();
        let silu = Some(Activation::Silu);
        let convolution = w.scaled_convolution("conv1d", &factors, s.kernel, s.conv_bias, silu)?;
        let rows = [s.inner(), s.channels(), s.heads];
        let [gate_proj, conv_proj, dt_proj] =
            w.fused_linear("in_proj", s.hidden, rows, s.in_bias)?;
        Ok(Self {
            gate_proj,
            conv_proj,
            dt_proj,
            convolution,
            scan,
            norm: s.norm.map(|norm| gated_norm(w, s, norm)).transpose()?,
            out_proj: w.linear("out_proj", s.inner(), s.hidden, s.out_bias)?,
            factors: s.factors,
        })
    }
}

fn gated_norm(w: &Weights, s: &MixerShape, rule: NormRule) -> Result<RmsNorm> {
    let inner = s.inner();
    let groups = s.norm_groups;
    if groups == 0 || !inner.is_multiple_of(groups) {
        let expected = format!("a divisor of the mixer's {inner} channels");
        return Err(Error::invalid_value("n_groups (mamba_n_groups)", groups, expected));
    }
    Ok(RmsNorm { group: inner / groups, ..w.rms_norm("norm", inner, rule)? })
}

impl Mixer for Mamba2Mixer {
    fn layer_state(&self) -> LayerState {
        StateLayout::new(&self.convolution, Some(&self.scan)).into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let projections = [&self.gate_proj, &self.conv_proj, &self.dt_proj];
        let [mut gate, mut xbc, mut dt] = ops.linears(x, projections)?;
        for (part, factor) in [(&mut gate, self.factors.gate), (&mut dt, self.factors.dt)] {
            if !is_one(factor) {
                *part = ops.map(part, Map::Scale(factor))?;
            }
        }
        xbc = pass.convolve(index.state, &xbc, &self.convolution)?;
        let mut y = pass.scan(index.state, &[&xbc, &dt], &self.scan)?;
        y = ops.gated(&gate, &y, Activation::Silu)?;
        if let Some(norm) = &self.norm {
            y = ops.rms_norm(&y, norm)?;
        }
        Ok(ops.linear(&y, &self.out_proj)?)
    }
}

/// Returns true if a factor changes nothing.
pub(super) fn is_one(factor: f32) -> bool {
    factor.to_bits() == 1.0_f32.to_bits()
}

fn shape(d: &DecoderConfig, c: &Mamba2Config, norm: NormRule, layer: usize) -> Result<MixerShape> {
    let bias = Bias::when(c.use_bias);
    let shape = MixerShape::new(d, layer)?;
    let limits = c.time_step_limit.as_ref().map(TimeStepLimit::limits).transpose()?;
    Ok(MixerShape {
        limits: limits.unwrap_or(shape.limits),
        conv_bias: c.use_conv_bias.unwrap_or(true),
        in_bias: bias,
        out_bias: bias,
        norm: Some(norm),
        ..shape
    })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Mamba2Config) -> Result<Model> {
    let norm = d.sizes.norm_or(NormKind::Rms, 1e-5);
    backbone(w, d, norm, |w, layer| Mamba2Mixer::load(w, &shape(d, c, norm, layer)?))
}
