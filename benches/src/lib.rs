//! Shared parts of the kernel benches: weights of a model's shape, and timing.
//!
//! Weights are pseudo-random bytes: the speed of the kernels does not depend on their values,
//! as long as no scale is a denormal or NaN.

use mlxcel_kernels::{Affine, AlignedBuf, FloatType, Result, WeightMatrix};
use std::time::Instant;

/// Storage format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// MLX's affine format with bf16 scales.
    Affine {
        /// Bits per code.
        bits: u32,
        /// Elements per group.
        group: usize,
    },
    /// Floats.
    Dense(FloatType),
}

/// An owned matrix of pseudo-random weights.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    storage: Storage,
    codes: AlignedBuf,
    scales: AlignedBuf,
    biases: AlignedBuf,
}

impl Matrix {
    /// `rows × cols` weights of small random size.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn random(rows: usize, cols: usize, storage: Storage) -> Result<Self> {
        let (code_bytes, groups) = match storage {
            Storage::Affine { bits, group } => {
                (rows * cols / 8 * bits as usize, rows * cols / group)
            }
            Storage::Dense(ty) => (rows * cols * ty.bytes(), 0),
        };
        let mut codes = AlignedBuf::zeroed_huge(code_bytes)?;
        let seed = u64::try_from(rows * cols).unwrap_or(1);
        fill(codes.bytes_mut(), seed);
        if let Storage::Dense(ty) = storage {
            tame(codes.bytes_mut(), ty);
        }
        let mut scales = AlignedBuf::zeroed_huge(2 * groups)?;
        let mut biases = AlignedBuf::zeroed_huge(2 * groups)?;
        // 2⁻⁷ and −2⁻⁴ as bfloat16.
        scales.as_mut_slice::<u16>().fill(0x3c00);
        biases.as_mut_slice::<u16>().fill(0xbd80);
        Ok(Self { rows, cols, storage, codes, scales, biases })
    }

    /// The matrix as the kernels take it.
    ///
    /// # Errors
    /// When the shape does not suit the format.
    pub fn view(&self) -> Result<WeightMatrix<'_>> {
        match self.storage {
            Storage::Affine { bits, group } => {
                let affine = Affine {
                    bits,
                    group,
                    codes: self.codes.bytes(),
                    scales: self.scales.bytes(),
                    biases: self.biases.bytes(),
                    scale_type: FloatType::Bf16,
                };
                WeightMatrix::affine(self.rows, self.cols, affine)
            }
            Storage::Dense(ty) => WeightMatrix::dense(self.rows, self.cols, ty, self.codes.bytes()),
        }
    }
}

/// Fills `bytes` with splitmix64 output.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = (z ^ z >> 31).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Sets the exponents of random floats so that all lie in ±(1/16..1/8).
fn tame(bytes: &mut [u8], ty: FloatType) {
    // The top byte: sign, then exponent bits.
    let (keep, set) = match ty {
        FloatType::F16 => (0x83, 0x2c),
        FloatType::F32 | FloatType::Bf16 => (0x80, 0x3d),
    };
    for value in bytes.chunks_exact_mut(ty.bytes()) {
        if let Some(top) = value.last_mut() {
            *top = *top & keep | set;
        }
    }
}

/// The matrices of a decoder's layer.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Name of the model.
    pub name: &'static str,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the key (and the value) projection.
    pub kv: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the output head.
    pub vocabulary: usize,
}

/// Llama-3.2-1B.
pub const LLAMA_1B: Shape = Shape {
    name: "llama-1b",
    layers: 16,
    hidden: 2048,
    kv: 512,
    intermediate: 8192,
    vocabulary: 128_256,
};

/// Qwen2.5-0.5B.
pub const QWEN_05B: Shape = Shape {
    name: "qwen-0.5b",
    layers: 24,
    hidden: 896,
    kv: 128,
    intermediate: 4864,
    vocabulary: 151_936,
};

/// The median of `times` measurements of `body`, in seconds, after a warm-up.
pub fn median_seconds(times: usize, mut body: impl FnMut()) -> f64 {
    body();
    let mut seconds: Vec<f64> = (0..times.max(1))
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
