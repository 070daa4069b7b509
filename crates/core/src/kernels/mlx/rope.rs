//! Rotary embeddings on MLX: its fused rotation for runs of tokens, sines and cosines for grids.

use mlx_ffi::{Array, fast, ops};

use super::heads::{concatenate_runs, from_heads, to_heads};
use crate::batch::Batch;
use crate::shape::{int, ints, rows_cols};
use crate::{Error, Result, Rope};

pub(super) fn rope(batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    let x = scale_input(x, heads, rope)?;
    let freqs = Array::from_slice(rope.freqs(), &[int(rope.freqs().len())?])?;
    let layout =
        if rope.traditional() { fast::RopeLayout::Pairs } else { fast::RopeLayout::Halves };
    let angles = fast::RopeAngles::Freqs(&freqs);
    let rotation = fast::Rope { dims: int(rope.dims())?, layout, angles, scale: 1.0 };
    let mut rotated = Vec::with_capacity(batch.spans().len());
    for span in batch.spans() {
        let run = to_heads(&x, span, heads)?;
        rotated.push(from_heads(&fast::rope(&run, &rotation, int(span.position)?)?)?);
    }
    concatenate_runs(&rotated)
}

/// Uses sines and cosines of each row and frequency, since MLX's own rotation takes one position a
/// row.
pub(super) fn rope_on_grid(
    x: &Array,
    heads: usize,
    rope: &Rope,
    positions: &[i32],
) -> Result<Array> {
    if rope.traditional() {
        return Err(Error::Unsupported { feature: "rope with sections of neighbouring pairs" });
    }
    let (rows, width) = rows_cols(x);
    let pairs = rope.freqs().len();
    let head_dim = width / heads;
    let table = ints([rows, 1, pairs])?;
    let [cos, sin] = cos_sin(rope, positions);
    let cos = ops::astype(&Array::from_slice(&cos, &table)?, x.dtype())?;
    let sin = ops::astype(&Array::from_slice(&sin, &table)?, x.dtype())?;
    let x = ops::reshape(&scale_input(x, heads, rope)?, &ints([rows, heads, head_dim])?)?;
    let rotated_dims = int(2 * pairs)?;
    let a = ops::slice_axis(&x, -1, 0, int(pairs)?)?;
    let b = ops::slice_axis(&x, -1, int(pairs)?, rotated_dims)?;
    let low = ops::subtract(&ops::multiply(&a, &cos)?, &ops::multiply(&b, &sin)?)?;
    let high = ops::add(&ops::multiply(&a, &sin)?, &ops::multiply(&b, &cos)?)?;
    let mut parts = vec![low, high];
    if head_dim > 2 * pairs {
        parts.push(ops::slice_axis(&x, -1, rotated_dims, int(head_dim)?)?);
    }
    let parts: Vec<_> = parts.iter().collect();
    Ok(ops::reshape(&ops::concatenate(&parts, -1)?, &ints([rows, width])?)?)
}

/// Cosines and sines, `[rows, frequencies]`, of coordinates `[rows, sections]`.
#[expect(clippy::cast_precision_loss, reason = "angles are f32, as in MLX")]
fn cos_sin(rope: &Rope, positions: &[i32]) -> [Vec<f32>; 2] {
    let inverse = rope.inverse_freqs();
    let mut table = [Vec::new(), Vec::new()];
    for row in positions.chunks_exact(rope.sections().len()) {
        let by_pair = row.iter().zip(rope.sections());
        let by_pair = by_pair.flat_map(|(at, pairs)| std::iter::repeat_n(*at, *pairs));
        for (at, inverse) in by_pair.zip(inverse) {
            let angle = at as f32 * inverse;
            let (sin, cos) = angle.sin_cos();
            table[0].push(cos);
            table[1].push(sin);
        }
    }
    table
}

/// `x` with the rotated dimensions of each head multiplied by the rope's input scale.
fn scale_input(x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    if (rope.input_scale() - 1.0).abs() < f32::EPSILON {
        return Ok(x.clone());
    }
    let (rows, width) = rows_cols(x);
    let head_dim = width / heads;
    let mut factors = vec![1.0f32; head_dim];
    factors[..rope.dims()].fill(rope.input_scale());
    let factors = ops::astype(&Array::from_slice(&factors, &[int(head_dim)?])?, x.dtype())?;
    let by_head = ops::reshape(x, &ints([rows, heads, head_dim])?)?;
    Ok(ops::reshape(&ops::multiply(&by_head, &factors)?, x.shape())?)
}
