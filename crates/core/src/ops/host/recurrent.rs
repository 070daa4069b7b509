//! Recurrent layers: all runs of a batch in one call, since their states change in place. The
//! convolution comes first and counts the tokens; the scan depends on its output.

use std::sync::Mutex;

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::Pool;
use mlxcel_kernels::recurrent::{
    Conv, Delta, DeltaSteps, Scan1, Scan2, Steps1, Steps2, causal_conv, gated_delta, scan1, scan2,
};

use crate::batch::{Batch, Span};
use crate::cache::{HostState, SequenceCache, StateCache};
use crate::ops::Ops;
use crate::recurrent::{Convolution, Scan};
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

pub(crate) fn convolve(
    ops: &Ops,
    batch: &Batch,
    index: usize,
    x: &Array,
    layer: &Convolution,
) -> Result<Array> {
    let runs = Runs::new(ops, batch, index)?;
    let (channels, activation) = (layer.channels(), layer.activation());
    let mut inputs = vec![x, layer.taps()];
    inputs.extend(layer.bias());
    call_one("convolve", &inputs, (x.shape(), Dtype::Float32), |inputs, mut out| {
        let (x, out) = (inputs.f32(0)?, out.f32(0)?);
        let bias = if inputs.len() > 2 { Some(inputs.f32(2)?) } else { None };
        let conv = Conv { taps: inputs.f32(1)?, bias, channels, activation };
        for (span, state) in runs.each() {
            let mut state = StateCache::lock(state);
            state.advance(span.position, span.len)?;
            let rows = span.start * channels..(span.start + span.len) * channels;
            let (x, out) = (&x[rows.clone()], &mut out[rows]);
            causal_conv(runs.pool, x, &conv, &mut state.state, out)?;
        }
        Ok(())
    })
}

pub(crate) fn scan(
    ops: &Ops,
    batch: &Batch,
    index: usize,
    steps: &[&Array],
    scan: &Scan,
) -> Result<Array> {
    let runs = Runs::new(ops, batch, index)?;
    let rows = steps.first().map_or(0, |x| rows_cols(x).0);
    let (rule, parameters) = Rule::of(scan);
    let widths = scan.input_widths();
    let inputs: Vec<&Array> = steps.iter().copied().chain(parameters).collect();
    let (shape, width) = (ints([rows, scan.width()])?, scan.width());
    call_one("scan", &inputs, (&shape, Dtype::Float32), |inputs, mut out| {
        let out = out.f32(0)?;
        for (span, state) in runs.each() {
            let mut state = StateCache::lock(state);
            state.expect(span.position + span.len)?;
            let out = &mut out[span.start * width..(span.start + span.len) * width];
            let steps = Inputs { inputs, widths: &widths, span };
            rule.run(runs.pool, &steps, &mut state.state.sums, out)?;
        }
        Ok(())
    })
}

/// The runs of a batch and their states.
struct Runs<'a> {
    pool: &'a Pool,
    spans: &'a [Span],
    states: Vec<&'a Mutex<HostState>>,
}

impl<'a> Runs<'a> {
    fn new(ops: &'a Ops, batch: &'a Batch, index: usize) -> Result<Self> {
        let state = |cache: &'a SequenceCache| match cache.state(index)? {
            StateCache::Host(state) => Ok(&**state),
            StateCache::Arrays(_) => {
                Err(Error::Cache { what: "an MLX state was given to the host kernel set".into() })
            }
        };
        Ok(Self {
            pool: ops.pool(),
            spans: batch.spans(),
            states: batch.caches().iter().map(state).collect::<Result<_>>()?,
        })
    }

    fn each(&self) -> impl Iterator<Item = (&Span, &Mutex<HostState>)> {
        self.spans.iter().zip(self.states.iter().copied())
    }
}

/// What a scan reads: the steps of a run, and the parameters behind those of all runs.
struct Inputs<'a> {
    inputs: HostInputs<'a>,
    widths: &'a [usize],
    span: &'a Span,
}

impl<'a> Inputs<'a> {
    /// Input `index` of the run's steps.
    fn step(&self, index: usize) -> Result<&'a [f32]> {
        let (span, width) = (self.span, self.widths[index]);
        Ok(&self.inputs.f32(index)?[span.start * width..(span.start + span.len) * width])
    }

    fn parameter(&self, index: usize) -> Result<&'a [f32]> {
        Ok(self.inputs.f32(self.widths.len() + index)?)
    }
}

/// A scan without its arrays.
enum Rule {
    Mamba,
    Mamba2 { limits: (f32, f32), head_dim: usize, groups: usize, state_size: usize },
    GatedDelta { key_heads: usize, key_dim: usize, value_dim: usize },
}

impl Rule {
    fn of(scan: &Scan) -> (Self, Vec<&Array>) {
        match scan {
            Scan::Mamba(scan) => (Self::Mamba, vec![&scan.rates, &scan.d]),
            Scan::Mamba2(scan) => {
                let (limits, head_dim) = (scan.limits, scan.head_dim);
                let (groups, state_size) = (scan.groups, scan.state_size);
                let rule = Self::Mamba2 { limits, head_dim, groups, state_size };
                (rule, vec![&scan.a_log, &scan.d, &scan.dt_bias])
            }
            Scan::GatedDelta(scan) => {
                let (key_heads, key_dim) = (scan.key_heads, scan.key_dim);
                let rule = Self::GatedDelta { key_heads, key_dim, value_dim: scan.value_dim };
                (rule, vec![&scan.a_log, &scan.dt_bias])
            }
        }
    }

    fn run(&self, pool: &Pool, i: &Inputs<'_>, sums: &mut [f32], out: &mut [f32]) -> Result<()> {
        match *self {
            Self::Mamba => {
                let scan = Scan1 { rates: i.parameter(0)?, d: i.parameter(1)? };
                let (x, dt) = (i.step(0)?, i.step(1)?);
                let steps = Steps1 { x, dt, b: i.step(2)?, c: i.step(3)? };
                scan1(pool, &scan, &steps, sums, out)?;
            }
            Self::Mamba2 { limits, head_dim, groups, state_size } => {
                let (a_log, d, dt_bias) = (i.parameter(0)?, i.parameter(1)?, i.parameter(2)?);
                let scan = Scan2 { a_log, d, dt_bias, limits, head_dim, groups, state_size };
                scan2(pool, &scan, &Steps2 { xbc: i.step(0)?, dt: i.step(1)? }, sums, out)?;
            }
            Self::GatedDelta { key_heads, key_dim, value_dim } => {
                let (a_log, dt_bias) = (i.parameter(0)?, i.parameter(1)?);
                let layer = Delta { a_log, dt_bias, key_heads, key_dim, value_dim };
                let steps = DeltaSteps { qkv: i.step(0)?, a: i.step(1)?, b: i.step(2)? };
                gated_delta(pool, &layer, &steps, sums, out)?;
            }
        }
        Ok(())
    }
}
