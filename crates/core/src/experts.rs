//! A layer's experts: the matrices of all of them, and how tokens choose among them. Running them
//! is [`crate::Ops::experts`]'s work.

use mlx_ffi::Array;
pub use mlxcel_kernels::route::{GroupLimit, GroupScore, RouteRule, Scores};

use crate::layers::Weight;
use crate::ops::Activation;
use crate::shape::dims;
use crate::{Error, Result};

/// One matrix per expert, all of one shape and format.
#[derive(Clone)]
pub enum ExpertMatrices {
    /// One after the other, `[experts · rows, cols]`, as MLX's checkpoints hold them.
    Stacked(Weight),
    /// Each by itself, as the original checkpoints hold them: mapped, not copied. Only host
    /// kernels read these; [`crate::Ops::expert_matrices`] decides.
    Separate(Vec<Weight>),
    /// Row by row with those of `parts − 1` other matrices, `[experts · rows · parts, cols]`, as
    /// gpt-oss's files hold gate and up. Only host kernels read these; [`crate::Ops::take_turns`]
    /// decides.
    TakingTurns {
        /// All of them.
        weight: Weight,
        /// Which one of them this is.
        part: usize,
        /// How many take turns.
        parts: usize,
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
            Self::TakingTurns { weight, parts, .. } => {
                let (rows, cols) = weight.shape();
                let all = experts * parts;
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
            let what = format!("the matrices of {experts} experts are not as many, of one shape");
            return Err(Error::Config { what });
        };
        if first != second || (cols, rows) != first {
            let what = format!(
                "gate {first:?}, up {second:?} and down {:?} of an expert do not fit",
                (rows, cols)
            );
            return Err(Error::Config { what });
        }
        if bias.as_ref().is_some_and(|bias| bias.size() != experts) {
            return Err(Error::Config {
                what: format!("the bias is not one of {experts} experts"),
            });
        }
        let activation = Activation::Silu;
        Ok(Self { gate, up, down, rule, bias, biases: None, activation })
    }

    /// The same with biases of gate, up and down, `[experts · rows]` each.
    ///
    /// # Errors
    /// Other lengths.
    pub fn with_biases(self, biases: [Array; 3]) -> Result<Self> {
        let experts = self.rule.experts;
        for (matrices, bias) in self.matrices().into_iter().zip(&biases) {
            let rows = matrices.shape(experts).map_or(0, |(rows, _)| rows * experts);
            if bias.size() != rows {
                return Err(Error::Shape {
                    op: "experts",
                    operand: "biases",
                    found: dims(bias),
                    expected: format!("{rows} values"),
                });
            }
        }
        Ok(Self { biases: Some(biases), ..self })
    }

    /// The same with another activation than SiLU.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// How tokens choose.
    #[must_use]
    pub fn rule(&self) -> &RouteRule {
        &self.rule
    }

    /// What is added to the scores for the choice.
    pub(crate) fn bias(&self) -> Option<&Array> {
        self.bias.as_ref()
    }

    /// Biases of gate, up and down.
    pub(crate) fn biases(&self) -> Option<&[Array; 3]> {
        self.biases.as_ref()
    }

    /// What gates.
    pub(crate) fn activation(&self) -> Activation {
        self.activation
    }

    /// Gate, up and down.
    pub(crate) fn matrices(&self) -> [&ExpertMatrices; 3] {
        [&self.gate, &self.up, &self.down]
    }
}
