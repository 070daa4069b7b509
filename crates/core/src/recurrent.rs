//! What a recurrent layer is: its parameters, and what it keeps per sequence. Running it is
//! [`crate::Batch::mamba2`]'s work.

use mlx_ffi::Array;

use crate::shape::{dims, rows_cols};
use crate::{Error, Result};

/// What a recurrent layer keeps of a sequence, whatever its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// Elements of the convolution's last inputs, in half precision (unless all is fp32).
    pub window_elems: usize,
    /// Elements of what the scan has summed up, fp32.
    pub sum_elems: usize,
}

/// The convolution and the selective scan of a Mamba 2 layer. All parameters are fp32.
#[derive(Clone)]
pub struct Mamba2 {
    /// Filters of the convolution, `[kernel, channels]`, the oldest input's first.
    pub taps: Array,
    /// `[channels]`.
    pub conv_bias: Option<Array>,
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

impl Mamba2 {
    /// Checks the parameters against each other.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn checked(self) -> Result<Self> {
        let fail = |what: String| Err(Error::Config { what });
        let (heads, groups) = (self.heads(), self.groups);
        if groups == 0 || !heads.is_multiple_of(groups) {
            return fail(format!("{heads} heads of a scan are not a multiple of {groups} groups"));
        }
        if rows_cols(&self.taps).1 != self.channels() {
            let found = dims(&self.taps);
            return fail(format!("a convolution of shape {found:?} for {}", self.channels()));
        }
        Ok(self)
    }

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

    /// Channels of the convolution: x, B and C.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.state_size
    }

    /// Inputs that the convolution sees.
    #[must_use]
    pub fn kernel(&self) -> usize {
        rows_cols(&self.taps).0
    }

    /// What the layer keeps.
    #[must_use]
    pub fn layout(&self) -> StateLayout {
        StateLayout {
            window_elems: (self.kernel() - 1) * self.channels(),
            sum_elems: self.inner() * self.state_size,
        }
    }
}
