//! Recurrent layers, run by run.

mod token_by_token;

use mlx_ffi::ops::Conv;
use mlx_ffi::{Array, Dtype, ops};

use super::activations::activate;
use super::heads::concatenate_runs;
use crate::Result;
use crate::batch::Span;
use crate::cache::{ArrayCaches, ArrayState};
use crate::kernels::Runs;
use crate::recurrent::{Convolution, Mamba2, Scan};
use crate::shape::{dims, int, ints};

/// Tokens that the quadratic form of the scan takes at once.
const CHUNK_TOKENS: usize = 256;

pub(super) fn convolve(
    runs: Runs<'_, '_>,
    index: usize,
    x: &Array,
    layer: &Convolution,
) -> Result<Array> {
    let mut outputs = Vec::with_capacity(runs.caches.len());
    for (span, cache) in runs.batch.spans().iter().zip(runs.caches) {
        let state = cache.storage_mut::<ArrayCaches>().state_mut(index)?;
        state.advance(span.position, span.len)?;
        let (y, window) = filtered(&rows(x, span)?, state.window.take(), layer)?;
        state.window = Some(window);
        outputs.push(ops::squeeze(&y, 0)?);
    }
    concatenate_runs(&outputs)
}

pub(super) fn scan(
    runs: Runs<'_, '_>,
    index: usize,
    steps: &[&Array],
    scan: &Scan,
) -> Result<Array> {
    let mut outputs = Vec::with_capacity(runs.caches.len());
    for (span, cache) in runs.batch.spans().iter().zip(runs.caches) {
        let state = cache.storage_mut::<ArrayCaches>().state_mut(index)?;
        state.expect(span.position + span.len)?;
        let y = scan_run(state, span, steps, scan)?;
        outputs.push(ops::squeeze(&y, 0)?);
    }
    concatenate_runs(&outputs)
}

/// The scan over one run, `[1, tokens, width]`.
fn scan_run(state: &mut ArrayState, span: &Span, steps: &[&Array], scan: &Scan) -> Result<Array> {
    let inputs: Vec<_> = steps.iter().map(|x| rows(x, span)).collect::<Result<_>>()?;
    let before = state.sums.take();
    let (y, sums) = match (scan, inputs.as_slice()) {
        (Scan::Mamba2(scan), [xbc, dt]) => mamba2(xbc, dt, before, scan)?,
        (Scan::Mamba(scan), [x, dt, b, c]) => token_by_token::mamba([x, dt, b, c], before, scan)?,
        (Scan::GatedDelta(scan), [qkv, a, b]) => {
            token_by_token::gated_delta([qkv, a, b], before, scan)?
        }
        _ => unreachable!("`Pass::scan` checked the number of inputs"),
    };
    state.sums = Some(sums);
    let shape = ints([1, span.len, scan.width()])?;
    Ok(ops::astype(&ops::reshape(&y, &shape)?, steps[0].dtype())?)
}

/// Rows of one run as `[1, tokens, width]`.
fn rows(x: &Array, span: &Span) -> Result<Array> {
    let part = ops::slice_axis(x, 0, int(span.start)?, int(span.start + span.len)?)?;
    Ok(ops::expand_dims(&part, 0)?)
}

/// The causal convolution with its activation, and its last inputs.
fn filtered(x: &Array, window: Option<Array>, layer: &Convolution) -> Result<(Array, Array)> {
    let kept = layer.kernel() - 1;
    let channels = layer.channels();
    let window = match window {
        Some(window) => window,
        None => Array::zeros(&ints([1, kept, channels])?, x.dtype())?,
    };
    let padded = ops::concatenate(&[&window, x], 1)?;
    let total = dims(&padded)[1];
    let last = ops::slice_axis(&padded, 1, int(total - kept)?, int(total)?)?;
    let taps = ops::astype(&ops::swapaxes(layer.taps(), 0, 1)?, x.dtype())?;
    let conv = Conv { groups: int(channels)?, ..Conv::default() };
    let mut y = ops::conv1d(&padded, &ops::expand_dims(&taps, -1)?, conv)?;
    if let Some(bias) = layer.bias() {
        y = ops::add(&y, &ops::astype(bias, x.dtype())?)?;
    }
    if let Some(activation) = layer.activation() {
        y = activate(&y, activation)?;
    }
    // A copy: a view would keep all inputs of the run alive.
    Ok((y, ops::contiguous(&last)?))
}

/// Inputs of a scan, `[1, tokens, …]`.
struct Steps {
    /// `[heads, head_dim]` each, times the step.
    dtx: Array,
    /// `[heads]` each, times the rate of decay.
    dta: Array,
    /// `[groups, state_size]` each.
    b: Array,
    c: Array,
}

