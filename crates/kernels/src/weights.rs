//! Weight matrices as checkpoints store them: borrowed bytes with a validated shape.
//!
//! MLX's affine format packs the codes of a row as one little-endian bit stream (element `i` is
//! bits `i·bits .. (i+1)·bits`) and stores one scale and one bias per group of 32, 64 or 128
//! elements: `w = scale · code + bias`. MXFP4 has 4-bit floats and one power of two per 32 of them.
//! The bytes may be unaligned (mapped files).

use crate::error::{KernelError, Result, check_len};
use half::{bf16, f16};

/// Storage type of a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32-bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes per value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Value `index` of little-endian `data`.
    ///
    /// # Panics
    /// If `data` is too short.
    #[must_use]
    pub fn get(self, data: &[u8], index: usize) -> f32 {
        let at = index * self.bytes();
        match self {
            Self::F32 => f32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]),
            Self::F16 => f16::from_le_bytes([data[at], data[at + 1]]).to_f32(),
            Self::Bf16 => bf16::from_le_bytes([data[at], data[at + 1]]).to_f32(),
        }
    }

    /// Reads little-endian `data` into `values`, as many as there are in the shorter of the two.
    pub fn read_all(self, data: &[u8], values: &mut [f32]) {
        let halves = || data.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => {
                let words = data.as_chunks::<4>().0;
                values.iter_mut().zip(words).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
            }
            Self::F16 => values
                .iter_mut()
                .zip(halves())
                .for_each(|(v, b)| *v = f16::from_le_bytes(*b).to_f32()),
            Self::Bf16 => values
                .iter_mut()
                .zip(halves())
                .for_each(|(v, b)| *v = bf16::from_le_bytes(*b).to_f32()),
        }
    }

    /// Rounds every value to the nearest that this type has.
    pub fn round_all(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::F16 => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            Self::Bf16 => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        }
    }

    /// Appends `value`, rounded to nearest, in little-endian order.
    pub fn push(self, value: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend_from_slice(&value.to_le_bytes()),
            Self::F16 => bytes.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::Bf16 => bytes.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// Codes with a scale and a bias per group: MLX's affine quantisation.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Bits per code: 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// Elements per group: 32, 64 or 128.
    pub group: usize,
    /// `[rows, cols · bits / 8]` bytes.
    pub codes: &'a [u8],
    /// `[rows, cols / group]` of `scale_type`.
    pub scales: &'a [u8],
    /// `[rows, cols / group]` of `scale_type`.
    pub biases: &'a [u8],
    /// Storage type of scales and biases.
    pub scale_type: FloatType,
}

/// 4-bit floats (E2M1) in groups of 32 with a power of two each (E8M0): OCP's MXFP4.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4<'a> {
    /// Two codes a byte, the first one low: `[stored rows, cols / 2]`.
    pub(crate) codes: &'a [u8],
    /// `[stored rows, cols / 32]`.
    pub(crate) scales: &'a [u8],
    /// Stored rows from one row of the matrix to the next.
    pub(crate) step: usize,
}

impl Mxfp4<'_> {
    /// Elements that share a scale.
    pub const GROUP: usize = 32;
}

/// Byte of each E2M1 code, whose value is half of `byte − `[`E2M1_OFFSET`].
pub(crate) const E2M1_BYTES: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
/// The byte of zero in [`E2M1_BYTES`].
pub(crate) const E2M1_OFFSET: f32 = 12.0;

/// The power of two of an E8M0 scale.
pub(crate) fn e8m0(scale: u8) -> f32 {
    const SMALLEST: u32 = 1 << 22;
    f32::from_bits(if scale == 0 { SMALLEST } else { u32::from(scale) << 23 })
}

