//! Codebooks of the Turbo modes: Lloyd–Max quantisers of N(0,1) with 8 and 16 levels.
//!
//! The centroids are pinned here and derived again in a test (Lloyd's iteration with the exact
//! normal integrals). What a code *means* is its integer level: the centroid times
//! [`Codebook::unit`], rounded to int8, so that an 8-bit dot product can read it from a byte
//! shuffle. `unit` was searched for the smallest rounding error: it adds 0.1 % (4 bit) and
//! 0.003 % (3 bit) to the squared error of the exact centroids.
//!
//! A code is sign and magnitude: the top bit is 1 for a negative coordinate, the other bits
//! index the positive levels in ascending order.

/// Bits per coordinate of a Turbo code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TurboBits {
    /// 3 bits: 8 levels.
    Three,
    /// 4 bits: 16 levels.
    Four,
}

/// One scalar quantiser, symmetric around 0.
#[derive(Debug)]
pub struct Codebook {
    /// Positive Lloyd–Max centroids of N(0,1), ascending.
    pub centroids: &'static [f32],
    /// The centroids times `unit`, rounded.
    pub levels: &'static [i8],
    /// Levels per unit of standard deviation.
    pub unit: f32,
    /// Midpoints between neighbouring centroids: where the nearest one changes.
    pub midpoints: &'static [f32],
}

/// Midpoints between neighbours.
const fn midpoints<const N: usize, const M: usize>(centroids: &[f32; N]) -> [f32; M] {
    let mut out = [0.0; M];
    let mut i = 0;
    while i < M {
        out[i] = (centroids[i] + centroids[i + 1]) / 2.0;
        i += 1;
    }
    out
}

const CENTROIDS_3: [f32; 4] = [0.245_094_18, 0.756_005_3, 1.343_909_3, 2.151_945_7];
const CENTROIDS_4: [f32; 8] = [
    0.128_395_03,
    0.388_048_3,
    0.656_759_1,
    0.942_340_46,
    1.256_231_2,
    1.618_046_4,
    2.069_017_2,
    2.732_589_6,
];

static THREE: Codebook = Codebook {
    centroids: &CENTROIDS_3,
    levels: &[10, 31, 55, 88],
    unit: 40.925,
    midpoints: &midpoints::<4, 3>(&CENTROIDS_3),
};
static FOUR: Codebook = Codebook {
    centroids: &CENTROIDS_4,
    levels: &[5, 15, 25, 36, 48, 62, 79, 104],
    unit: 38.214,
    midpoints: &midpoints::<8, 7>(&CENTROIDS_4),
};

impl TurboBits {
    /// The codebook of this width.
    #[must_use]
    pub fn codebook(self) -> &'static Codebook {
        match self {
            Self::Three => &THREE,
            Self::Four => &FOUR,
        }
    }

    /// Bits per coordinate.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::Three => 3,
            Self::Four => 4,
        }
    }
}

impl Codebook {
    /// The code of the centroid nearest to `x` (in standard deviations).
    #[inline]
    #[must_use]
    pub fn nearest(&self, x: f32) -> u8 {
        let magnitude = x.abs();
        let index: u8 = self.midpoints.iter().map(|&edge| u8::from(magnitude > edge)).sum();
        index | (self.sign_bit() * u8::from(x < 0.0))
    }

    /// The bit that marks a negative code: there are as many negative levels as positive ones.
    #[inline]
    #[must_use]
    pub fn sign_bit(&self) -> u8 {
        if self.levels.len() == 8 { 8 } else { 4 }
    }

    /// The integer level of `code`.
    #[inline]
    #[must_use]
    pub fn level(&self, code: u8) -> i8 {
        let sign_bit = self.sign_bit();
        let level = self.levels[usize::from(code & (sign_bit - 1))];
        if code & sign_bit == 0 { level } else { -level }
    }

    /// The codes, in the ascending order of their levels.
    #[must_use]
    pub fn ascending_codes(&self) -> Vec<u8> {
        let sign_bit = self.sign_bit();
        (0..sign_bit).rev().map(|code| code | sign_bit).chain(0..sign_bit).collect()
    }

    /// Edges at which [`Self::nearest`] changes, ascending: as many of them are below `x` (in standard
    /// deviations) as codes stand before its own in [`Self::ascending_codes`].
    ///
    /// Edges that are not positive are the greatest number below the edge itself, since a value on
    /// one is nearest to the smaller magnitude, and 0 is not negative.
    #[must_use]
    pub fn ascending_edges(&self) -> Vec<f32> {
        let negative = self.midpoints.iter().rev().map(|&edge| (-edge).next_down());
        let positive = self.midpoints.iter().copied();
        negative.chain([-f32::MIN_POSITIVE]).chain(positive).collect()
    }

