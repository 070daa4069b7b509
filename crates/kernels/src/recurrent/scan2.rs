//! The selective scan of Mamba 2: one decay per head and token.
//!
//! `S ← exp(−exp(a)·Δ)·S + Δ·x⊗B`, `y = S·C + d·x`, with `Δ = clip(softplus(dt + bias))`, as mlx-lm
//! computes it. The sum runs token by token in fp32, head by head in parallel.

use super::{interleave, softplus};
use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// The parameters and sizes of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Scan2<'a> {
    /// Logarithm of the decay rate per head, `[heads]`.
    pub a_log: &'a [f32],
    /// Factor of the input on the output, `[heads]`.
    pub d: &'a [f32],
    /// Added to the step sizes, `[heads]`.
    pub dt_bias: &'a [f32],
    /// Least and largest step.
    pub limits: (f32, f32),
    /// Elements of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C.
    pub groups: usize,
    /// Elements of the state per element of a head.
    pub state_size: usize,
}

/// The inputs of a scan's steps.
#[derive(Clone, Copy, Debug)]
pub struct Steps2<'a> {
    /// `[tokens, heads · head_dim + 2 · groups · state_size]`: x, then B, then C.
    pub xbc: &'a [f32],
    /// `[tokens, heads]`.
    pub dt: &'a [f32],
}

impl Scan2<'_> {
    fn heads(&self) -> usize {
        self.a_log.len()
    }

    /// Elements of x, B and C of a token.
    fn width(&self) -> usize {
        self.heads() * self.head_dim + 2 * self.groups * self.state_size
    }

    fn check(&self) -> Result<()> {
        let heads = self.heads();
        check_len("D of a scan", self.d.len(), heads)?;
        check_len("bias of a scan's steps", self.dt_bias.len(), heads)?;
        for (what, value) in [
            ("heads of a scan", heads),
            ("head dimension of a scan", self.head_dim),
            ("state size of a scan", self.state_size),
        ] {
            if value == 0 {
                return Err(KernelError::Dimension { what, value, rule: "at least 1" });
            }
        }
        if self.groups == 0 || !heads.is_multiple_of(self.groups) {
            let rule = "a divisor of the number of heads";
            return Err(KernelError::Dimension { what: "groups", value: self.groups, rule });
        }
        Ok(())
    }
}

/// Runs over `steps` from `sums`, `[heads, head_dim, state_size]`, which it leaves as they are
/// after the last token. `out` is `[tokens, heads · head_dim]`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit.
pub fn scan2(
    pool: &Pool,
    scan: &Scan2<'_>,
    steps: &Steps2<'_>,
    sums: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    scan.check()?;
    let heads = scan.heads();
    let head_dim = scan.head_dim;
    let tokens = steps.dt.len() / heads;
    check_len("steps of a scan", steps.dt.len(), tokens * heads)?;
    check_len("inputs of a scan", steps.xbc.len(), tokens * scan.width())?;
    check_len("sums of a scan", sums.len(), heads * head_dim * scan.state_size)?;
    check_len("output of a scan", out.len(), tokens * heads * head_dim)?;
    // Each head's outputs lie together until all heads are done.
    let mut by_head = vec![0.0f32; out.len()];
    let states = sums.chunks_exact_mut(head_dim * scan.state_size);
    let outputs = by_head.chunks_exact_mut((tokens * head_dim).max(1));
    let mut jobs: Vec<_> = states.zip(outputs).enumerate().collect();
    pool.for_rows_mut(&mut jobs, 1, 1, |_, _, jobs| {
        for (head, (sums, out)) in jobs {
            dispatch(pool.cpu(), ScanHead { scan, steps, head: *head, sums, out });
        }
    });
    interleave(pool, &by_head, head_dim, heads * head_dim, out);
    Ok(())
}

/// One head over all tokens.
struct ScanHead<'a> {
    scan: &'a Scan2<'a>,
    steps: &'a Steps2<'a>,
    head: usize,
    /// `[head_dim, state_size]`.
    sums: &'a mut [f32],
    /// `[tokens, head_dim]`.
    out: &'a mut [f32],
}

impl Kernel for ScanHead<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { scan, steps, head, sums, out } = self;
        let heads = scan.heads();
        let head_dim = scan.head_dim;
        let size = scan.state_size;
        let inner = heads * head_dim;
        let group = head / (heads / scan.groups) * size;
        let rate = -scan.a_log[head].exp();
        for (token, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let xbc = &steps.xbc[token * scan.width()..][..scan.width()];
            let dt = softplus(steps.dt[token * heads + head] + scan.dt_bias[head]);
            let dt = dt.max(scan.limits.0).min(scan.limits.1);
            let decay = (rate * dt).exp();
            let b = &xbc[inner + group..][..size];
            let c = &xbc[inner + scan.groups * size + group..][..size];
            let x = &xbc[head * head_dim..][..head_dim];
            for ((sums, x), out) in sums.chunks_exact_mut(size).zip(x).zip(out) {
                *out = step(simd, sums, decay, dt * x, b, c) + scan.d[head] * x;
            }
        }
    }
}

/// `s = decay · s + input · b`, and `s · c`.
#[inline(always)]
fn step<S: Simd>(simd: S, s: &mut [f32], decay: f32, input: f32, b: &[f32], c: &[f32]) -> f32 {
    let (s, s_tail) = s.as_chunks_mut::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let (c, c_tail) = c.as_chunks::<LANES>();
    let decays = simd.splat(decay);
    let inputs = simd.splat(input);
    let mut sum = simd.zero();
    for ((s, b), c) in s.iter_mut().zip(b).zip(c) {
        // SAFETY: each of the three has 16 values.
        unsafe {
            let old = simd.mul(decays, simd.load(s.as_ptr()));
            let new = simd.fma(inputs, simd.load(b.as_ptr()), old);
            simd.store(s.as_mut_ptr(), new);
            sum = simd.fma(new, simd.load(c.as_ptr()), sum);
        }
    }
    let mut total = simd.sum(sum);
    for ((s, b), c) in s_tail.iter_mut().zip(b_tail).zip(c_tail) {
        *s = decay * *s + input * b;
        total += *s * c;
    }
    total
}
