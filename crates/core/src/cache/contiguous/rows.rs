//! The rows of one side of a layer: arrays that grow by whole blocks of tokens.

use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_kernels::kv::KV_BLOCK_TOKENS;

use super::super::formats::KvSide;
use super::coding::{Coding, Rotation};
use crate::shape::{dims, ints};
use crate::{Error, Result};

/// Rows of `dim` coordinates, coded, of every head. Cloning shares the arrays until one of the two
/// changes.
#[derive(Clone)]
pub(super) struct Rows {
    coding: Coding,
    side: KvSide,
    kv_heads: usize,
    /// The arrays of the coding, `[1, kv_heads, capacity, width]`; none before the first row.
    parts: Vec<Array>,
}

impl Rows {
    pub(super) fn new(kv_heads: usize, side: KvSide) -> Result<Self> {
        Ok(Self { coding: Coding::new(&side)?, side, kv_heads, parts: Vec::new() })
    }

    /// Writes `rows`, `[1, kv_heads, tokens, dim]`, from token `at` on.
    pub(super) fn write(&mut self, at: usize, rows: &Array) -> Result<()> {
        let end = at + dims(rows)[2];
        let coded = self.coding.encode(rows)?;
        let mut held = std::mem::take(&mut self.parts).into_iter();
        for part in coded {
            let room = self.with_room(held.next(), &part, end)?;
            let start = ints([0, 0, at, 0])?;
            let stop = region(&part, end)?;
            self.parts.push(ops::slice_update(&room, &part, &start, &stop)?);
        }
        Ok(())
    }

    /// `part`, or zeros like `like` where there is none yet, with room for `tokens` tokens.
    fn with_room(&self, part: Option<Array>, like: &Array, tokens: usize) -> Result<Array> {
        let capacity = part.as_ref().map_or(0, |part| dims(part)[2]);
        let missing = tokens.next_multiple_of(KV_BLOCK_TOKENS).saturating_sub(capacity);
        let shape = ints([1, self.kv_heads, missing, dims(like)[3]])?;
        match part {
            Some(part) if tokens <= capacity => Ok(part),
            Some(part) => Ok(ops::concatenate(&[&part, &Array::zeros(&shape, like.dtype())?], 2)?),
            None => Ok(Array::zeros(&shape, like.dtype())?),
        }
    }

    /// The rows of the tokens `tokens`, in `dtype` unless they are floats.
    pub(super) fn read(&self, tokens: Range<usize>, dtype: Dtype) -> Result<Array> {
        self.coding.decode(&self.sliced(tokens)?, dtype)
    }

    /// Returns true if [`Self::read`] decodes.
    pub(super) fn is_coded(&self) -> bool {
        !matches!(self.coding, Coding::Float)
    }

    /// The rotation that [`Self::read`] leaves rows in.
    pub(super) fn rotation(&self) -> Option<&Rotation> {
        self.coding.rotation()
    }

    fn sliced(&self, tokens: Range<usize>) -> Result<Vec<Array>> {
        if tokens.end > self.capacity() {
            let len = self.capacity();
            return Err(Error::OutOfRange {
                what: "the end of cached tokens",
                index: tokens.end,
                len,
            });
        }
        let start = ints([0, 0, tokens.start, 0])?;
        let mut slices = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            slices.push(ops::slice(part, &start, &region(part, tokens.end)?)?);
        }
        Ok(slices)
    }

    /// Drops all but the tokens `tokens`, which become the first.
    pub(super) fn keep(&mut self, tokens: Range<usize>) -> Result<()> {
        self.parts = if tokens.is_empty() { Vec::new() } else { self.sliced(tokens)? };
        Ok(())
    }

    /// Drops everything, memory included.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
    }

    /// Number of tokens that fit the arrays.
    pub(super) fn capacity(&self) -> usize {
        self.parts.first().map_or(0, |part| dims(part)[2])
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.parts.iter()
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// Coordinates of a row and their format, if they are not floats, as text.
    pub(super) fn text(&self) -> String {
        let KvSide { dim, format, .. } = self.side;
        if self.is_coded() { format!("{dim} {format}") } else { dim.to_string() }
    }

    /// The type of stored floats, where there are any.
    pub(super) fn float(&self) -> Option<Dtype> {
        self.parts.first().filter(|_| !self.is_coded()).map(Array::dtype)
    }

    /// Appends the bytes of the first `tokens` tokens, array by array, to `bytes`.
    pub(super) fn save(&self, tokens: usize, bytes: &mut Vec<u8>) -> Result<()> {
        if tokens == 0 {
            return Ok(());
        }
        for part in self.sliced(0..tokens)? {
            bytes.extend(part.to_bytes()?);
        }
        Ok(())
    }

    /// Restores `tokens` tokens that [`Self::save`] wrote, with floats of type `float`, from the front
    /// of `bytes`; `None` where there are fewer bytes.
    pub(super) fn restore(
        &mut self,
        tokens: usize,
        float: Dtype,
        bytes: &mut &[u8],
    ) -> Result<Option<()>> {
        self.clear();
        if tokens == 0 {
            return Ok(Some(()));
        }
        for (width, dtype) in self.coding.parts(self.side.dim, float) {
            let shape = ints([1, self.kv_heads, tokens, width])?;
            let Some(size) = dtype.nbytes(&shape) else { return Ok(None) };
            let Some((own, rest)) = bytes.split_at_checked(size) else { return Ok(None) };
            let part = Array::from_bytes(own, &shape, dtype)?;
            let capacity = tokens.next_multiple_of(KV_BLOCK_TOKENS);
            let part = match capacity > tokens {
                true => self.with_room(Some(part.clone()), &part, capacity)?,
                false => part,
            };
            self.parts.push(part);
            *bytes = rest;
        }
        Ok(Some(()))
    }

    /// Fills `tokens` tokens with the same row.
    pub(super) fn fill(&mut self, tokens: usize, dtype: Dtype) -> Result<()> {
        self.clear();
        if tokens == 0 {
            return Ok(());
        }
        let row = Array::full(&ints([1, self.kv_heads, 1, self.side.dim])?, 0.5, dtype)?;
        for part in self.coding.encode(&row)? {
            let shape =
                [1, self.kv_heads, tokens.next_multiple_of(KV_BLOCK_TOKENS), dims(&part)[3]];
            self.parts.push(ops::contiguous(&ops::broadcast_to(&part, &ints(shape)?)?)?);
        }
        Ok(mlx_ffi::eval(&self.parts.iter().collect::<Vec<_>>())?)
    }
}

/// The end of a slice that covers `tokens` tokens of an array shaped like `x`.
fn region(x: &Array, tokens: usize) -> Result<[i32; 4]> {
    let dims = dims(x);
    ints([1, dims[1], tokens, dims[3]])
}