    /// The levels of codes 0..16, for a byte shuffle; a 3-bit table is repeated.
    #[must_use]
    pub fn shuffle_table(&self) -> [i8; 16] {
        let mut table = [0; 16];
        for (code, level) in (0u8..).zip(&mut table) {
            *level = self.level(code & (2 * self.sign_bit() - 1));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [TurboBits; 2] = [TurboBits::Three, TurboBits::Four];

    /// Normal density and distribution function (the latter by integrating the density's
    /// Taylor series, which converges fast for |x| < 6).
    fn density(x: f64) -> f64 {
        (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    fn distribution(x: f64) -> f64 {
        if x > 9.0 {
            return 1.0;
        }
        // Marsaglia's series: Φ(x) = 1/2 + φ(x)·(x + x³/3 + x⁵/15 + …).
        let mut sum = x;
        let mut term = x;
        let mut n = 1.0;
        while term > 1e-18 * sum.max(1e-300) {
            n += 2.0;
            term *= x * x / n;
            sum += term;
        }
        0.5 + density(x) * sum
    }

    /// Lloyd's iteration on the positive half line: centroid of each cell, edges at midpoints.
    fn derive(levels: usize) -> (Vec<f64>, f64) {
        let mut centroids: Vec<f64> = (0..levels).map(|i| 0.2 + 0.3 * i as f64).collect();
        let mut cells = vec![(0.0, 0.0); levels];
        for _ in 0..50_000 {
            for i in 0..levels {
                let low = if i == 0 { 0.0 } else { (centroids[i - 1] + centroids[i]) / 2.0 };
                let last = i + 1 == levels;
                let high = if last { 40.0 } else { (centroids[i] + centroids[i + 1]) / 2.0 };
                cells[i] = (distribution(high) - distribution(low), density(low) - density(high));
            }
            for (c, (mass, moment)) in centroids.iter_mut().zip(&cells) {
                *c = moment / mass;
            }
        }
        let kept: f64 = cells.iter().zip(&centroids).map(|(cell, c)| 2.0 * cell.0 * c * c).sum();
        (centroids, 1.0 - kept)
    }

    #[test]
    fn centroids_are_lloyd_max_of_the_normal_distribution() {
        for (bits, mse) in [(TurboBits::Three, 0.034_548), (TurboBits::Four, 0.009_501)] {
            let book = bits.codebook();
            let (derived, derived_mse) = derive(book.centroids.len());
            for (pinned, derived) in book.centroids.iter().zip(&derived) {
                assert!((f64::from(*pinned) - derived).abs() < 2e-7, "{pinned} {derived}");
            }
            assert!((derived_mse - mse).abs() < 1e-6, "{derived_mse}");
        }
    }

    #[test]
    fn levels_are_rounded_centroids_and_cost_little() {
        for (bits, most) in [(TurboBits::Three, 0.0011), (TurboBits::Four, 0.0033)] {
            let book = bits.codebook();
            let mut squares = 0.0;
            let mut mass = 0.0;
            for (i, (&c, &level)) in book.centroids.iter().zip(book.levels).enumerate() {
                assert!((f32::from(level) - c * book.unit).abs() <= 0.5);
                let low = if i == 0 { 0.0 } else { f64::from(book.midpoints[i - 1]) };
                let high = book.midpoints.get(i).map_or(40.0, |&m| f64::from(m));
                let weight = distribution(high) - distribution(low);
                squares += weight * f64::from(f32::from(level) / book.unit - c).powi(2);
                mass += weight;
            }
            let rms = (squares / mass).sqrt();
            assert!(rms < most, "{bits:?}: {rms}");
        }
    }

    #[test]
    fn edges_below_lead_to_the_nearest_level() {
        for bits in BOTH {
            let book = bits.codebook();
            let edges = book.ascending_edges();
            let codes = book.ascending_codes();
            assert_eq!((edges.len() + 1, codes.len()), (codes.len(), 1 << bits.bits()));
            assert!(codes.windows(2).all(|pair| book.level(pair[0]) < book.level(pair[1])));
            let on_edges = book.midpoints.iter().flat_map(|&edge| {
                [edge, edge.next_up(), edge.next_down()].into_iter().flat_map(|x| [x, -x])
            });
            let grid = (-4000i16..4000).map(|step| f32::from(step) * 1e-3);
            for x in grid.chain(on_edges).chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]) {
                let below = edges.iter().filter(|&&edge| edge < x).count();
                assert_eq!(codes[below], book.nearest(x), "{bits:?} {x}");
            }
        }
    }

    #[test]
    fn nearest_finds_the_nearest_level() {
        for bits in BOTH {
            let book = bits.codebook();
            let codes = 1u8 << bits.bits();
            for step in -4000..4000 {
                let x = step as f32 * 1e-3 + 3e-4;
                let value = |code: u8| {
                    let c = book.centroids[usize::from(code & (book.sign_bit() - 1))];
                    if code & book.sign_bit() == 0 { c } else { -c }
                };
                let best = (0..codes)
                    .min_by(|&a, &b| (value(a) - x).abs().total_cmp(&(value(b) - x).abs()))
                    .unwrap();
                assert_eq!(book.nearest(x), best, "{x}");
                assert_eq!(book.shuffle_table()[usize::from(best)], book.level(best));
            }
        }
    }
}
