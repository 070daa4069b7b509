//! Values of a layer, stored apart from its keys or with them.

use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_kernels::kv::KV_BLOCK_TOKENS;

use super::coding::Rotation;
use super::rows::Rows;
use crate::Result;
use crate::shape::dims;

/// Storage of values. Tokens are counted from the first that the cache holds.
#[derive(Clone)]
pub(super) enum Values {
    /// In rows of their own (of a latent's floats: the rotary part of the keys).
    Own(Rows),
    /// In the rows of the keys, under one scale.
    InKeys,
    /// In codes, but for the block that is being filled.
    Delegated(Delegated),
}

/// Values of full blocks as codes, those of the open block as floats.
#[derive(Clone)]
pub(super) struct Delegated {
    sealed: Rows,
    open: Rows,
    /// Tokens of the sealed blocks.
    sealed_tokens: usize,
}

impl Delegated {
    pub(super) fn new(sealed: Rows, open: Rows) -> Self {
        Self { sealed, open, sealed_tokens: 0 }
    }

    /// Tokens of the sealed blocks.
    pub(super) fn sealed_tokens(&self) -> usize {
        self.sealed_tokens
    }

    /// The arrays of both.
    pub(super) fn rows(&self) -> [&Rows; 2] {
        [&self.sealed, &self.open]
    }

    /// Writes the values of a run within one block from token `at` on. The first of a block seals the
    /// one before.
    pub(super) fn write(&mut self, at: usize, values: &Array) -> Result<()> {
        if at.is_multiple_of(KV_BLOCK_TOKENS) && at > self.sealed_tokens {
            let block = self.open.read(0..KV_BLOCK_TOKENS, values.dtype())?;
            self.sealed.write(self.sealed_tokens, &block)?;
            self.sealed_tokens = at;
        }
        let within = at - self.sealed_tokens;
        assert!(
            within + dims(values)[2] <= KV_BLOCK_TOKENS,
            "attention breaks runs at the end of blocks that are to be sealed"
        );
        self.open.write(within, values)
    }

    /// The values of `tokens`, and the rotation that they are in: none before a block is sealed.
    pub(super) fn read(
        &self,
        tokens: Range<usize>,
        dtype: Dtype,
    ) -> Result<(Array, Option<Rotation>)> {
        let at = self.sealed_tokens;
        let sealed = tokens.start.min(at)..tokens.end.min(at);
        let open = tokens.start.max(at) - at..tokens.end.saturating_sub(at);
        let Some(rotation) = self.sealed.rotation().filter(|_| !sealed.is_empty()) else {
            return Ok((self.open.read(open, dtype)?, None));
        };
        let mut values = self.sealed.read(sealed, dtype)?;
        if tokens.end > at {
            let open = rotation.apply(&self.open.read(open, dtype)?)?;
            values = ops::concatenate(&[&values, &open], 2)?;
        }
        Ok((values, Some(rotation.clone())))
    }

    /// Drops all tokens before `first`, which starts a sealed block or the open one.
    pub(super) fn drop_before(&mut self, first: usize) -> Result<()> {
        self.sealed.keep(first..self.sealed_tokens)?;
        self.sealed_tokens -= first;
        Ok(())
    }

    /// Drops the tokens from `tokens` on.
    pub(super) fn trim(&mut self, tokens: usize) {
        self.sealed_tokens = self.sealed_tokens.min(tokens);
    }

    pub(super) fn clear(&mut self) {
        self.sealed.clear();
        self.open.clear();
        self.sealed_tokens = 0;
    }

    /// Appends the bytes of `tokens` tokens to `bytes`.
    pub(super) fn save(&self, tokens: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.sealed.save(self.sealed_tokens, bytes)?;
        self.open.save(tokens - self.sealed_tokens, bytes)
    }

    /// Restores `tokens` tokens that [`Self::save`] wrote, of which `sealed` were sealed.
    pub(super) fn restore(
        &mut self,
        [sealed, tokens]: [usize; 2],
        float: Dtype,
        bytes: &mut &[u8],
    ) -> Result<Option<()>> {
        let open = tokens.checked_sub(sealed).filter(|open| *open <= KV_BLOCK_TOKENS);
        let Some(open) = open.filter(|_| sealed.is_multiple_of(KV_BLOCK_TOKENS)) else {
            return Ok(None);
        };
        if self.sealed.restore(sealed, float, bytes)?.is_none() {
            return Ok(None);
        }
        self.sealed_tokens = sealed;
        self.open.restore(open, float, bytes)
    }

    /// Fills `tokens` tokens with the same value.
    pub(super) fn fill(&mut self, tokens: usize, dtype: Dtype) -> Result<()> {
        self.sealed_tokens = tokens.saturating_sub(1) / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS;
        self.sealed.fill(self.sealed_tokens, dtype)?;
        self.open.fill(tokens - self.sealed_tokens, dtype)
    }
}
