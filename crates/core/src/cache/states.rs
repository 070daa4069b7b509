//! What the recurrent layers of a sequence keep: of fixed size, changed in place by every token.
//!
//! Such a state cannot go back, nor stand for a shorter prefix of the sequence: it can be copied (a
//! fork), and forgotten as a whole. It knows how many tokens are in it, so that a pass that failed half
//! way is an error of the next one, never a wrong answer.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_ffi::Array;
use mlxcel_kernels::recurrent::{RecurrentState, WindowStore};

use crate::ops::{ComputeDtype, KernelSet, Ops};
use crate::recurrent::StateLayout;
use crate::{Error, Result};

/// One recurrent layer's state of one sequence.
#[derive(Clone)]
pub(crate) enum StateCache {
    /// That host kernels change.
    Host(Arc<Mutex<HostState>>),
    /// MLX arrays.
    Arrays(RefCell<ArrayState>),
}

/// A state in memory of our own.
#[derive(Clone)]
pub(crate) struct HostState {
    empty: RecurrentState,
    pub(crate) state: RecurrentState,
    tokens: usize,
}

/// A state as arrays, once there are any.
#[derive(Clone, Default)]
pub(crate) struct ArrayState {
    /// The convolution's last inputs.
    pub(crate) window: Option<Array>,
    pub(crate) sums: Option<Array>,
    tokens: usize,
}

impl StateCache {
    pub(super) fn new(ops: &Ops, layout: &StateLayout) -> Self {
        let store = match ops.dtype() {
            ComputeDtype::Checkpoint => WindowStore::Half,
            ComputeDtype::Fp32 => WindowStore::Full,
        };
        match ops.kernels() {
            KernelSet::Host => {
                let empty = RecurrentState::new(layout.window_elems, layout.sum_elems, store);
                let state = HostState { state: empty.clone(), empty, tokens: 0 };
                Self::Host(Arc::new(Mutex::new(state)))
            }
            KernelSet::Mlx => Self::Arrays(RefCell::default()),
        }
    }

    /// The state; a panic inside a kernel poisons nothing that matters, since its pass fails.
    pub(crate) fn lock(state: &Mutex<HostState>) -> MutexGuard<'_, HostState> {
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent copy.
    pub(super) fn fork(&self) -> Self {
        match self {
            Self::Host(state) => Self::Host(Arc::new(Mutex::new(Self::lock(state).clone()))),
            Self::Arrays(state) => Self::Arrays(state.clone()),
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        match self {
            Self::Host(state) => {
                let mut state = Self::lock(state);
                (state.state, state.tokens) = (state.empty.clone(), 0);
            }
            Self::Arrays(state) => *state.borrow_mut() = ArrayState::default(),
        }
    }

    /// Claims that the state, still zeros, is that after `tokens` tokens.
    pub(super) fn fill_synthetic(&self, tokens: usize) {
        match self {
            Self::Host(state) => Self::lock(state).tokens = tokens,
            Self::Arrays(state) => state.borrow_mut().tokens = tokens,
        }
    }

    /// An identity and the bytes: no state is ever shared.
    pub(super) fn allocation(&self) -> (usize, usize) {
        let identity = match self {
            Self::Host(state) => Arc::as_ptr(state).addr(),
            Self::Arrays(state) => std::ptr::from_ref(state).addr(),
        };
        (identity, self.allocated_bytes())
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        match self {
            Self::Host(state) => Self::lock(state).state.bytes(),
            Self::Arrays(state) => {
                let state = state.borrow();
                state.window.iter().chain(&state.sums).map(Array::nbytes).sum()
            }
        }
    }
}

impl HostState {
    /// Before a run of `len` tokens from `position` on.
    pub(crate) fn advance(&mut self, position: usize, len: usize) -> Result<()> {
        self.expect(position)?;
        self.tokens = position + len;
        Ok(())
    }

    /// Fails unless `tokens` tokens are counted.
    pub(crate) fn expect(&self, tokens: usize) -> Result<()> {
        expect(self.tokens, tokens)
    }
}

impl ArrayState {
    /// Before a run of `len` tokens from `position` on.
    pub(crate) fn advance(&mut self, position: usize, len: usize) -> Result<()> {
        self.expect(position)?;
        self.tokens = position + len;
        Ok(())
    }

    /// Fails unless `tokens` tokens are counted.
    pub(crate) fn expect(&self, tokens: usize) -> Result<()> {
        expect(self.tokens, tokens)
    }
}

fn expect(tokens: usize, position: usize) -> Result<()> {
    if tokens == position {
        return Ok(());
    }
    let what = format!(
        "a recurrent state of {tokens} tokens cannot go on from {position}: an earlier pass failed; trim to 0"
    );
    Err(Error::Cache { what })
}
