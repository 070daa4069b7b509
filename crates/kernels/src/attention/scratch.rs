//! Working memory of the attention kernels: its size, and one buffer kept per thread.

use super::AttentionParams;
use super::plan::{most_parts, unit_rows};
use super::rounding::{MAX_ROWS, PLANES, RoundedRows};
use super::softmax::SoftmaxState;
use super::unit::{Scratch, TILE_TOKENS};
use crate::kv::KV_BLOCK_TOKENS;
use std::cell::RefCell;

/// One cache line of f32, so that the buffer is aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct FloatLine(#[expect(dead_code, reason = "read through a slice of f32")] [f32; 16]);

/// f32 elements of each part of a thread's scratch, each a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    q: usize,
    keys: usize,
    values: usize,
    scores: usize,
    acc: usize,
    /// Four bytes to an element: rounded queries and weights.
    queries: usize,
    weights: usize,
    rows: usize,
    stride: usize,
}

impl Sizes {
    /// The scratch of one thread for `params`.
    pub(crate) fn of(params: &AttentionParams<'_>) -> Self {
        let rows = unit_rows(params);
        let stride = params.value_dim.next_multiple_of(16);
        Self {
            q: (rows * params.key_dim).next_multiple_of(16),
            keys: TILE_TOKENS * params.key_dim,
            values: TILE_TOKENS * stride,
            scores: rows * KV_BLOCK_TOKENS,
            acc: rows * stride,
            queries: (PLANES * MAX_ROWS * params.key_dim).div_ceil(4).next_multiple_of(16),
            weights: PLANES * MAX_ROWS * KV_BLOCK_TOKENS / 4,
            rows: rows.next_multiple_of(16),
            stride,
        }
    }

    fn elements(&self) -> usize {
        self.q
            + self.keys
            + self.values
            + self.scores
            + self.acc
            + self.queries
            + self.weights
            + (2 + PLANES) * MAX_ROWS
            + 2 * self.rows
    }

    /// Bytes of one thread's scratch.
    pub(crate) fn bytes(&self) -> usize {
        4 * self.elements()
    }
}

/// Bytes that [`super::attention`] may allocate in addition to its output with `threads` threads and
/// `runs` runs: the scratch of every thread, kept between calls, and the partial outputs of split
/// contexts.
#[must_use]
pub fn scratch_bytes(params: &AttentionParams<'_>, threads: usize, runs: usize) -> usize {
    let sizes = Sizes::of(params);
    let part = 4 * (sizes.acc + 2 * sizes.rows);
    threads * sizes.bytes() + runs * most_parts(threads) * part
}

thread_local! {
    static BUFFER: RefCell<Vec<FloatLine>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with this thread's scratch. Its contents are whatever the last call left.
pub(crate) fn with<R>(sizes: &Sizes, body: impl FnOnce(&mut Scratch<'_>) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        let lines = sizes.elements() / 16;
        if buffer.len() < lines {
            buffer.resize(lines, FloatLine([0.0; 16]));
        }
        let all = elements_of(buffer);
        let (q, rest) = all.split_at_mut(sizes.q);
        let (keys, rest) = rest.split_at_mut(sizes.keys);
        let (values, rest) = rest.split_at_mut(sizes.values);
        let (scores, rest) = rest.split_at_mut(sizes.scores);
        let (acc, rest) = rest.split_at_mut(sizes.acc);
        let (queries, rest) = rest.split_at_mut(sizes.queries);
        let (weights, rest) = rest.split_at_mut(sizes.weights);
        let (query_steps, rest) = rest.split_at_mut(MAX_ROWS);
        let (weight_steps, rest) = rest.split_at_mut(MAX_ROWS);
        let (offsets, rest) = rest.split_at_mut(PLANES * MAX_ROWS);
        let (max, sum) = rest.split_at_mut(sizes.rows);
        let rounded = RoundedRows {
            queries: bytemuck::cast_slice_mut(queries),
            query_steps,
            weight_steps,
            offsets: bytemuck::cast_slice_mut(offsets),
            weights: bytemuck::cast_slice_mut(weights),
        };
        let state = SoftmaxState { max, sum, acc, stride: sizes.stride };
        body(&mut Scratch { q, keys, values, scores, rounded, state })
    })
}

/// The elements of `lines`.
fn elements_of(lines: &mut [FloatLine]) -> &mut [f32] {
    let len = lines.len() * 16;
    // SAFETY: a `FloatLine` is 16 initialised f32 without padding (its alignment is its size), so the
    // lines are `len` of them; the slice borrows `lines` mutably.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}
