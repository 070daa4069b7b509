//! Rotary position embeddings: pairs of coordinates of a head, turned by an angle that grows with
//! the position.

use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, Simd, dispatch};

/// Least number of elements for a parallel region.
const CHUNK: usize = 16 << 10;

/// Pairing of a head's coordinates.
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
    /// Number of consecutive pairs that each coordinate of a position turns; empty where a
    /// position is one number, which turns all of them.
    pub sections: &'a [usize],
    /// Pairing of the coordinates.
    pub pairing: Pairing,
    /// Factor of the rotated coordinates.
    pub scale: f32,
}

impl Rotation<'_> {
    /// Numbers that make a position.
    fn coordinates(&self) -> usize {
        self.sections.len().max(1)
    }
}

/// Turns every head of every row: `x` is `[rows, heads, head_dim]`, `positions` is `[rows]` or, with
/// sections, `[rows, sections]`. Coordinates beyond the rotated ones stay as they are.
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
    let pairs = rotation.inverse.len();
    let coordinates = rotation.coordinates();
    if !rotation.sections.is_empty() {
        check_len("sections of a rotation", rotation.sections.iter().sum(), pairs)?;
    }
    let count = positions.len() / coordinates;
    check_len("positions of a rotation", positions.len(), count * coordinates)?;
    let row = x.len() / count;
    check_len("rows of a rotation", x.len(), row * count)?;
    if head_dim == 0 || !row.is_multiple_of(head_dim) || row == 0 || 2 * pairs > head_dim {
        let rule = "a divisor of the row, and at least the rotated coordinates";
        return Err(KernelError::Dimension { what: "head_dim", value: head_dim, rule });
    }
    pool.for_rows_mut(x, row, CHUNK.div_ceil(row), |_, first, rows| {
        let mut angles = vec![(0.0, 0.0); pairs];
        let positions = positions[first * coordinates..].chunks_exact(coordinates);
        for (row, position) in rows.chunks_exact_mut(row).zip(positions) {
            fill(&mut angles, position, rotation);
            let turn = RotateRow { row, head_dim, angles: &angles, pairing: rotation.pairing };
            dispatch(pool.cpu(), turn);
        }
    });
    Ok(())
}

/// Sine and cosine of each pair at `position`, the scale included.
#[expect(clippy::cast_precision_loss, reason = "angles are f32, as in MLX")]
fn fill(angles: &mut [(f32, f32)], position: &[i32], rotation: &Rotation<'_>) {
    let all = [angles.len()];
    let sections = if rotation.sections.is_empty() { &all } else { rotation.sections };
    let mut first = 0;
    for (coordinate, pairs) in position.iter().zip(sections) {
        let section = first..first + pairs;
        for (angle, inverse) in angles[section.clone()].iter_mut().zip(&rotation.inverse[section]) {
            let (sin, cos) = (*coordinate as f32 * inverse).sin_cos();
            *angle = (sin * rotation.scale, cos * rotation.scale);
        }
        first += pairs;
    }
}

/// One row, all heads.
struct RotateRow<'a> {
    row: &'a mut [f32],
    head_dim: usize,
    angles: &'a [(f32, f32)],
    pairing: Pairing,
}

impl Kernel for RotateRow<'_> {
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
fn turned(a: f32, b: f32, angle: (f32, f32)) -> (f32, f32) {
    let (sin, cos) = angle;
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

    fn check(pool: &Pool, rng: &mut Rng, shape: (usize, usize, usize), pairing: Pairing) {
        let (heads, dim, pairs) = shape;
        let positions = [0, 1, 7, 500];
        let inverse: Vec<f32> = (0..pairs).map(|i| 0.5f32.powi(i.try_into().unwrap())).collect();
        let before = rng.normals(positions.len() * heads * dim);
        let mut x = before.clone();
        let rotation = Rotation { inverse: &inverse, sections: &[], pairing, scale: 1.5 };
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
                let u = f64::from(head[a]);
                let v = f64::from(head[b]);
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
        let pairing = Pairing::Halves;
        let rotation = Rotation { inverse: &[1.0; 4], sections: &[], pairing, scale: 1.0 };
        assert!(rope(&pool, &mut [0.0; 12], 6, &[0, 1], &rotation).is_err());
        assert!(rope(&pool, &mut [0.0; 17], 8, &[0, 1], &rotation).is_err());
        assert!(rope(&pool, &mut [0.0; 8], 8, &[], &rotation).is_err());
        let sections = |sections| Rotation { sections, ..rotation };
        assert!(rope(&pool, &mut [0.0; 8], 8, &[0, 1], &sections(&[2, 3])).is_err());
        assert!(rope(&pool, &mut [0.0; 8], 8, &[0], &sections(&[2, 2])).is_err());
        assert!(rope(&pool, &mut [0.0; 16], 8, &[0, 1, 2], &sections(&[2, 2])).is_err());
    }

    /// A pair turns as it would by the coordinate of its section alone.
    #[test]
    fn each_section_turns_by_its_own_coordinate() {
        let mut rng = Rng::fresh();
        let heads = 3;
        let dim = 16;
        let inverse: Vec<f32> = (0..8u8).map(|i| 0.5f32.powi(i.into())).collect();
        let positions = [[3, 50, 7], [4, 4, 4], [900, 0, 1]];
        for pool in pools() {
            let before = rng.normals(positions.len() * heads * dim);
            let turned = |positions: &[i32], sections| {
                let pairing = Pairing::Halves;
                let rotation = Rotation { inverse: &inverse, sections, pairing, scale: 1.0 };
                let mut x = before.clone();
                rope(&pool, &mut x, dim, positions, &rotation).unwrap();
                x
            };
            let ours = turned(&positions.concat(), &[2, 5, 1]);
            let by_coordinate =
                [0, 1, 2].map(|i| turned(&positions.map(|position| position[i]), &[]));
            for (at, value) in ours.iter().enumerate() {
                let section = [0, 0, 1, 1, 1, 1, 1, 2][at % dim % 8];
                assert_eq!(value.to_bits(), by_coordinate[section][at].to_bits(), "{at}");
            }
        }
    }
}
