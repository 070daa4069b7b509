//! Recurrent layers: all runs of a batch in one node, since their states change in place.

use std::sync::{Arc, Mutex};

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::Pool;
use mlxcel_kernels::elementwise::Glu;
use mlxcel_kernels::recurrent::{Conv, Scan2, Steps2, causal_conv, scan2};

use crate::batch::{Batch, Span};
use crate::cache::{HostState, SequenceCache, StateCache};
use crate::ops::Ops;
use crate::recurrent::Mamba2;
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

pub(crate) fn mamba2(
    ops: &Ops,
    batch: &Batch,
    index: usize,
    [xbc, dt]: [&Array; 2],
    layer: &Mamba2,
) -> Result<Array> {
    let state = |cache: &SequenceCache| match cache.state(index)? {
        StateCache::Host(state) => Ok(Arc::clone(state)),
        StateCache::Arrays(_) => {
            Err(Error::Cache { what: "an MLX state was given to the host kernel set".into() })
        }
    };
    let pass = Pass {
        pool: Arc::clone(ops.pool()),
        spans: batch.spans().to_vec(),
        states: batch.caches().iter().map(state).collect::<Result<_>>()?,
        limits: layer.limits,
        head_dim: layer.head_dim,
        groups: layer.groups,
        state_size: layer.state_size,
    };
    let mut inputs = vec![xbc, dt, &layer.taps, &layer.a_log, &layer.d, &layer.dt_bias];
    inputs.extend(&layer.conv_bias);
    let shape = ints([rows_cols(xbc).0, layer.inner()])?;
    let node = call_one("mamba2", &inputs, (&shape, Dtype::Float32), move |inputs, mut outputs| {
        pass.run(&inputs, outputs.f32(0)?)
    });
    Ok(node?)
}

/// One layer over all runs of a batch.
struct Pass {
    pool: Arc<Pool>,
    spans: Vec<Span>,
    states: Vec<Arc<Mutex<HostState>>>,
    limits: (f32, f32),
    head_dim: usize,
    groups: usize,
    state_size: usize,
}

impl Pass {
    fn run(&self, inputs: &HostInputs<'_>, out: &mut [f32]) -> Result<()> {
        let (xbc, dt, a_log) = (inputs.f32(0)?, inputs.f32(1)?, inputs.f32(3)?);
        let scan = Scan2 {
            a_log,
            d: inputs.f32(4)?,
            dt_bias: inputs.f32(5)?,
            limits: self.limits,
            head_dim: self.head_dim,
            groups: self.groups,
            state_size: self.state_size,
        };
        let (heads, inner) = (a_log.len(), a_log.len() * self.head_dim);
        let channels = inner + 2 * self.groups * self.state_size;
        let bias = if inputs.len() > 6 { Some(inputs.f32(6)?) } else { None };
        let conv = Conv { taps: inputs.f32(2)?, bias, channels, activation: Some(Glu::Silu) };
        for (span, state) in self.spans.iter().zip(&self.states) {
            let rows = |width: usize| span.start * width..(span.start + span.len) * width;
            let mut state = StateCache::lock(state);
            state.advance(span.position, span.len)?;
            let mut mixed = vec![0.0; span.len * channels];
            causal_conv(&self.pool, &xbc[rows(channels)], &conv, &mut state.state, &mut mixed)?;
            let steps = Steps2 { xbc: &mixed, dt: &dt[rows(heads)] };
            let out = &mut out[rows(inner)];
            scan2(&self.pool, &scan, &steps, &mut state.state.sums, out)?;
        }
        Ok(())
    }
}
