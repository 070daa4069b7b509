//! Queries and softmax weights as one or two bytes, for 8-bit dot products.

use crate::kv::KvFormat;

/// Most query rows of these kernels.
pub(crate) const MAX_ROWS: usize = 16;
/// Bytes per rounded query coordinate or weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planes {
    /// 8 bits: for caches whose own error is far larger.
    One,
    /// 16 bits.
    Two,
}

/// Memory of these kernels; all sizes in elements.
pub(crate) struct ByteScratch<'a> {
    /// Rounded queries, `[2, MAX_ROWS, key_dim]`: high bytes, then low bytes.
    pub(crate) queries: &'a mut [i8],
    /// What one unit of a rounded query is worth, `[MAX_ROWS]`.
    pub(crate) steps: &'a mut [f32],
    /// −128·Σ of each row of `queries`, `[2, MAX_ROWS]`.
    pub(crate) offsets: &'a mut [i32],
    /// Rounded weights, `[2, MAX_ROWS, 256]`.
    pub(crate) weights: &'a mut [u8],
}

impl Planes {
    /// What rounding suits a cache format: its cost stays below a tenth of the format's own.
    pub(crate) fn of(format: KvFormat) -> Self {
        match format {
            KvFormat::Turbo4 | KvFormat::Turbo3 => Self::One,
            KvFormat::F32 | KvFormat::F16 | KvFormat::Bf16 | KvFormat::Int8 => Self::Two,
        }
    }
}

/// Rounds the queries `q` (`[rows, dim]`) into `to`.
pub(crate) fn round_queries(planes: Planes, dim: usize, q: &[f32], to: &mut ByteScratch<'_>) {
    let (high, low) = to.queries.split_at_mut(MAX_ROWS * dim);
    for (row, q) in q.chunks_exact(dim).enumerate() {
        let at = row * dim..(row + 1) * dim;
        let largest = q.iter().fold(0.0f32, |a, x| if x.abs() <= a { a } else { x.abs() });
        let most = if planes == Planes::One { 127.0 } else { 32512.0 };
        // An infinite or NaN query makes its scores NaN.
        to.steps[row] = if largest.is_finite() { largest / most } else { f32::NAN };
        let inverse = if largest > 0.0 { most / largest } else { 0.0 };
        let mut sums = [0i32; 2];
        for ((q, high), low) in q.iter().zip(&mut high[at.clone()]).zip(&mut low[at]) {
            let whole = nearest(q * inverse);
            let top = if planes == Planes::One { whole } else { (whole + 128) >> 8 };
            let rest = if planes == Planes::One { 0 } else { whole - (top << 8) };
            (*high, *low) = (byte(top), byte(rest));
            sums = [sums[0] + top, sums[1] + rest];
        }
        to.offsets[row] = -128 * sums[0];
        to.offsets[MAX_ROWS + row] = -128 * sums[1];
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a float below 2^15, or NaN, which gives 0")]
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

#[expect(clippy::cast_possible_truncation, reason = "a signed byte by construction")]
fn byte(x: i32) -> i8 {
    x as i8
}
