//! Norms of rows: root mean square, and mean and variance.
//!
//! Loops are written over arrays of sixteen lanes, which the compiler turns into the vectors of
//! the instruction set that [`dispatch`] enables; sums are `f32`, one per lane.

use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Least number of elements for a parallel region.
const CHUNK: usize = 16 << 10;

/// `out = x / √(mean(x²) + eps) · weight`, row by row.
///
/// `x` and `out` are rows of `weight.len()` values.
///
/// # Errors
/// [`KernelError::Length`] when `x` is not whole rows or `out` has another length.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    grouped_rms_norm(pool, x, weight, weight.len(), eps, out)
}

/// [`rms_norm`] where each `group` values of a row have a mean of their own.
///
/// # Errors
/// Errors of [`rms_norm`], and [`KernelError::Dimension`] for a group that does not divide a row.
pub fn grouped_rms_norm(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    group: usize,
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    if group == 0 || !weight.len().is_multiple_of(group) {
        let rule = "a divisor of the norm's weight";
        return Err(KernelError::Dimension { what: "group of a norm", value: group, rule });
    }
    let kind = NormKind::Rms;
    let bias = &[][..];
    rows(pool, x, weight.len(), out, |x, out| NormRow { kind, x, weight, bias, group, eps, out })
}

/// `out = (x − mean(x)) / √(var(x) + eps) · weight + bias`, row by row.
///
/// `x` and `out` are rows of `weight.len()` values; `bias` is as long, or empty.
///
/// # Errors
/// [`KernelError::Length`] when lengths disagree.
pub fn layer_norm(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    if !bias.is_empty() {
        check_len("bias of a norm", bias.len(), weight.len())?;
    }
    let kind = NormKind::Layer;
    let group = weight.len();
    rows(pool, x, group, out, |x, out| NormRow { kind, x, weight, bias, group, eps, out })
}

fn rows<'a, F>(pool: &Pool, x: &'a [f32], len: usize, out: &mut [f32], row: F) -> Result<()>
where
    F: for<'r> Fn(&'a [f32], &'r mut [f32]) -> NormRow<'a, 'r> + Sync,
{
    check_len("output of a norm", out.len(), x.len())?;
    if len == 0 || !x.len().is_multiple_of(len) {
        let rule = "a multiple of the norm's weight";
        return Err(KernelError::Dimension {
            what: "length of a norm's input",
            value: x.len(),
            rule,
        });
    }
    pool.for_rows_mut(out, len, CHUNK.div_ceil(len), |_, first, out| {
        for (x, out) in x[first * len..].chunks_exact(len).zip(out.chunks_exact_mut(len)) {
            dispatch(pool.cpu(), row(x, out));
        }
    });
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum NormKind {
    Rms,
    Layer,
}

struct NormRow<'a, 'r> {
    kind: NormKind,
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    /// Values that are normalised together.
    group: usize,
    eps: f32,
    out: &'r mut [f32],
}

impl Kernel for NormRow<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        #[expect(clippy::cast_precision_loss, reason = "dimensions are below 2^24")]
        let len = self.group as f32;
        let groups = self.x.chunks_exact(self.group).zip(self.weight.chunks_exact(self.group));
        for ((x, weight), out) in groups.zip(self.out.chunks_exact_mut(self.group)) {
            let mean = if self.kind == NormKind::Layer { sum(x, |x| x) / len } else { 0.0 };
            let square = sum(x, |x| (x - mean) * (x - mean)) / len;
            let factor = 1.0 / (square + self.eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = (x - mean) * factor * weight;
            }
        }
        for (out, bias) in self.out.iter_mut().zip(self.bias) {
            *out += bias;
        }
    }
}

/// Sum of `f` over `x`, in sixteen lanes.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|x| f(*x)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, pools};

    /// The definition, in f64.
    fn oracle(kind: NormKind, x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let mean = if kind == NormKind::Layer { mean } else { 0.0 };
        let square = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (square + f64::from(eps)).sqrt();
        let bias = bias.iter().map(|b| f64::from(*b)).chain(std::iter::repeat(0.0));
        let scaled =
            x.iter().zip(weight).map(|(x, w)| (f64::from(*x) - mean) * factor * f64::from(*w));
        scaled.zip(bias).map(|(y, b)| y + b).collect()
    }

    fn check(pool: &Pool, rng: &mut Rng, len: usize, kind: NormKind) {
        let weight = rng.normals(len);
        let bias = rng.normals(len);
        let x = rng.normals(3 * len);
        let mut out = vec![0.0; x.len()];
        match kind {
            NormKind::Rms => rms_norm(pool, &x, &weight, 1e-5, &mut out).unwrap(),
            NormKind::Layer => layer_norm(pool, &x, &weight, &bias, 1e-5, &mut out).unwrap(),
        }
        let bias = if kind == NormKind::Layer { &bias[..] } else { &[] };
        for (x, out) in x.chunks_exact(len).zip(out.chunks_exact(len)) {
            for (out, expected) in out.iter().zip(oracle(kind, x, &weight, bias, 1e-5)) {
                assert!((f64::from(*out) - expected).abs() < 2e-5 * (1.0 + expected.abs()));
            }
        }
    }

    #[test]
    fn norms_match_the_definition() {
        let mut rng = Rng::fresh();
        for pool in pools() {
            for len in [1, 15, 16, 17, 64, 897, 4096] {
                check(&pool, &mut rng, len, NormKind::Rms);
                check(&pool, &mut rng, len, NormKind::Layer);
            }
        }
    }

    #[test]
    fn parts_of_rows_are_refused() {
        let pool = Pool::new(1).unwrap();
        assert!(rms_norm(&pool, &[0.0; 5], &[1.0; 4], 1e-5, &mut [0.0; 5]).is_err());
        assert!(rms_norm(&pool, &[0.0; 4], &[], 1e-5, &mut [0.0; 4]).is_err());
        assert!(rms_norm(&pool, &[0.0; 4], &[1.0; 4], 1e-5, &mut [0.0; 8]).is_err());
        for group in [0, 3] {
            assert!(
                grouped_rms_norm(&pool, &[0.0; 4], &[1.0; 4], group, 1e-5, &mut [0.0; 4]).is_err()
            );
        }
    }

    /// Each group is what a norm of its own makes of it.
    #[test]
    fn groups_have_means_of_their_own() {
        let mut rng = Rng::fresh();
        for pool in pools() {
            let rows = 5;
            let len = 42;
            let group = 14;
            let x = rng.normals(rows * len);
            let weight = rng.normals(len);
            let mut grouped = vec![0.0; x.len()];
            grouped_rms_norm(&pool, &x, &weight, group, 1e-5, &mut grouped).unwrap();
            for (at, x) in x.chunks_exact(group).enumerate() {
                let first = at * group % len;
                let mut alone = vec![0.0; group];
                rms_norm(&pool, x, &weight[first..first + group], 1e-5, &mut alone).unwrap();
                assert_eq!(alone, grouped[at * group..(at + 1) * group]);
            }
        }
    }
}