/// The scan of Mamba 2 over a run; the outputs are `[1, tokens, heads, head_dim]`.
fn mamba2(
    mixed: &Array,
    dt: &Array,
    mut sums: Option<Array>,
    layer: &Mamba2,
) -> Result<(Array, Array)> {
    let tokens = dims(mixed)[1];
    let inner = layer.inner();
    let wide = layer.groups * layer.state_size;
    let x = ops::slice_axis(mixed, -1, 0, int(inner)?)?;
    let x = ops::reshape(&x, &ints([1, tokens, layer.heads(), layer.head_dim])?)?;
    let grouped = ints([1, tokens, layer.groups, layer.state_size])?;
    let b = ops::slice_axis(mixed, -1, int(inner)?, int(inner + wide)?)?;
    let b = ops::reshape(&b, &grouped)?;
    let c = ops::slice_axis(mixed, -1, int(inner + wide)?, int(inner + 2 * wide)?)?;
    let c = ops::reshape(&c, &grouped)?;
    let dt = step_sizes(dt, layer)?;
    let dta = ops::multiply(&dt, &ops::negative(&ops::exp(&layer.a_log)?)?)?;
    let dtx = ops::multiply(&ops::expand_dims(&dt, -1)?, &x)?;
    let mut outputs = Vec::with_capacity(tokens.div_ceil(CHUNK_TOKENS));
    for first in (0..tokens).step_by(CHUNK_TOKENS) {
        let start = int(first)?;
        let end = int(tokens.min(first + CHUNK_TOKENS))?;
        let steps = Steps {
            dtx: ops::slice_axis(&dtx, 1, start, end)?,
            dta: ops::slice_axis(&dta, 1, start, end)?,
            b: ops::slice_axis(&b, 1, start, end)?,
            c: ops::slice_axis(&c, 1, start, end)?,
        };
        let (y, next) = chunk(&steps, sums.as_ref(), layer)?;
        outputs.push(ops::astype(&y, x.dtype())?);
        sums = Some(next);
    }
    let y = ops::concatenate(&outputs.iter().collect::<Vec<_>>(), 1)?;
    let d = ops::astype(&ops::expand_dims(&layer.d, -1)?, x.dtype())?;
    let sums = sums.expect("a run has at least one token");
    Ok((ops::add(&y, &ops::multiply(&x, &d)?)?, sums))
}

fn step_sizes(dt: &Array, layer: &Mamba2) -> Result<Array> {
    let dt = ops::add(&ops::astype(dt, Dtype::Float32)?, &layer.dt_bias)?;
    let dt = ops::logaddexp(&dt, &Array::scalar(0.0, Dtype::Float32)?)?;
    let least = Array::scalar(layer.limits.0.into(), Dtype::Float32)?;
    let most = Array::scalar(layer.limits.1.into(), Dtype::Float32)?;
    Ok(ops::minimum(&ops::maximum(&dt, &least)?, &most)?)
}

/// The scan over a few tokens in its quadratic form (state space duality, arXiv 2405.21060): the
/// outputs, and the sums after them.
fn chunk(steps: &Steps, sums: Option<&Array>, layer: &Mamba2) -> Result<(Array, Array)> {
    let tokens = dims(&steps.dta)[1];
    let repeats = int(layer.heads() / layer.groups)?;
    let dtx = ops::swapaxes(&steps.dtx, 1, 2)?;
    let b = ops::transpose(&steps.b, &[0, 2, 3, 1])?;
    let cb = ops::repeat(&ops::matmul(&ops::swapaxes(&steps.c, 1, 2)?, &b)?, repeats, 1)?;
    let rates = ops::expand_dims(&ops::swapaxes(&steps.dta, 1, 2)?, -1)?;
    let rates = ops::tril(&ops::repeat(&rates, int(tokens)?, -1)?, -1)?;
    let decay = ops::exp(&ops::cumsum(&rates, -2, false, true)?)?;
    let y = ops::matmul(&ops::tril(&ops::multiply(&cb, &decay)?, 0)?, &dtx)?;
    let y = ops::swapaxes(&y, 1, 2)?;
    let last = ops::slice_axis(&decay, 2, int(tokens - 1)?, int(tokens)?)?;
    let decayed = ops::multiply(&dtx, &ops::swapaxes(&last, 2, 3)?)?;
    let b = ops::swapaxes(&ops::repeat(&b, repeats, 1)?, 2, 3)?;
    let next = ops::matmul(&ops::swapaxes(&decayed, 2, 3)?, &b)?;
    match sums {
        Some(sums) => with_earlier(&y, &next, sums, steps, layer),
        None => Ok((y, next)),
    }
}

/// Adds the contribution of the sums before these tokens.
fn with_earlier(
    y: &Array,
    next: &Array,
    sums: &Array,
    steps: &Steps,
    layer: &Mamba2,
) -> Result<(Array, Array)> {
    let tokens = dims(&steps.dta)[1];
    let heads = layer.heads();
    let groups = layer.groups;
    let dim = layer.head_dim;
    let size = layer.state_size;
    let left = ops::exp(&ops::cumsum(&steps.dta, -2, false, true)?)?;
    let last = ops::slice_axis(&left, 1, int(tokens - 1)?, int(tokens)?)?;
    let last = ops::reshape(&last, &ints([1, heads, 1, 1])?)?;
    let next = ops::add(next, &ops::multiply(&last, sums)?)?;
    let c = ops::reshape(&steps.c, &ints([1, tokens, groups, 1, size, 1])?)?;
    let by_group = ops::reshape(sums, &ints([1, 1, groups, heads / groups, dim, size])?)?;
    let seen = ops::reshape(&ops::matmul(&by_group, &c)?, &ints([1, tokens, heads, dim])?)?;
    let seen = ops::multiply(&ops::expand_dims(&left, -1)?, &seen)?;
    Ok((ops::add(y, &seen)?, next))
}
