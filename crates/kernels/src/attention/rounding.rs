//! Queries and softmax weights as two bytes each, for 8-bit dot products.
//!
//! One byte would do for Turbo caches if only the loss of quality counted (measured, in squared
//! error of the output: 0.3 to 1.1 % of turbo4's own), but not for int8 (as large as its own), and
//! it costs up to 2 % of single outputs. Two bytes make the rounding vanish beside f32 sums and
//! cost a third more time where memory is not the limit.

use crate::kv::block::HeadView;
use std::ops::Range;

/// Bytes per rounded query coordinate or weight, high byte first.
pub(crate) const PLANES: usize = 2;
/// Most query rows of the kernels on 8-bit dot products.
pub(crate) const MAX_ROWS: usize = 16;
/// Magnitude that the largest coordinate of a query is rounded to; its high byte fits in an i8.
pub(crate) const QUERY_MOST: f32 = 32512.0;
/// What the largest weight of a tile may be rounded to.
pub(crate) const WEIGHT_MOST: f32 = 65535.0;

/// Memory of these kernels; all sizes in elements.
pub(crate) struct ByteScratch<'a> {
    /// Rounded queries, `[PLANES, MAX_ROWS, key_dim]`.
    pub(crate) queries: &'a mut [i8],
    /// What one unit of a rounded query is worth, `[MAX_ROWS]`.
    pub(crate) query_steps: &'a mut [f32],
    /// −128·Σ of each row of `queries`, `[PLANES, MAX_ROWS]`.
    pub(crate) offsets: &'a mut [i32],
    /// Rounded weights, `[PLANES, MAX_ROWS, 256]`.
    pub(crate) weights: &'a mut [u8],
    /// What one unit of a rounded weight is worth, `[MAX_ROWS]`.
    pub(crate) weight_steps: &'a mut [f32],
}

/// A tile whose scores become rounded weights.
pub(crate) struct Tile<'a> {
    /// Values that the weights are for.
    pub(crate) view: &'a HeadView<'a>,
    /// Tokens of the block, whole sixteens.
    pub(crate) tokens: Range<usize>,
    /// Columns that any row sees.
    pub(crate) seen: Range<usize>,
    /// Columns that each row sees.
    pub(crate) visible: &'a [Range<usize>],
}
