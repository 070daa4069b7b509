//! A layer's experts: the matrices of all of them, and the rule by which tokens choose among them.
//! [`crate::Ops::experts`] runs them.

use mlx_ffi::Array;
use mlxcel_kernels::elementwise::Glu as Activation;
pub use mlxcel_kernels::route::{GroupLimit, GroupScore, RouteRule, Scores};

use crate::layers::Weight;
use crate::shape::shape_error;
use crate::{Error, Result};

/// One matrix per expert, all of one shape and format.
#[derive(Clone)]
pub enum ExpertMatrices {
    /// One after the other, `[experts · rows, cols]`, as MLX's checkpoints hold them.
    Stacked(Weight),
    /// In one array each, as the original checkpoints hold them: mapped, not copied. Only host
    /// kernels read these; [`crate::Ops::expert_matrices`] decides.
    Separate(Vec<Weight>),
    /// Interleaved row by row with `count − 1` other matrices, `[experts · rows · count, cols]`, as
    /// gpt-oss's files hold gate and up. Only host kernels read these;
    /// [`crate::Ops::deinterleave`] decides.
    Interleaved {
        /// All of the matrices.
        weight: Weight,
        /// Index of this one.
        index: usize,
        /// Their number.
        count: usize,
    },
}

/// The gated feed-forward layers of all experts of a layer.
#[derive(Clone)]
pub struct Experts {
    gate: ExpertMatrices,
    up: ExpertMatrices,
    down: ExpertMatrices,
    rule: RouteRule,
    bias: Option<Array>,
    biases: Option<[Array; 3]>,
    activation: Activation,
}

impl ExpertMatrices {
    /// Rows and columns of one matrix, where there are `experts` of them.
    fn shape(&self, experts: usize) -> Option<(usize, usize)> {
        match self {
            Self::Stacked(weight) => {
                let (rows, cols) = weight.shape();
                rows.is_multiple_of(experts).then_some((rows / experts, cols))
            }
            Self::Separate(weights) => {
                let shape = weights.first()?.shape();
                let same = weights.iter().all(|weight| weight.shape() == shape);
                (same && weights.len() == experts).then_some(shape)
            }
            Self::Interleaved { weight, count, .. } => {
                let (rows, cols) = weight.shape();
                let all = experts * count;
                rows.is_multiple_of(all).then_some((rows / all, cols))
            }
        }
    }
}

impl Experts {
    /// Checks the matrices, `[gate, up, down]`, against each other and the rule.
    ///
    /// `bias`, `[experts]`, is added to the scores for the choice alone (DeepSeek V3).
    ///
    /// # Errors
    /// A rule that cannot choose (more active experts than experts), and matrices of other shapes.
    pub fn new(
        [gate, up, down]: [ExpertMatrices; 3],
        rule: RouteRule,
        bias: Option<Array>,
    ) -> Result<Self> {
        rule.check()?;
        let experts = rule.experts;
        let shapes = [&gate, &up, &down].map(|matrices| matrices.shape(experts));
        let [Some(first), Some(second), Some((rows, cols))] = shapes else {
            return Err(Error::Value {
                name: "the number of experts",
                value: experts.to_string(),
                expected: "that of their matrices, all of one shape,",
            });
        };
        if first != second || (cols, rows) != first {
            return Err(Error::Shape {
                op: "experts",
                operand: "down",
                found: vec![rows, cols],
                expected: format!("the transpose of gate {first:?} and up {second:?}"),
            });
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.size() != experts) {
            return Err(shape_error("experts", "bias", bias, format!("[{experts}]")));
        }
        let activation = Activation::Silu;
        Ok(Self { gate, up, down, rule, bias, biases: None, activation })
    }

    /// Adds biases of gate, up and down, `[experts · rows]` each.
    ///
    /// # Errors
    /// Other lengths.
    pub fn with_biases(self, biases: [Array; 3]) -> Result<Self> {
        let experts = self.rule.experts;
        for (matrices, bias) in self.matrices().into_iter().zip(&biases) {
            let rows = matrices.shape(experts).map_or(0, |(rows, _)| rows * experts);
            if bias.size() != rows {
                return Err(shape_error("experts", "biases", bias, format!("{rows} values")));
            }
        }
        Ok(Self { biases: Some(biases), ..self })
    }

    /// Replaces the activation, which is SiLU.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Rule by which tokens choose experts.
    #[must_use]
    pub fn rule(&self) -> &RouteRule {
        &self.rule
    }

    /// Bias on the scores, for the choice alone.
    pub(crate) fn bias(&self) -> Option<&Array> {
        self.bias.as_ref()
    }

    /// Biases of gate, up and down.
    pub(crate) fn biases(&self) -> Option<&[Array; 3]> {
        self.biases.as_ref()
    }

    /// Activation of the gate.
    pub(crate) fn activation(&self) -> Activation {
        self.activation
    }

    /// Gate, up and down.
    pub(crate) fn matrices(&self) -> [&ExpertMatrices; 3] {
        [&self.gate, &self.up, &self.down]
    }
}
