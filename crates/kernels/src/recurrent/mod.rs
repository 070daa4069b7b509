//! Recurrent layers: short causal convolutions, the selective scans of Mamba 1 and 2, and the gated
//! delta rule.
//!
//! A sequence keeps a [`RecurrentState`] of fixed size: the last inputs of the convolution, and
//! the sums of the scan. Kernels run over new tokens and update it in place.

mod conv;
mod delta;
mod scan1;
mod scan2;
#[cfg(test)]
mod tests;

pub use conv::{Conv, causal_conv};
pub use delta::{Delta, DeltaSteps, gated_delta};
pub use scan1::{Scan1, Steps1, scan1};
pub use scan2::{Scan2, Steps2, scan2};

use half::f16;

use crate::error::{Result, check_len};
use crate::pool::Pool;

/// State of one recurrent layer for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentState {
    window: Window,
    /// The sums of the scan, in the order of its kernel.
    pub sums: Vec<f32>,
}

/// The last inputs of a convolution, oldest first.
#[derive(Clone, Debug, PartialEq)]
enum Window {
    Half(Vec<f16>),
    Full(Vec<f32>),
}

/// Storage type of a convolution's window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowStore {
    /// In fp16.
    Half,
    /// In fp32.
    Full,
}

impl RecurrentState {
    /// The state before the first token: zeros.
    #[must_use]
    pub fn new(window_elems: usize, sum_elems: usize, store: WindowStore) -> Self {
        let window = match store {
            WindowStore::Half => Window::Half(vec![f16::ZERO; window_elems]),
            WindowStore::Full => Window::Full(vec![0.0; window_elems]),
        };
        Self { window, sums: vec![0.0; sum_elems] }
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let window = match &self.window {
            Window::Half(values) => size_of_val(&**values),
            Window::Full(values) => size_of_val(&**values),
        };
        window + size_of_val(&*self.sums)
    }

    /// The convolution's window.
    #[must_use]
    pub fn window(&self) -> Vec<f32> {
        match &self.window {
            Window::Half(values) => values.iter().map(|value| value.to_f32()).collect(),
            Window::Full(values) => values.clone(),
        }
    }

    /// Replaces the convolution's window.
    ///
    /// # Errors
    /// [`crate::KernelError::Length`] for another number of elements.
    pub fn set_window(&mut self, new: &[f32]) -> Result<()> {
        match &mut self.window {
            Window::Half(values) => {
                check_len("window of a convolution", new.len(), values.len())?;
                values.iter_mut().zip(new).for_each(|(old, new)| *old = f16::from_f32(*new));
            }
            Window::Full(values) => {
                check_len("window of a convolution", new.len(), values.len())?;
                values.copy_from_slice(new);
            }
        }
        Ok(())
    }
}

/// ln(1 + eˣ) without overflow.
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Puts outputs that workers wrote part by part, each `[tokens, width]` (the last may be narrower),
/// side by side: `out` is `[tokens, row]`.
fn interleave(pool: &Pool, parts: &[f32], width: usize, row: usize, out: &mut [f32]) {
    let tokens = out.len() / row;
    pool.for_rows_mut(out, row, 8, |_, first, rows| {
        for (token, out) in (first..).zip(rows.chunks_exact_mut(row)) {
            for (part, out) in out.chunks_mut(width).enumerate() {
                let from = part * width * tokens + token * out.len();
                out.copy_from_slice(&parts[from..from + out.len()]);
            }
        }
    });
}
