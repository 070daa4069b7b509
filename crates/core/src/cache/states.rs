//! States of recurrent layers: of fixed size, changed in place by every token.
//!
//! Such a state cannot go back, nor stand for a shorter prefix of the sequence: it can be copied (a
//! fork), and cleared as a whole. It counts the tokens that it has seen, so that a pass that failed
//! half way is an error of the next one, never a wrong result.

use mlx_ffi::Array;
use mlxcel_estimator::ComputeDtype;
use mlxcel_kernels::recurrent::{RecurrentState, WindowStore};

use super::storage::StateCache;
use crate::recurrent::StateLayout;
use crate::{Error, Result};

/// A state in memory of our own, which host kernels change.
#[derive(Clone)]
pub(crate) struct HostState {
    empty: RecurrentState,
    pub(crate) state: RecurrentState,
    tokens: TokenCount,
}

/// A state as MLX arrays; none before the first token.
#[derive(Clone, Default)]
pub(crate) struct ArrayState {
    /// Last inputs of the convolution.
    pub(crate) window: Option<Array>,
    /// Sums of the scan.
    pub(crate) sums: Option<Array>,
    tokens: TokenCount,
}

/// Number of tokens that a state has seen.
#[derive(Clone, Copy, Default)]
struct TokenCount(usize);

impl TokenCount {
    /// Counts a run of `len` tokens from `position` on.
    fn advance(&mut self, position: usize, len: usize) -> Result<()> {
        self.expect(position)?;
        self.0 = position + len;
        Ok(())
    }

    /// Fails unless `tokens` tokens are counted.
    fn expect(self, tokens: usize) -> Result<()> {
        if self.0 == tokens {
            return Ok(());
        }
        Err(Error::StateOutOfStep { tokens: self.0, position: tokens })
    }
}

impl HostState {
    /// Counts a run of `len` tokens from `position` on, before its convolution.
    pub(crate) fn advance(&mut self, position: usize, len: usize) -> Result<()> {
        self.tokens.advance(position, len)
    }

    /// Fails unless `tokens` tokens are counted.
    pub(crate) fn expect(&self, tokens: usize) -> Result<()> {
        self.tokens.expect(tokens)
    }
}

impl StateCache for HostState {
    fn new(layout: &StateLayout, dtype: ComputeDtype) -> Self {
        let store = match dtype {
            ComputeDtype::Checkpoint => WindowStore::Half,
            ComputeDtype::Fp32 => WindowStore::Full,
        };
        let empty = RecurrentState::new(layout.window_elems, layout.sum_elems, store);
        Self { state: empty.clone(), empty, tokens: TokenCount::default() }
    }

    fn clear(&mut self) {
        self.state = self.empty.clone();
        self.tokens = TokenCount::default();
    }

    fn fill_synthetic(&mut self, tokens: usize) {
        self.tokens = TokenCount(tokens);
    }

    fn bytes(&self) -> usize {
        self.state.bytes()
    }
}

impl ArrayState {
    /// Counts a run of `len` tokens from `position` on, before its convolution.
    pub(crate) fn advance(&mut self, position: usize, len: usize) -> Result<()> {
        self.tokens.advance(position, len)
    }

    /// Fails unless `tokens` tokens are counted.
    pub(crate) fn expect(&self, tokens: usize) -> Result<()> {
        self.tokens.expect(tokens)
    }
}

impl StateCache for ArrayState {
    fn new(_: &StateLayout, _: ComputeDtype) -> Self {
        Self::default()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn fill_synthetic(&mut self, tokens: usize) {
        self.tokens = TokenCount(tokens);
    }

    fn bytes(&self) -> usize {
        self.window.iter().chain(&self.sums).map(Array::nbytes).sum()
    }
}
