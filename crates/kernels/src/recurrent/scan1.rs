//! The selective scan of Mamba 1: a decay per channel and element of its state.
//!
//! `s ← exp(Δ·a)·s + Δ·x·B`, `y = s·C + d·x` per channel, with `Δ = softplus(dt)`, as mlx-lm computes
//! it. The sum runs token by token in fp32, blocks of channels in parallel.

use super::interleave;
use crate::error::{KernelError, Result, check_len};
use crate::math;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Channels that a worker takes at once.
const BLOCK: usize = 4 * LANES;

/// The parameters of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Scan1<'a> {
    /// Rates of decay, negative, `[channels, state_size]`.
    pub rates: &'a [f32],
    /// Factor of the input on the output, `[channels]`.
    pub d: &'a [f32],
}

/// The inputs of a scan's steps.
#[derive(Clone, Copy, Debug)]
pub struct Steps1<'a> {
    /// `[tokens, channels]`.
    pub x: &'a [f32],
    /// ChannelStep sizes before the softplus, `[tokens, channels]`.
    pub dt: &'a [f32],
    /// `[tokens, state_size]`.
    pub b: &'a [f32],
    /// `[tokens, state_size]`.
    pub c: &'a [f32],
}

/// Runs over `steps` from `sums`, `[channels, state_size]`, which it leaves as they are after the
/// last token. `out` is `[tokens, channels]`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit.
pub fn scan1(
    pool: &Pool,
    scan: &Scan1<'_>,
    steps: &Steps1<'_>,
    sums: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let channels = scan.d.len();
    let tokens = out.len() / scan.d.len().max(1);
    let size = scan.rates.len() / channels.max(1);
    for (what, value) in [("channels of a scan", channels), ("state size of a scan", size)] {
        if value == 0 {
            return Err(KernelError::Dimension { what, value, rule: "at least 1" });
        }
    }
    check_len("decay rates of a scan", scan.rates.len(), channels * size)?;
    check_len("output of a scan", out.len(), tokens * channels)?;
    check_len("inputs of a scan", steps.x.len(), tokens * channels)?;
    check_len("steps of a scan", steps.dt.len(), tokens * channels)?;
    check_len("B of a scan", steps.b.len(), tokens * size)?;
    check_len("C of a scan", steps.c.len(), tokens * size)?;
    check_len("sums of a scan", sums.len(), channels * size)?;
    let mut by_block = vec![0.0f32; out.len()];
    let states = sums.chunks_mut(BLOCK * size);
    let outputs = by_block.chunks_mut((tokens * BLOCK).max(1));
    let mut jobs: Vec<_> = states.zip(outputs).enumerate().collect();
    pool.for_rows_mut(&mut jobs, 1, 1, |_, _, jobs| {
        for (block, (sums, out)) in jobs {
            dispatch(
                pool.cpu(),
                ChannelBlock { scan, steps, first: *block * BLOCK, size, sums, out },
            );
        }
    });
    interleave(pool, &by_block, BLOCK, channels, out);
    Ok(())
}

/// A block of channels over all tokens.
struct ChannelBlock<'a> {
    scan: &'a Scan1<'a>,
    steps: &'a Steps1<'a>,
    /// Its first channel.
    first: usize,
    size: usize,
    /// `[channels of the block, size]`.
    sums: &'a mut [f32],
    /// `[tokens, channels of the block]`.
    out: &'a mut [f32],
}

impl Kernel for ChannelBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { scan, steps, first, size, sums, out } = self;
        let all = scan.d.len();
        let channels = sums.len() / size;
        for (token, out) in out.chunks_exact_mut(channels).enumerate() {
            let row = token * all + first..token * all + first + channels;
            let x = &steps.x[row.clone()];
            let dt = step_sizes(simd, &steps.dt[row]);
            let range = token * size..(token + 1) * size;
            let b = &steps.b[range.clone()];
            let c = &steps.c[range];
            for (i, sums) in sums.chunks_exact_mut(size).enumerate() {
                let rates = &scan.rates[(first + i) * size..][..size];
                let y =
                    ChannelStep { step: dt[i], input: dt[i] * x[i], rates, b, c }.run(simd, sums);
                out[i] = y + scan.d[first + i] * x[i];
            }
        }
    }
}

/// `softplus(dt)` of the channels of a block.
#[inline(always)]
fn step_sizes<S: Simd>(simd: S, dt: &[f32]) -> [f32; BLOCK] {
    let mut steps = [0.0; BLOCK];
    steps[..dt.len()].copy_from_slice(dt);
    for steps in steps.as_chunks_mut::<LANES>().0 {
        // SAFETY: `steps` has 16 values.
        unsafe {
            let value = math::softplus(simd, simd.load(steps.as_ptr()));
            simd.store(steps.as_mut_ptr(), value);
        }
    }
    steps
}

/// One token's step of one channel's state.
struct ChannelStep<'a> {
    step: f32,
    input: f32,
    rates: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
}

impl ChannelStep<'_> {
    /// `s = exp(step · rates) · s + input · b`; returns `s · c`.
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, s: &mut [f32]) -> f32 {
        let (s, s_tail) = s.as_chunks_mut::<LANES>();
        let (rates, rates_tail) = self.rates.as_chunks::<LANES>();
        let (b, b_tail) = self.b.as_chunks::<LANES>();
        let (c, c_tail) = self.c.as_chunks::<LANES>();
        let steps = simd.splat(self.step);
        let inputs = simd.splat(self.input);
        let mut sum = simd.zero();
        for (((s, rates), b), c) in s.iter_mut().zip(rates).zip(b).zip(c) {
            // SAFETY: each of the four has 16 values.
            unsafe {
                let decay = math::exp(simd, simd.mul(steps, simd.load(rates.as_ptr())));
                let old = simd.mul(decay, simd.load(s.as_ptr()));
                let new = simd.fma(inputs, simd.load(b.as_ptr()), old);
                simd.store(s.as_mut_ptr(), new);
                sum = simd.fma(new, simd.load(c.as_ptr()), sum);
            }
        }
        let mut total = simd.sum(sum);
        for (((s, rate), b), c) in s_tail.iter_mut().zip(rates_tail).zip(b_tail).zip(c_tail) {
            *s = (self.step * rate).exp() * *s + self.input * b;
            total += *s * c;
        }
        total
    }
}
