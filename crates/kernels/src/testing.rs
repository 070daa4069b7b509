//! Helpers of the tests: fresh random numbers and random weights.

use crate::isa::Cpu;
use crate::pool::Pool;
use crate::weights::{Affine, FloatType, WeightMatrix};
use half::{bf16, f16};
use std::hash::{BuildHasher, RandomState};

/// Splitmix64; seeded afresh for each test, from `MLXCEL_TEST_SEED` if that is set.
pub(crate) struct Rng(u64);

impl Rng {
    /// A generator whose seed is printed, so that a failure can be repeated.
    pub(crate) fn fresh() -> Self {
        let seed = std::env::var("MLXCEL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        println!("MLXCEL_TEST_SEED={seed}");
        Self(seed)
    }

    /// The generator with this seed, for data that a test makes twice.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// Uniform in −1..1.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Nearly normal, with standard deviation 1: the sum of twelve uniforms.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() / 2.0
    }

    pub(crate) fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// `values` as little-endian bytes of `ty`.
pub(crate) fn store(values: &[f32], ty: FloatType) -> Vec<u8> {
    let bytes = |&v: &f32| match ty {
        FloatType::F32 => v.to_le_bytes().to_vec(),
        FloatType::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        FloatType::Bf16 => bf16::from_f32(v).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// Random storage for an affine matrix; one spare byte in front makes the codes unaligned.
pub(crate) struct RandomAffine {
    rows: usize,
    cols: usize,
    bits: u32,
    group: usize,
    scale_type: FloatType,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl RandomAffine {
    pub(crate) fn new(
        rng: &mut Rng,
        shape: (usize, usize),
        bits: u32,
        group: usize,
        scale_type: FloatType,
    ) -> Self {
        let (rows, cols) = shape;
        let groups = rows * cols / group;
        let largest = f32::from((1u16 << bits) - 1);
        let scales: Vec<f32> = (0..groups).map(|_| (1.5 + rng.uniform()) / largest).collect();
        // Like MLX's own: codes are centred around zero, roughly.
        let biases: Vec<f32> =
            scales.iter().map(|s| -s * largest * (0.5 + 0.1 * rng.uniform())).collect();
        Self {
            rows,
            cols,
            bits,
            group,
            scale_type,
            codes: rng.bytes(1 + rows * cols / 8 * bits as usize),
            scales: store(&scales, scale_type),
            biases: store(&biases, scale_type),
        }
    }

    pub(crate) fn matrix(&self) -> WeightMatrix<'_> {
        let affine = Affine {
            bits: self.bits,
            group: self.group,
            codes: &self.codes[1..],
            scales: &self.scales,
            biases: &self.biases,
            scale_type: self.scale_type,
        };
        WeightMatrix::affine(self.rows, self.cols, affine).unwrap()
    }
}

/// Random storage for an MXFP4 matrix, unaligned.
pub(crate) struct RandomMxfp4 {
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl RandomMxfp4 {
    pub(crate) fn new(rng: &mut Rng, shape: (usize, usize)) -> Self {
        let (rows, cols) = shape;
        let scales = (0..=rows * cols / 32).map(|_| u8::try_from(120 + rng.below(9)).unwrap());
        let scales = scales.collect();
        Self { rows, cols, codes: rng.bytes(1 + rows * cols / 2), scales }
    }

    pub(crate) fn matrix(&self) -> WeightMatrix<'_> {
        WeightMatrix::mxfp4(self.rows, self.cols, &self.codes[1..], &self.scales[1..]).unwrap()
    }
}

/// A pool for each instruction set of this machine, with and without extensions.
pub(crate) fn pools() -> Vec<Pool> {
    let mut cpus = Vec::new();
    for cpu in Cpu::all() {
        cpus.push(cpu);
        if cpu.without_extensions() != cpu {
            cpus.push(cpu.without_extensions());
        }
    }
    cpus.into_iter().map(|cpu| Pool::with_cpu(2, cpu).unwrap()).collect()
}

/// `x · wᵀ` in f64, `[tokens, rows]`, and the same with absolute values: the size that rounding
/// errors are relative to.
pub(crate) fn oracle(x: &[f32], weights: &WeightMatrix<'_>) -> Vec<(f64, f64)> {
    let rows = weights.rows();
    let cols = weights.cols();
    let mut out = vec![(0.0, 0.0); x.len() / cols * rows];
    let mut w = vec![0.0; cols];
    for row in 0..rows {
        weights.dequantize_row(row, &mut w).unwrap();
        for (token, x) in x.chunks_exact(cols).enumerate() {
            let terms = x.iter().zip(&w).map(|(&x, &w)| f64::from(x) * f64::from(w));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
            out[token * rows + row] = (sum, size);
        }
    }
    out
}
