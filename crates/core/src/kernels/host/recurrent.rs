//! Recurrent layers: all runs of a batch in one call, since their states change in place. The
//! convolution comes first and counts the tokens; the scan depends on its output.

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::Pool;
use mlxcel_kernels::recurrent::{
    Conv, Delta, DeltaSteps, Scan1, Scan2, Steps1, Steps2, causal_conv, gated_delta, scan1, scan2,
};

use crate::Result;
use crate::batch::Span;
use crate::cache::{HostCaches, HostState, SequenceCache};
use crate::kernels::Runs;
use crate::recurrent::{Convolution, Scan};
use crate::shape::{ints, rows_cols};

pub(super) fn convolve(
    pool: &Pool,
    runs: Runs<'_, '_>,
    index: usize,
    x: &Array,
    layer: &Convolution,
) -> Result<Array> {
    let mut states = states(runs.caches, index)?;
    let channels = layer.channels();
    let mut inputs = vec![x, layer.taps()];
    inputs.extend(layer.bias());
    call_one("convolve", &inputs, (x.shape(), Dtype::Float32), |inputs, mut out| {
        let conv = Conv {
            taps: inputs.f32(1)?,
            bias: if inputs.len() > 2 { Some(inputs.f32(2)?) } else { None },
            channels,
            activation: layer.activation(),
        };
        let x = inputs.f32(0)?;
        let out = out.f32(0)?;
        for (span, state) in runs.batch.spans().iter().zip(&mut states) {
            state.advance(span.position, span.len)?;
            let elems = span.start * channels..(span.start + span.len) * channels;
            causal_conv(pool, &x[elems.clone()], &conv, &mut state.state, &mut out[elems])?;
        }
        Ok(())
    })
}

pub(super) fn scan(
    pool: &Pool,
    runs: Runs<'_, '_>,
    index: usize,
    steps: &[&Array],
    scan: &Scan,
) -> Result<Array> {
    let mut states = states(runs.caches, index)?;
    let rows = steps.first().map_or(0, |x| rows_cols(x).0);
    let widths = scan.input_widths();
    let width = scan.width();
    let inputs: Vec<&Array> = steps.iter().copied().chain(parameters(scan)).collect();
    let shape = ints([rows, width])?;
    call_one("scan", &inputs, (&shape, Dtype::Float32), |inputs, mut out| {
        let out = out.f32(0)?;
        for (span, state) in runs.batch.spans().iter().zip(&mut states) {
            state.expect(span.position + span.len)?;
            let out = &mut out[span.start * width..(span.start + span.len) * width];
            let steps = ScanInputs { inputs, widths: &widths, span };
            run(pool, scan, &steps, &mut state.state.sums, out)?;
        }
        Ok(())
    })
}

/// State of recurrent layer `index` in each cache.
fn states<'a>(
    caches: &'a mut [&mut SequenceCache],
    index: usize,
) -> Result<Vec<&'a mut HostState>> {
    let mut states = Vec::with_capacity(caches.len());
    for cache in caches {
        states.push(cache.storage_mut::<HostCaches>().state_mut(index)?);
    }
    Ok(states)
}

/// Inputs of a scan: the steps of a run; the parameters follow the steps of all runs.
struct ScanInputs<'a> {
    inputs: HostInputs<'a>,
    widths: &'a [usize],
    span: &'a Span,
}

impl<'a> ScanInputs<'a> {
    /// Input `index` of the run's steps.
    fn step(&self, index: usize) -> Result<&'a [f32]> {
        let width = self.widths[index];
        let elems = self.span.start * width..(self.span.start + self.span.len) * width;
        Ok(&self.inputs.f32(index)?[elems])
    }

    /// Array `index` of [`parameters`].
    fn parameter(&self, index: usize) -> Result<&'a [f32]> {
        Ok(self.inputs.f32(self.widths.len() + index)?)
    }
}

/// Arrays of a scan's parameters.
fn parameters(scan: &Scan) -> Vec<&Array> {
    match scan {
        Scan::Mamba(scan) => vec![&scan.rates, &scan.d],
        Scan::Mamba2(scan) => vec![&scan.a_log, &scan.d, &scan.dt_bias],
        Scan::GatedDelta(scan) => vec![&scan.a_log, &scan.dt_bias],
    }
}

/// Runs the scan over one run.
fn run(
    pool: &Pool,
    scan: &Scan,
    i: &ScanInputs<'_>,
    sums: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    match scan {
        Scan::Mamba(_) => {
            let layer = Scan1 { rates: i.parameter(0)?, d: i.parameter(1)? };
            let steps = Steps1 { x: i.step(0)?, dt: i.step(1)?, b: i.step(2)?, c: i.step(3)? };
            scan1(pool, &layer, &steps, sums, out)?;
        }
        Scan::Mamba2(scan) => {
            let layer = Scan2 {
                a_log: i.parameter(0)?,
                d: i.parameter(1)?,
                dt_bias: i.parameter(2)?,
                limits: scan.limits,
                head_dim: scan.head_dim,
                groups: scan.groups,
                state_size: scan.state_size,
            };
            scan2(pool, &layer, &Steps2 { xbc: i.step(0)?, dt: i.step(1)? }, sums, out)?;
        }
        Scan::GatedDelta(scan) => {
            let layer = Delta {
                a_log: i.parameter(0)?,
                dt_bias: i.parameter(1)?,
                key_heads: scan.key_heads,
                key_dim: scan.key_dim,
                value_dim: scan.value_dim,
            };
            let steps = DeltaSteps { qkv: i.step(0)?, a: i.step(1)?, b: i.step(2)? };
            gated_delta(pool, &layer, &steps, sums, out)?;
        }
    }
    Ok(())
}
