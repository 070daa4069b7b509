//! Random data for the tests of this crate.

/// SplitMix64 with normal deviates: small, seedable, the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    pub(crate) fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    /// N(0, 1), by Box and Muller.
    pub(crate) fn normal(&mut self) -> f32 {
        let (r, angle) = (self.uniform(), self.uniform());
        #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
        let x = ((-2.0 * r.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32;
        x
    }

    pub(crate) fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.normal()).collect()
    }

    pub(crate) fn unit_vector(&mut self, dim: usize) -> Vec<f32> {
        let mut x = self.normals(dim);
        let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.iter_mut().for_each(|x| *x /= norm);
        x
    }
}
