//! Appending tokens to a list of blocks, quantising on the way.

use super::block::{HeadViewMut, KvBlock};
use super::layout::{BlockLayout, KV_BLOCK_TOKENS};
use super::store::{SideCoding, Work};
use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, Simd, dispatch};
use crate::turbo::Side;
use std::ops::Range;

/// Fewer head vectors than this are written by the calling thread.
const PARALLEL_VECTORS: usize = 64;

/// One head of one block and the tokens that it receives.
struct HeadJob<'a> {
    slots: HeadViewMut<'a>,
    head: usize,
    /// Tokens within the block.
    tokens: Range<usize>,
    /// Row of `k` and `v` that the first of them comes from.
    first_row: usize,
}

/// The rows of a call.
struct AppendedRows<'a> {
    layout: BlockLayout,
    k: &'a [f32],
    v: &'a [f32],
}

/// Writes `k` (`[tokens, kv_heads, key_dim]` f32) and `v` (`[tokens, kv_heads, value_dim]`, empty
/// when values are a key prefix) into `blocks`, from token `start` of the first block on.
///
/// # Errors
/// [`KernelError::Length`] when `k` is not whole tokens, `v` disagrees with it, or the blocks do
/// not end in the block of the last token; [`KernelError::Dimension`] for a `start` outside of
/// the first block or blocks of different layouts.
pub fn append(
    pool: &Pool,
    blocks: &mut [&mut KvBlock],
    start: usize,
    k: &[f32],
    v: &[f32],
) -> Result<()> {
    let Some(first) = blocks.first() else {
        return check_len("k (no blocks)", k.len(), 0);
    };
    let layout = *first.layout();
    let tokens = check(&layout, blocks, start, k, v)?;
    let mut jobs = Vec::with_capacity(blocks.len() * layout.kv_heads());
    for (index, block) in blocks.iter_mut().enumerate() {
        let base = index * KV_BLOCK_TOKENS;
        let range = start.max(base) - base..(start + tokens).min(base + KV_BLOCK_TOKENS) - base;
        let first_row = (base + range.start) - start;
        jobs.extend(block.heads_mut().into_iter().enumerate().map(|(head, slots)| HeadJob {
            slots,
            head,
            tokens: range.clone(),
            first_row,
        }));
    }
    let rows = AppendedRows { layout, k, v };
    let chunk = if tokens * layout.kv_heads() < PARALLEL_VECTORS { jobs.len() } else { 1 };
    pool.for_rows_mut(&mut jobs, 1, chunk, |_, _, jobs| {
        for job in jobs {
            dispatch(pool.cpu(), Write { rows: &rows, job });
        }
    });
    Ok(())
}

/// Checks the shapes and returns the number of tokens.
fn check(
    layout: &BlockLayout,
    blocks: &[&mut KvBlock],
    start: usize,
    k: &[f32],
    v: &[f32],
) -> Result<usize> {
    if start >= KV_BLOCK_TOKENS {
        let rule = "inside the first block of 256";
        return Err(KernelError::Dimension { what: "start", value: start, rule });
    }
    if let Some(at) = blocks.iter().position(|block| block.layout() != layout) {
        let rule = "of the first block's layout";
        return Err(KernelError::Dimension { what: "block", value: at, rule });
    }
    let row = layout.kv_heads() * layout.key_dim();
    let tokens = k.len() / row;
    check_len("k", k.len(), tokens * row)?;
    let value_row = match layout.coding(Side::Value) {
        Some(_) => layout.kv_heads() * layout.value_dim(),
        None => 0,
    };
    check_len("v", v.len(), tokens * value_row)?;
    check_len("blocks", blocks.len(), (start + tokens).div_ceil(KV_BLOCK_TOKENS).max(1))?;
    Ok(tokens)
}

/// Writes one job.
struct Write<'a, 'j> {
    rows: &'a AppendedRows<'a>,
    job: &'a mut HeadJob<'j>,
}

impl Kernel for Write<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { rows, job } = self;
        let slots = &mut job.slots;
        let heads = rows.layout.kv_heads();
        let head = job.head;
        if let Some(coding) = rows.layout.coding(Side::Key) {
            let source = HeadRows { rows: rows.k, heads, head };
            write_side(
                coding,
                &source,
                slots.key_codes,
                slots.key_scales,
                &job.tokens,
                job.first_row,
            );
        }
        if let Some(coding) = rows.layout.coding(Side::Value) {
            let source = HeadRows { rows: rows.v, heads, head };
            let codes = &mut *slots.value_codes;
            let scales = &mut *slots.value_scales;
            write_side(coding, &source, codes, scales, &job.tokens, job.first_row);
        }
    }
}

/// One head of `[tokens, heads, dim]`.
struct HeadRows<'a> {
    rows: &'a [f32],
    heads: usize,
    head: usize,
}

#[inline(always)]
fn write_side(
    coding: SideCoding,
    source: &HeadRows<'_>,
    codes: &mut [u8],
    scales: &mut [u8],
    tokens: &Range<usize>,
    first_row: usize,
) {
    let mut work = Work::new(coding.dim);
    for (row, token) in (first_row..).zip(tokens.clone()) {
        let at = (row * source.heads + source.head) * coding.dim;
        coding.write(codes, scales, token, &source.rows[at..at + coding.dim], &mut work);
    }
}
