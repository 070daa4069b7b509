//! The gated delta net of Qwen3-Next and Qwen 3.5: projections, a short convolution, the gated delta
//! rule, a gated norm per value head, a projection.

use mlxcel_core::layers::{Linear, RmsNorm};
use mlxcel_core::recurrent::{Convolution, GatedDelta, Scan, StateLayout};
use mlxcel_core::{Activation, Array, Ops, Pass};
use mlxcel_estimator::GatedDeltaShape;

use super::config::size;
use super::dense::Mixer;
use super::layer_state::{LayerState, StateIndex};
use crate::Result;
use crate::loading::{Bias, NormRule, Weights};

/// The sizes of a delta net.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaShape {
    linear_num_key_heads: usize,
    linear_num_value_heads: usize,
    linear_key_head_dim: usize,
    linear_value_head_dim: usize,
    linear_conv_kernel_dim: usize,
}

impl DeltaShape {
    pub(super) fn new(shape: &GatedDeltaShape) -> Self {
        Self {
            linear_num_key_heads: size(shape.key_heads),
            linear_num_value_heads: size(shape.value_heads),
            linear_key_head_dim: size(shape.key_dim),
            linear_value_head_dim: size(shape.value_dim),
            linear_conv_kernel_dim: size(shape.conv_kernel),
        }
    }

    fn keys(&self) -> usize {
        self.linear_num_key_heads * self.linear_key_head_dim
    }

    fn values(&self) -> usize {
        self.linear_num_value_heads * self.linear_value_head_dim
    }

    /// Channels of the convolution: queries, keys and values.
    pub(super) fn channels(&self) -> usize {
        2 * self.keys() + self.values()
    }

    pub(super) fn kernel(&self) -> usize {
        self.linear_conv_kernel_dim
    }
}

/// Layout of the projections of a delta net in files.
#[derive(Clone, Copy, Debug)]
pub(super) enum Projections {
    /// `in_proj_qkvz` and `in_proj_ba`, by key head: its query, its key, its values, their gates.
    ByKeyHead,
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`.
    Apart,
}

/// The input projections.
enum InputProjections {
    ByKeyHead { qkvz: Linear, ba: Linear },
    Apart([Linear; 4]),
}

impl InputProjections {
    fn load(w: &Weights, hidden: usize, s: &DeltaShape, files: Projections) -> Result<Self> {
        let heads = s.linear_num_value_heads;
        let channels = s.channels();
        let values = s.values();
        Ok(match files {
            Projections::ByKeyHead => Self::ByKeyHead {
                qkvz: w.linear("in_proj_qkvz", hidden, channels + values, Bias::None)?,
                ba: w.linear("in_proj_ba", hidden, 2 * heads, Bias::None)?,
            },
            Projections::Apart => Self::Apart([
                w.linear("in_proj_qkv", hidden, channels, Bias::None)?,
                w.linear("in_proj_z", hidden, values, Bias::None)?,
                w.linear("in_proj_b", hidden, heads, Bias::None)?,
                w.linear("in_proj_a", hidden, heads, Bias::None)?,
            ]),
        })
    }

    /// Queries, keys and values side by side; gates; corrections; step sizes.
    fn forward(&self, ops: &Ops, x: &Array, s: &DeltaShape) -> Result<[Array; 4]> {
        match self {
            Self::Apart(linears) => Ok(ops.linears(x, linears.each_ref())?),
            Self::ByKeyHead { qkvz, ba } => {
                let heads = s.linear_num_key_heads;
                let dim = s.linear_key_head_dim;
                let [qkvz, ba] = ops.linears(x, [qkvz, ba])?;
                let [q, mut rest] = ops.split_heads(&qkvz, heads, dim)?;
                drop(qkvz);
                let k;
                [k, rest] = ops.split_heads(&rest, heads, dim)?;
                let [v, z] = ops.split_heads(&rest, heads, s.values() / heads)?;
                drop(rest);
                let [b, a] = ops.split_heads(&ba, heads, s.linear_num_value_heads / heads)?;
                let qkv = ops.join_heads(&ops.join_heads(&q, &k, 1)?, &v, 1)?;
                Ok([qkv, z, b, a])
            }
        }
    }
}

/// Projections, convolution, gated delta rule, gated norm, projection.
pub(super) struct DeltaNet {
    shape: DeltaShape,
    inputs: InputProjections,
    convolution: Convolution,
    scan: Scan,
    /// Over each value head.
    norm: RmsNorm,
    out_proj: Linear,
}

impl DeltaNet {
    pub(super) fn load(
        w: &Weights,
        hidden: usize,
        s: &DeltaShape,
        norm: NormRule,
        files: Projections,
    ) -> Result<Self> {
        let scan = Scan::GatedDelta(GatedDelta {
            a_log: w.exact_vector("A_log", s.linear_num_value_heads)?,
            dt_bias: w.exact_vector("dt_bias", s.linear_num_value_heads)?,
            key_heads: s.linear_num_key_heads,
            key_dim: s.linear_key_head_dim,
            value_dim: s.linear_value_head_dim,
        });
        let silu = Some(Activation::Silu);
        Ok(Self {
            shape: *s,
            scan: scan.checked()?,
            inputs: InputProjections::load(w, hidden, s, files)?,
            convolution: w.convolution("conv1d", s.channels(), s.kernel(), false, silu)?,
            norm: w.rms_norm("norm", s.linear_value_head_dim, norm)?,
            out_proj: w.linear("out_proj", s.values(), hidden, Bias::None)?,
        })
    }
}

impl Mixer for DeltaNet {
    fn layer_state(&self) -> LayerState {
        StateLayout::new(&self.convolution, Some(&self.scan)).into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let [mut qkv, z, b, a] = self.inputs.forward(ops, x, &self.shape)?;
        qkv = pass.convolve(index.state, &qkv, &self.convolution)?;
        let mut y = pass.scan(index.state, &[&qkv, &a, &b], &self.scan)?;
        y = ops.rms_norm(&y, &self.norm)?;
        y = ops.gated(&z, &y, Activation::Silu)?;
        Ok(ops.linear(&y, &self.out_proj)?)
    }
}
