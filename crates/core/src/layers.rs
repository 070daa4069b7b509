//! The parameters of layers: matrices in their storage format, embeddings, norms.
//!
//! A layer here is data with checked shapes; [`crate::Ops`] runs it. Matrices are kept as they are
//! stored (mapped, not copied), vectors as the kernel set reads them.

use mlx_ffi::{Array, Dtype};

use crate::shape::{dims, rows_cols, shape_error};
use crate::{Error, Result};

/// A matrix `[rows, cols]` that multiplies from the left: `y = x · Wᵀ`.
#[derive(Clone)]
#[non_exhaustive]
pub enum Weight {
    /// fp32, fp16 or bf16 elements, `[rows, cols]`.
    Dense(Array),
    /// MLX's affine quantisation.
    Affine(AffineWeight),
    /// OCP's MXFP4.
    Mxfp4(Mxfp4Weight),
}

/// A matrix in MLX's affine format: `w = scale · code + bias` per group of columns.
#[derive(Clone)]
pub struct AffineWeight {
    /// Packed codes, u32 `[rows, cols · bits / 32]`.
    pub codes: Array,
    /// Scales, `[rows, cols / group_size]`.
    pub scales: Array,
    /// Biases, `[rows, cols / group_size]`.
    pub biases: Array,
    /// Columns per group.
    pub group_size: usize,
    /// Bits per code.
    pub bits: usize,
}

/// A matrix of 4-bit floats in groups of 32 columns with a power of two each.
#[derive(Clone)]
pub struct Mxfp4Weight {
    /// Packed codes: u32 `[rows, cols / 8]`, or the same bytes as u8.
    pub codes: Array,
    /// Exponents (E8M0), u8 `[rows, cols / 32]`.
    pub scales: Array,
}

impl Weight {
    /// Rows, columns.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(array) => rows_cols(array),
            Self::Affine(w) => {
                let (rows, groups) = rows_cols(&w.scales);
                (rows, groups * w.group_size)
            }
            Self::Mxfp4(w) => {
                let (rows, groups) = rows_cols(&w.scales);
                (rows, groups * Mxfp4Weight::GROUP)
            }
        }
    }

    /// The arrays that hold the matrix, codes first.
    #[must_use]
    pub fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Dense(array) => vec![array],
            Self::Affine(w) => vec![&w.codes, &w.scales, &w.biases],
            Self::Mxfp4(w) => vec![&w.codes, &w.scales],
        }
    }
}

impl AffineWeight {
    /// Checks the three arrays against each other.
    ///
    /// # Errors
    /// When group size, bits and shapes do not describe one matrix.
    pub fn new(
        codes: Array,
        scales: Array,
        biases: Array,
        group_size: usize,
        bits: usize,
    ) -> Result<Self> {
        if ![32, 64, 128].contains(&group_size) || ![2, 3, 4, 5, 6, 8].contains(&bits) {
            return Err(Error::Value {
                name: "the quantisation",
                value: format!("{bits} bits in groups of {group_size}"),
                expected: "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
            });
        }
        let [rows, groups] = matrix("scales", &scales)?;
        let expected = [rows, groups * group_size * bits / 32];
        if dims(&codes) != expected {
            return Err(shape_error("quantised weight", "codes", &codes, format!("{expected:?}")));
        }
        if biases.shape() != scales.shape() {
            let expected = format!("{:?}", scales.shape());
            return Err(shape_error("quantised weight", "biases", &biases, expected));
        }
        Ok(Self { codes, scales, biases, group_size, bits })
    }
}

impl Mxfp4Weight {
    /// Columns that share a scale.
    pub const GROUP: usize = 32;

    /// Checks the two arrays against each other.
    ///
    /// # Errors
    /// When they do not describe one matrix.
    pub fn new(codes: Array, scales: Array) -> Result<Self> {
        let [rows, groups] = matrix("scales", &scales)?;
        let first = dims(&codes).first().copied();
        let width = codes.dtype().size_bytes();
        let bytes = rows * groups * Self::GROUP / 2;
        let types = [codes.dtype(), scales.dtype()];
        let known = matches!(types, [Dtype::Uint8 | Dtype::Uint32, Dtype::Uint8]);
        if !known || first != Some(rows) || codes.size() * width != bytes {
            let expected = format!("{bytes} bytes of codes in {rows} rows, with u8 scales");
            return Err(shape_error("quantised weight", "codes", &codes, expected));
        }
        Ok(Self { codes, scales })
    }
}

fn matrix(operand: &'static str, array: &Array) -> Result<[usize; 2]> {
    dims(array).try_into().map_err(|found| Error::Shape {
        op: "quantised weight",
        operand,
        found,
        expected: "[rows, groups]".into(),
    })
}

/// `y = x · Wᵀ (+ bias)`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix, `[out, in]`.
    pub weight: Weight,
    /// The bias, `[out]`.
    pub bias: Option<Array>,
}

/// A table of token embeddings, `[vocab, hidden]`.
#[derive(Clone)]
pub struct Embedding {
    /// One row per token.
    pub weight: Weight,
}

/// Mean-and-variance norm over the last dimension.
#[derive(Clone)]
pub struct LayerNorm {
    /// Factor per dimension, `[dim]`.
    pub weight: Array,
    /// Summand per dimension, `[dim]`.
    pub bias: Option<Array>,
    /// Added to the variance.
    pub eps: f32,
}

/// A norm of either kind.
#[derive(Clone)]
#[non_exhaustive]
pub enum Norm {
    /// Root mean square.
    Rms(RmsNorm),
    /// Mean and variance.
    Layer(LayerNorm),
}

/// Root-mean-square norm over the last dimension, or over groups of it; the weight is repeated after
/// its end.
#[derive(Clone)]
pub struct RmsNorm {
    /// Factor per dimension, `[dim]`.
    pub weight: Array,
    /// Elements that are normalised together: the weight's length, or a part of it.
    pub group: usize,
    /// Added to the mean square.
    pub eps: f32,
}