/// Storage of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Format<'a> {
    Affine(Affine<'a>),
    Mxfp4(Mxfp4<'a>),
    Dense(FloatType, &'a [u8]),
}

/// A weight matrix `[rows, cols]` (outputs × inputs), row-major.
#[derive(Clone, Copy, Debug)]
pub struct WeightMatrix<'a> {
    rows: usize,
    cols: usize,
    format: Format<'a>,
}

impl<'a> WeightMatrix<'a> {
    /// A matrix of floats; `data` holds `[rows, cols]` of `ty`.
    ///
    /// # Errors
    /// [`KernelError::Length`] and [`KernelError::Dimension`].
    pub fn dense(rows: usize, cols: usize, ty: FloatType, data: &'a [u8]) -> Result<Self> {
        let elems = checked_elems(rows, cols)?;
        check_len("bytes of dense weights", data.len(), elems * ty.bytes())?;
        Ok(Self { rows, cols, format: Format::Dense(ty, data) })
    }

    /// A matrix in MLX's affine format.
    ///
    /// # Errors
    /// [`KernelError::Length`], and [`KernelError::Dimension`] for widths, groups or column
    /// counts that the format does not have.
    pub fn affine(rows: usize, cols: usize, affine: Affine<'a>) -> Result<Self> {
        let elems = checked_elems(rows, cols)?;
        let Affine { bits, group, .. } = affine;
        if !matches!(bits, 2..=6 | 8) {
            let rule = "2, 3, 4, 5, 6 or 8";
            return Err(KernelError::Dimension { what: "bits", value: bits as usize, rule });
        }
        if !matches!(group, 32 | 64 | 128) {
            let rule = "32, 64 or 128";
            return Err(KernelError::Dimension { what: "group size", value: group, rule });
        }
        if !cols.is_multiple_of(group) {
            let rule = "a multiple of the group size";
            return Err(KernelError::Dimension { what: "columns", value: cols, rule });
        }
        let group_bytes = elems / group * affine.scale_type.bytes();
        check_len("bytes of codes", affine.codes.len(), elems / 8 * bits as usize)?;
        check_len("bytes of scales", affine.scales.len(), group_bytes)?;
        check_len("bytes of biases", affine.biases.len(), group_bytes)?;
        Ok(Self { rows, cols, format: Format::Affine(affine) })
    }

    /// A matrix in MXFP4: `codes` holds `[rows, cols / 2]` bytes, `scales` `[rows, cols / 32]`.
    ///
    /// # Errors
    /// [`KernelError::Length`], and [`KernelError::Dimension`] for columns that are not whole
    /// groups.
    pub fn mxfp4(rows: usize, cols: usize, codes: &'a [u8], scales: &'a [u8]) -> Result<Self> {
        let elems = checked_elems(rows, cols)?;
        if !cols.is_multiple_of(Mxfp4::GROUP) {
            let rule = "a multiple of the group size";
            return Err(KernelError::Dimension { what: "columns", value: cols, rule });
        }
        check_len("bytes of codes", codes.len(), elems / 2)?;
        check_len("bytes of scales", scales.len(), elems / Mxfp4::GROUP)?;
        Ok(Self { rows, cols, format: Format::Mxfp4(Mxfp4 { codes, scales, step: 1 }) })
    }

    /// Rows `part`, `part + parts`, … of an MXFP4 matrix: one of `parts` interleaved matrices.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] unless the rows divide into that many parts, of MXFP4;
    /// [`KernelError::Index`] for a part that there is not.
    pub fn every_nth_row(&self, part: usize, parts: usize) -> Result<Self> {
        let (Format::Mxfp4(Mxfp4 { codes, scales, step: 1 }), Some(0)) =
            (self.format, self.rows.checked_rem(parts))
        else {
            let (what, rule) = ("rows of interleaved matrices", "MXFP4, as many of each");
            return Err(KernelError::Dimension { what, value: self.rows, rule });
        };
        if part >= parts {
            let index = i64::try_from(part).unwrap_or(i64::MAX);
            return Err(KernelError::Index { what: "interleaved matrix", index, len: parts });
        }
        let codes = &codes[part * (codes.len() / self.rows)..];
        let scales = &scales[part * (scales.len() / self.rows)..];
        let mxfp4 = Mxfp4 { codes, scales, step: parts };
        Ok(Self { rows: self.rows / parts, cols: self.cols, format: Format::Mxfp4(mxfp4) })
    }

    /// Number of rows (outputs).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that the matrix is stored in, scales and biases included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self.format {
            Format::Affine(a) => a.codes.len() + a.scales.len() + a.biases.len(),
            Format::Mxfp4(_) => self.rows * (self.cols / 2 + self.cols / Mxfp4::GROUP),
            Format::Dense(_, data) => data.len(),
        }
    }

    pub(crate) fn format(&self) -> &Format<'a> {
        &self.format
    }

    /// Rows `first .. first + rows` as a matrix; an expert of a stack, for example.
    ///
    /// # Errors
    /// [`KernelError::Index`] if there are fewer rows.
    pub fn row_range(&self, first: usize, rows: usize) -> Result<Self> {
        let end = first.checked_add(rows).filter(|&end| end <= self.rows && rows > 0);
        let Some(end) = end else {
            let index = i64::try_from(first).unwrap_or(i64::MAX);
            return Err(KernelError::Index { what: "row", index, len: self.rows });
        };
        let part = |data: &'a [u8]| {
            let row_bytes = data.len() / self.rows;
            &data[first * row_bytes..end * row_bytes]
        };
        let format = match self.format {
            Format::Affine(a) => Format::Affine(Affine {
                codes: part(a.codes),
                scales: part(a.scales),
                biases: part(a.biases),
                ..a
            }),
            Format::Mxfp4(Mxfp4 { codes, scales, step }) => {
                let part = |data: &'a [u8], row_bytes: usize| {
                    &data[first * step * row_bytes..((end - 1) * step + 1) * row_bytes]
                };
                let codes = part(codes, self.cols / 2);
                let scales = part(scales, self.cols / Mxfp4::GROUP);
                Format::Mxfp4(Mxfp4 { codes, scales, step })
            }
            Format::Dense(ty, data) => Format::Dense(ty, part(data)),
        };
        Ok(Self { rows, cols: self.cols, format })
    }

    /// Writes row `row`, dequantised, to `out`; the reference that the kernels are tested with.
    ///
    /// # Errors
    /// [`KernelError::Index`] for a missing row, [`KernelError::Length`] unless `out` has
    /// `cols` elements.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        check_len("row output", out.len(), self.cols)?;
        let this = self.row_range(row, 1)?;
        match this.format {
            Format::Dense(ty, data) => {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = ty.get(data, i));
            }
            Format::Mxfp4(Mxfp4 { codes, scales, .. }) => {
                for (i, out) in out.iter_mut().enumerate() {
                    let byte = E2M1_BYTES[usize::from(code(codes, 4, i))];
                    let scale = 0.5 * e8m0(scales[i / Mxfp4::GROUP]);
                    *out = scale * (f32::from(byte) - E2M1_OFFSET);
                }
            }
            Format::Affine(a) => {
                for (i, out) in out.iter_mut().enumerate() {
                    let scale = a.scale_type.get(a.scales, i / a.group);
                    let bias = a.scale_type.get(a.biases, i / a.group);
                    *out = scale * f32::from(code(a.codes, a.bits, i)) + bias;
                }
            }
        }
        Ok(())
    }
}

/// Code `index` of a bit stream of `bits`-bit codes.
fn code(codes: &[u8], bits: u32, index: usize) -> u8 {
    let bit = index * bits as usize;
    let low = u16::from(codes[bit / 8]);
    let high = codes.get(bit / 8 + 1).map_or(0, |&b| u16::from(b) << 8);
    let [value, _] = ((low | high) >> (bit % 8)).to_le_bytes();
    value & (u8::MAX >> (8 - bits))
}

/// `rows · cols`, or an error if either is 0 or the size in bytes could overflow.
fn checked_elems(rows: usize, cols: usize) -> Result<usize> {
    for (what, value) in [("rows", rows), ("columns", cols)] {
        if value == 0 {
            return Err(KernelError::Dimension { what, value, rule: "at least 1" });
        }
    }
    rows.checked_mul(cols).filter(|&elems| elems <= isize::MAX as usize / 8).ok_or(
        KernelError::Dimension { what: "rows", value: rows, rule: "fewer for that many columns" },
    )
}
