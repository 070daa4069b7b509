//! Rotary embeddings on MLX: its fused rotation for runs of tokens, sines and cosines for grids.

use mlx_ffi::{Array, fast, ops};

use super::{from_heads, join, to_heads};
use crate::batch::Batch;
use crate::shape::{int, ints, rows_cols};
use crate::{Error, Result, Rope};

pub(crate) fn rope(batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    let x = scale_input(x, heads, rope)?;
    let freqs = Array::from_slice(rope.freqs(), &[int(rope.freqs().len())?])?;
    let layout =
        if rope.traditional() { fast::RopeLayout::Pairs } else { fast::RopeLayout::Halves };
    let angles = fast::RopeAngles::Freqs(&freqs);
    let rotation = fast::Rope { dims: int(rope.dims())?, layout, angles, scale: 1.0 };
    let rotated = batch.spans().iter().map(|span| {
        let run = to_heads(&x, span, heads)?;
        from_heads(&fast::rope(&run, &rotation, int(span.position)?)?)
    });
    join(&rotated.collect::<Result<Vec<_>>>()?)
}

/// Sines and cosines of each row and frequency, since MLX's own rotation knows one position a row.
pub(crate) fn rope_on_grid(
    x: &Array,
    heads: usize,
    rope: &Rope,
    positions: &[i32],
) -> Result<Array> {
    if rope.traditional() {
        return Err(Error::Config { what: "rope sections of neighbouring pairs".into() });
    }
    let (rows, width) = rows_cols(x);
    let (pairs, head_dim) = (rope.freqs().len(), width / heads);
    let [cos, sin] = turns(rope, positions).map(|values| -> Result<Array> {
        let table = Array::from_slice(&values, &ints([rows, 1, pairs])?)?;
        Ok(ops::astype(&table, x.dtype())?)
    });
    let (cos, sin) = (cos?, sin?);
    let x = ops::reshape(&scale_input(x, heads, rope)?, &ints([rows, heads, head_dim])?)?;
    let part = |from: usize, to: usize| -> Result<Array> {
        Ok(ops::slice_axis(&x, -1, int(from)?, int(to)?)?)
    };
    let (a, b) = (part(0, pairs)?, part(pairs, 2 * pairs)?);
    let low = ops::subtract(&ops::multiply(&a, &cos)?, &ops::multiply(&b, &sin)?)?;
    let high = ops::add(&ops::multiply(&a, &sin)?, &ops::multiply(&b, &cos)?)?;
    let rest = part(2 * pairs, head_dim)?;
    let turned = if head_dim > 2 * pairs { vec![&low, &high, &rest] } else { vec![&low, &high] };
    Ok(ops::reshape(&ops::concatenate(&turned, -1)?, &ints([rows, width])?)?)
}

/// Cosines and sines, `[rows, frequencies]`, of coordinates `[rows, sections]`.
#[expect(clippy::cast_precision_loss, reason = "angles are f32, as in MLX")]
fn turns(rope: &Rope, positions: &[i32]) -> [Vec<f32>; 2] {
    let inverse = rope.inverse_freqs();
    let mut turns = [Vec::new(), Vec::new()];
    for row in positions.chunks_exact(rope.sections().len()) {
        let by_pair = row.iter().zip(&**rope.sections());
        let by_pair = by_pair.flat_map(|(at, pairs)| std::iter::repeat_n(*at, *pairs));
        for (at, inverse) in by_pair.zip(&*inverse) {
            let (sin, cos) = (at as f32 * inverse).sin_cos();
            turns[0].push(cos);
            turns[1].push(sin);
        }
    }
    turns
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
