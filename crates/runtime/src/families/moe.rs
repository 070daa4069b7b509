//! Mixtures of experts: a router, experts, and experts that every token passes.

use mlxcel_core::experts::{Experts, RouteRule};
use mlxcel_core::layers::Linear;
use mlxcel_core::{Array, Pass};

use super::dense::{FeedForward, Mlp};
use crate::Result;
use crate::loading::{Bias, ExpertShape, Weights};

/// Names of gate, up and down in most checkpoints.
pub(super) const NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// `Σ weight · expert(x)` over the experts that the router chooses, and the shared ones.
pub(super) struct Moe {
    pub(super) gate: Linear,
    pub(super) experts: Experts,
    pub(super) shared_experts: Option<Mlp>,
}

impl Moe {
    /// Reads the router `gate` and the experts; `bias` names the bias on the scores for the choice,
    /// where there is one.
    pub(super) fn load(
        w: &Weights,
        shape: ExpertShape,
        rule: RouteRule,
        bias: Option<&str>,
    ) -> Result<Self> {
        let experts = w.experts(shape, rule, bias)?;
        let gate = w.linear("gate", shape.hidden, rule.experts, Bias::None)?;
        Ok(Self { gate, experts, shared_experts: None })
    }
}

impl FeedForward for Moe {
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let logits = pass.ops().linear(x, &self.gate)?;
        let y = pass.ops().experts(x, &logits, &self.experts)?;
        match &self.shared_experts {
            Some(shared) => Ok(pass.ops().add(&y, &shared.forward(pass, x)?)?),
            None => Ok(y),
        }
    }
}

/// For models with layers of several kinds.
impl FeedForward for Box<dyn FeedForward> {
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        self.as_ref().forward(pass, x)
    }
}
