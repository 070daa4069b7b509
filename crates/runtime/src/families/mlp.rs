//! The feed-forward parts of dense families: gated linear units and plain ones.

use mlxcel_core::layers::Linear;
use mlxcel_core::{Activation, Array, Map, Ops, Pass};

use super::dense::FeedForward;
use crate::Result;
use crate::loading::{Bias, Weights};

/// A gated linear unit: `down(activation(gate(x)) · up(x))`; SwiGLU with SiLU.
pub(super) struct Mlp {
    pub(super) gate_proj: Linear,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
    pub(super) activation: Activation,
}

impl Mlp {
    /// Reads the SwiGLU of `gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn load(w: &Weights, hidden: usize, inner: usize, bias: Bias) -> Result<Self> {
        Ok(Self {
            gate_proj: w.linear("gate_proj", hidden, inner, bias)?,
            up_proj: w.linear("up_proj", hidden, inner, bias)?,
            down_proj: w.linear("down_proj", inner, hidden, bias)?,
            activation: Activation::Silu,
        })
    }

    /// Reads the SwiGLU of `gate_up_proj`, where both are stacked, and `down_proj`.
    pub(super) fn load_fused(w: &Weights, hidden: usize, inner: usize) -> Result<Self> {
        let [gate_proj, up_proj] =
            w.fused_linear("gate_up_proj", hidden, [inner; 2], Bias::None)?;
        let down_proj = w.linear("down_proj", inner, hidden, Bias::None)?;
        Ok(Self { gate_proj, up_proj, down_proj, activation: Activation::Silu })
    }
}

impl FeedForward for Mlp {
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let hidden = pass.ops().glu(x, &self.gate_proj, &self.up_proj, self.activation)?;
        Ok(pass.ops().linear(&hidden, &self.down_proj)?)
    }
}

/// Two projections: `output(activation(input(x)))`.
pub(super) struct PlainMlp {
    pub(super) input: Linear,
    pub(super) output: Linear,
    pub(super) activation: Activation,
}

impl PlainMlp {
    /// The MLP of `x`, `[rows, width]`.
    pub(super) fn apply(&self, ops: &Ops, x: &Array) -> Result<Array> {
        let mut hidden = ops.linear(x, &self.input)?;
        hidden = ops.map(&hidden, Map::Activation(self.activation))?;
        Ok(ops.linear(&hidden, &self.output)?)
    }
}

impl FeedForward for PlainMlp {
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        self.apply(pass.ops(), x)
    }
}
