//! Scans that MLX's operations run one token at a time: Mamba 1 and the gated delta rule. In fp32,
//! as the state is kept.

use mlx_ffi::{Array, Dtype, fast, ops};

use crate::Result;
use crate::recurrent::{GatedDelta, Mamba};
use crate::shape::{dims, int, ints};

/// Added to the squared length of a query or key before it is divided by.
const EPS: f32 = 1e-6;

fn fp32(x: &Array) -> Result<Array> {
    Ok(ops::astype(x, Dtype::Float32)?)
}

/// Row `token` of `x`, `[1, tokens, …]`, without its first two dimensions.
fn row(x: &Array, token: usize) -> Result<Array> {
    let part = ops::slice_axis(x, 1, int(token)?, int(token + 1)?)?;
    Ok(ops::squeeze(&ops::squeeze(&part, 0)?, 0)?)
}

/// Steps from `state` through `tokens` tokens; the outputs are stacked, with a leading dimension of 1.
fn through(
    tokens: usize,
    mut state: Array,
    step: impl Fn(&Array, usize) -> Result<(Array, Array)>,
) -> Result<(Array, Array)> {
    let mut outputs = Vec::with_capacity(tokens);
    for token in 0..tokens {
        let (y, next) = step(&state, token)?;
        outputs.push(y);
        state = next;
    }
    let stacked = ops::stack(&outputs.iter().collect::<Vec<_>>(), 0)?;
    Ok((ops::expand_dims(&stacked, 0)?, state))
}

fn or_zeros<const N: usize>(state: Option<Array>, shape: [usize; N]) -> Result<Array> {
    match state {
        Some(state) => Ok(state),
        None => Ok(Array::zeros(&ints(shape)?, Dtype::Float32)?),
    }
}

/// The scan of Mamba 1 over a run; the outputs are `[1, tokens, channels]`.
pub(super) fn mamba(
    [x, dt, b, c]: [&Array; 4],
    state: Option<Array>,
    scan: &Mamba,
) -> Result<(Array, Array)> {
    let tokens = dims(x)[1];
    let channels = scan.d.size();
    let state = or_zeros(state, [channels, scan.state_size()])?;
    let x = fp32(x)?;
    let b = fp32(b)?;
    let c = fp32(c)?;
    let dt = ops::softplus(&fp32(dt)?)?;
    let input = ops::multiply(&dt, &x)?;
    let (y, state) = through(tokens, state, |state, token| {
        let dt = ops::expand_dims(&row(&dt, token)?, -1)?;
        let decay = ops::exp(&ops::multiply(&dt, &scan.rates)?)?;
        let input = ops::expand_dims(&row(&input, token)?, -1)?;
        let input = ops::multiply(&input, &ops::expand_dims(&row(&b, token)?, 0)?)?;
        let next = ops::add(&ops::multiply(state, &decay)?, &input)?;
        let c = ops::expand_dims(&row(&c, token)?, -1)?;
        Ok((ops::squeeze(&ops::matmul(&next, &c)?, -1)?, next))
    })?;
    Ok((ops::add(&y, &ops::multiply(&x, &scan.d)?)?, state))
}

/// The gated delta rule over a run; the outputs are `[1, tokens, value_heads, value_dim]`.
pub(super) fn gated_delta(
    [qkv, a, b]: [&Array; 3],
    state: Option<Array>,
    scan: &GatedDelta,
) -> Result<(Array, Array)> {
    let tokens = dims(qkv)[1];
    let heads = scan.heads();
    let state = or_zeros(state, [heads, scan.value_dim, scan.key_dim])?;
    let [q, k, v] = queries_keys_values(&fp32(qkv)?, scan)?;
    let steps = ops::softplus(&ops::add(&fp32(a)?, &scan.dt_bias)?)?;
    let rates = ops::negative(&ops::exp(&scan.a_log)?)?;
    let decay = ops::exp(&ops::multiply(&steps, &rates)?)?;
    let correction = ops::sigmoid(&fp32(b)?)?;
    through(tokens, state, |state, token| {
        let decay = ops::reshape(&row(&decay, token)?, &ints([heads, 1, 1])?)?;
        let old = ops::multiply(state, &decay)?;
        let k = row(&k, token)?;
        let known = ops::matmul(&old, &ops::expand_dims(&k, -1)?)?;
        let wrong = ops::subtract(&ops::expand_dims(&row(&v, token)?, -1)?, &known)?;
        let correction = ops::reshape(&row(&correction, token)?, &ints([heads, 1, 1])?)?;
        let input = ops::multiply(&wrong, &correction)?;
        let next = ops::add(&old, &ops::multiply(&input, &ops::expand_dims(&k, 1)?)?)?;
        let q = ops::expand_dims(&row(&q, token)?, -1)?;
        Ok((ops::squeeze(&ops::matmul(&next, &q)?, -1)?, next))
    })
}

/// Queries, keys and values by value head, `[1, tokens, value_heads, …]`: queries of length
/// `1/√key_dim`, keys of length 1.
fn queries_keys_values(qkv: &Array, scan: &GatedDelta) -> Result<[Array; 3]> {
    let keys = scan.keys();
    #[expect(clippy::cast_precision_loss, reason = "a head's dimension is below 2^24")]
    let root = (scan.key_dim as f32).sqrt();
    let q = with_length(&head_part(qkv, 0, keys, scan.key_heads)?, root.recip(), scan)?;
    let k = with_length(&head_part(qkv, keys, 2 * keys, scan.key_heads)?, 1.0, scan)?;
    let values = 2 * keys + scan.heads() * scan.value_dim;
    Ok([q, k, head_part(qkv, 2 * keys, values, scan.heads())?])
}

/// Elements from `from` up to `to` of each row, `[1, tokens, heads, …]`.
fn head_part(qkv: &Array, from: usize, to: usize, heads: usize) -> Result<Array> {
    let part = ops::slice_axis(qkv, -1, int(from)?, int(to)?)?;
    let shape = ints([1, dims(qkv)[1], heads, (to - from) / heads])?;
    Ok(ops::reshape(&part, &shape)?)
}

/// Queries or keys, `[1, tokens, key_heads, key_dim]`, scaled to `length` and repeated for each value
/// head.
#[expect(clippy::cast_precision_loss, reason = "a head's dimension is below 2^24")]
fn with_length(x: &Array, length: f32, scan: &GatedDelta) -> Result<Array> {
    let dim = scan.key_dim as f32;
    // The mean of squares is their sum over the dimension, and so is the epsilon.
    let x = fast::rms_norm(x, None, EPS / dim)?;
    let x = ops::multiply_scalar(&x, f64::from(length / dim.sqrt()))?;
    Ok(ops::repeat(&x, int(scan.heads() / scan.key_heads)?, 2)?)
}
