//! Rotary position embeddings: pairs of coordinates of a head, turned by an angle that grows with
//! the position.

use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, Simd, dispatch};

/// Elements that are worth a parallel region of their own.
const CHUNK: usize = 16 << 10;

/// Which coordinates of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Coordinate i with coordinate i + dims/2.
    Halves,
    /// Coordinate 2i with coordinate 2i + 1.
    Neighbours,
}

/// A rotation of the first `2 · inverse.len()` coordinates of each head.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Angle per position of each pair.
    pub inverse: &'a [f32],
    /// Which coordinates are pairs.
    pub pairing: Pairing,
    /// What the rotated coordinates are multiplied by beforehand.
    pub scale: f32,
}

/// Turns every head of every row: `x` is `[positions.len(), heads, head_dim]`, row `t` at
/// `positions[t]`. Coordinates beyond the rotated ones stay as they are.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that disagree.
pub fn rope(
    pool: &Pool,
    x: &mut [f32],
    head_dim: usize,
    positions: &[i32],
    rotation: &Rotation<'_>,
) -> Result<()> {
    if positions.is_empty() {
        return check_len("rows of a rotation", x.len(), 0);
    }
    let row = x.len() / positions.len();
    check_len("rows of a rotation", x.len(), row * positions.len())?;
    let pairs = rotation.inverse.len();
    if head_dim == 0 || !row.is_multiple_of(head_dim) || row == 0 || 2 * pairs > head_dim {
        let rule = "a divisor of the row, and at least the rotated coordinates";
        return Err(KernelError::Dimension { what: "head_dim", value: head_dim, rule });
    }
    pool.for_rows_mut(x, row, CHUNK.div_ceil(row), |_, first, rows| {
        let mut angles = vec![(0.0, 0.0); pairs];
        for (row, position) in rows.chunks_exact_mut(row).zip(&positions[first..]) {
            fill(&mut angles, *position, rotation);
            let turn = Turn { row, head_dim, angles: &angles, pairing: rotation.pairing };
            dispatch(pool.cpu(), turn);
        }
    });
    Ok(())
}

/// Sine and cosine of each pair at `position`, the scale included.
#[expect(clippy::cast_precision_loss, reason = "angles are f32, as in MLX")]
fn fill(angles: &mut [(f32, f32)], position: i32, rotation: &Rotation<'_>) {
    for (angle, inverse) in angles.iter_mut().zip(rotation.inverse) {
        let (sin, cos) = (position as f32 * inverse).sin_cos();
        *angle = (sin * rotation.scale, cos * rotation.scale);
    }
}

/// One row, all heads.
struct Turn<'a> {
    row: &'a mut [f32],
    head_dim: usize,
    angles: &'a [(f32, f32)],
    pairing: Pairing,
}

impl Kernel for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let pairs = self.angles.len();
        for head in self.row.chunks_exact_mut(self.head_dim) {
            match self.pairing {
                Pairing::Halves => {
                    let (low, rest) = head.split_at_mut(pairs);
                    for ((a, b), angle) in low.iter_mut().zip(rest).zip(self.angles) {
                        (*a, *b) = turned(*a, *b, *angle);
                    }
                }
                Pairing::Neighbours => {
                    for (pair, angle) in head.chunks_exact_mut(2).zip(self.angles) {
                        (pair[0], pair[1]) = turned(pair[0], pair[1], *angle);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turned(a: f32, b: f32, (sin, cos): (f32, f32)) -> (f32, f32) {
    (a * cos - b * sin, a * sin + b * cos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, pools};

    #[test]
    fn rotations_match_the_definition() {
        let mut rng = Rng::fresh();
        for pool in pools() {
            for (heads, dim, pairs) in
                [(1, 2, 1), (3, 64, 32), (2, 80, 16), (5, 33, 7), (4, 128, 64)]
            {
                for pairing in [Pairing::Halves, Pairing::Neighbours] {
                    check(&pool, &mut rng, (heads, dim, pairs), pairing);
                }
            }
        }
    }

    fn check(
        pool: &Pool,
        rng: &mut Rng,
        (heads, dim, pairs): (usize, usize, usize),
        pairing: Pairing,
    ) {
        let positions = [0, 1, 7, 500];
        let inverse: Vec<f32> = (0..pairs).map(|i| 0.5f32.powi(i.try_into().unwrap())).collect();
        let before = rng.normals(positions.len() * heads * dim);
        let mut x = before.clone();
        let rotation = Rotation { inverse: &inverse, pairing, scale: 1.5 };
        rope(pool, &mut x, dim, &positions, &rotation).unwrap();
        for (i, (after, head)) in x.chunks_exact(dim).zip(before.chunks_exact(dim)).enumerate() {
            let position = f64::from(positions[i / heads]);
            let mut expected: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
            for (pair, inverse) in inverse.iter().enumerate() {
                let (a, b) = match pairing {
                    Pairing::Halves => (pair, pair + pairs),
                    Pairing::Neighbours => (2 * pair, 2 * pair + 1),
                };
                let (sin, cos) = (position * f64::from(*inverse)).sin_cos();
                let (u, v) = (f64::from(head[a]), f64::from(head[b]));
                expected[a] = 1.5 * (u * cos - v * sin);
                expected[b] = 1.5 * (u * sin + v * cos);
            }
            for (after, expected) in after.iter().zip(expected) {
                // The angle itself is rounded to f32: 500 · 2⁻²⁴ radians.
                assert!((f64::from(*after) - expected).abs() < 3e-4, "{after} {expected}");
            }
        }
    }

    #[test]
    fn shapes_that_disagree_are_refused() {
        let pool = Pool::new(1).unwrap();
        let rotation = Rotation { inverse: &[1.0; 4], pairing: Pairing::Halves, scale: 1.0 };
        assert!(rope(&pool, &mut [0.0; 12], 6, &[0, 1], &rotation).is_err());
        assert!(rope(&pool, &mut [0.0; 17], 8, &[0, 1], &rotation).is_err());
        assert!(rope(&pool, &mut [0.0; 8], 8, &[], &rotation).is_err());
    }
}
