//! Parameters of recurrent layers: a short convolution, mostly followed by a scan, and their state per
//! sequence. [`crate::Pass`] runs them.

use mlx_ffi::Array;
use mlxcel_kernels::elementwise::Glu as Activation;

use crate::shape::{dims, rows_cols, shape_error};
use crate::{Error, Result};

/// State of a recurrent layer per sequence, whatever its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Elements of the convolution's last inputs, in half precision (unless all is fp32).
    pub window_elems: usize,
    /// Elements of the scan's sums, fp32.
    pub sum_elems: usize,
}

impl StateLayout {
    /// State of a layer with this convolution and scan.
    #[must_use]
    pub fn new(convolution: &Convolution, scan: Option<&Scan>) -> Self {
        Self {
            window_elems: (convolution.kernel() - 1) * convolution.channels(),
            sum_elems: scan.map_or(0, Scan::sum_elems),
        }
    }
}

/// A causal convolution over time with one filter per channel. All parameters are fp32.
#[derive(Clone)]
pub struct Convolution {
    taps: Array,
    bias: Option<Array>,
    activation: Option<Activation>,
}

impl Convolution {
    /// With filters `taps`, `[kernel, channels]`, the oldest input's first, and a `bias`,
    /// `[channels]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn new(taps: Array, bias: Option<Array>, activation: Option<Activation>) -> Result<Self> {
        if taps.ndim() != 2 || taps.size() == 0 {
            return Err(shape_error("convolution", "taps", &taps, "[kernel, channels]".into()));
        }
        let (_, channels) = rows_cols(&taps);
        if let Some(bias) = bias.as_ref().filter(|bias| dims(bias) != [channels]) {
            return Err(shape_error("convolution", "bias", bias, format!("[{channels}]")));
        }
        Ok(Self { taps, bias, activation })
    }

    /// Channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        rows_cols(&self.taps).1
    }

    /// Number of inputs that an output depends on.
    #[must_use]
    pub fn kernel(&self) -> usize {
        rows_cols(&self.taps).0
    }

    pub(crate) fn taps(&self) -> &Array {
        &self.taps
    }

    pub(crate) fn bias(&self) -> Option<&Array> {
        self.bias.as_ref()
    }

    pub(crate) fn activation(&self) -> Option<Activation> {
        self.activation
    }
}

/// Recurrence over the tokens of a sequence. All parameters are fp32.
#[derive(Clone)]
pub enum Scan {
    /// Mamba 1.
    Mamba(Mamba),
    /// Mamba 2.
    Mamba2(Mamba2),
    /// The gated delta rule.
    GatedDelta(GatedDelta),
}

/// The selective scan of Mamba 1. Its inputs: x and step sizes before the softplus,
/// `[tokens, channels]` each, B and C, `[tokens, state_size]` each.
#[derive(Clone)]
pub struct Mamba {
    /// Rates of decay, negative, `[channels, state_size]`.
    pub rates: Array,
    /// Factor of the input on the output, `[channels]`.
    pub d: Array,
}

/// The selective scan of Mamba 2. Its inputs: x, B and C side by side,
/// `[tokens, heads · head_dim + 2 · groups · state_size]`, and step sizes, `[tokens, heads]`.
#[derive(Clone)]
pub struct Mamba2 {
    /// Logarithm of the decay rate, `[heads]`.
    pub a_log: Array,
    /// Factor of the input on the output, `[heads]`.
    pub d: Array,
    /// Added to the step sizes, `[heads]`.
    pub dt_bias: Array,
    /// Least and largest step.
    pub limits: (f32, f32),
    /// Elements of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C.
    pub groups: usize,
    /// Elements of the state per element of a head.
    pub state_size: usize,
}

/// The gated delta rule. Its inputs: queries, keys and values side by side,
/// `[tokens, 2 · key_heads · key_dim + value_heads · value_dim]`, step sizes and corrections,
/// `[tokens, value_heads]` each.
#[derive(Clone)]
pub struct GatedDelta {
    /// Logarithm of the decay rate, `[value_heads]`.
    pub a_log: Array,
    /// Added to the step sizes, `[value_heads]`.
    pub dt_bias: Array,
    /// Heads of queries and keys, each serving as many value heads.
    pub key_heads: usize,
    /// Elements of a query or key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
}

impl Scan {
    /// Elements of each of its inputs per token.
    #[must_use]
    pub(crate) fn input_widths(&self) -> Vec<usize> {
        match self {
            Self::Mamba(scan) => {
                vec![scan.d.size(), scan.d.size(), scan.state_size(), scan.state_size()]
            }
            Self::Mamba2(scan) => vec![scan.channels(), scan.heads()],
            Self::GatedDelta(scan) => vec![scan.channels(), scan.heads(), scan.heads()],
        }
    }

    /// Elements of its output per token.
    #[must_use]
    pub fn width(&self) -> usize {
        match self {
            Self::Mamba(scan) => scan.d.size(),
            Self::Mamba2(scan) => scan.inner(),
            Self::GatedDelta(scan) => scan.heads() * scan.value_dim,
        }
    }

    fn sum_elems(&self) -> usize {
        match self {
            Self::Mamba(scan) => scan.rates.size(),
            Self::Mamba2(scan) => scan.inner() * scan.state_size,
            Self::GatedDelta(scan) => scan.heads() * scan.value_dim * scan.key_dim,
        }
    }

    /// Checks the parameters against each other.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn checked(self) -> Result<Self> {
        let (heads, groups) = match &self {
            Self::Mamba(_) => return Ok(self),
            Self::Mamba2(scan) => (scan.heads(), scan.groups),
            Self::GatedDelta(scan) => (scan.heads(), scan.key_heads),
        };
        if groups == 0 || !heads.is_multiple_of(groups) {
            return Err(Error::Indivisible { what: "heads of a scan", size: heads, parts: groups });
        }
        Ok(self)
    }
}

impl Mamba {
    /// Elements of the state per channel.
    #[must_use]
    pub fn state_size(&self) -> usize {
        rows_cols(&self.rates).1
    }
}

impl Mamba2 {
    /// Heads of the scan.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.a_log.size()
    }

    /// Elements of all heads.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.heads() * self.head_dim
    }

    /// Elements of x, B and C.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state_size
    }
}

impl GatedDelta {
    /// Heads of values.
    #[must_use]
    pub fn heads(&self) -> usize {
        self.a_log.size()
    }

    /// Elements of all keys.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Elements of queries, keys and values.
    #[must_use]
    pub fn channels(&self) -> usize {
        2 * self.keys() + self.heads() * self.value_dim
    }
}
