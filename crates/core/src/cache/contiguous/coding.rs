//! Coding of rows of keys or values as the arrays that are cached, and back.
//!
//! Uses MLX's operations alone, so that nothing leaves the device. Scales, rounding, codebooks and
//! signs are those of `mlxcel_kernels`. The order of codes in a row is decided here: int8 one to a byte; turbo4
//! two neighbours to a byte, the first in the low half; turbo3 the magnitudes of four neighbours to a
//! byte, followed by the signs of eight to a byte.

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_kernels::kv::{INT8_CLIPS, INT8_LARGEST, KvFormat};
use mlxcel_kernels::turbo::{self, Codebook, ScaleRule, Side, TurboBits};

use super::super::formats::KvSide;
use crate::Result;
use crate::shape::int;

/// The largest finite fp16.
const F16_MAX: f64 = 65504.0;

/// Coding of one side of a layer.
#[derive(Clone)]
pub(super) enum Coding {
    /// Unchanged.
    Float,
    /// A byte per coordinate and a scale per row.
    Int8,
    /// Codes of the rotated row and a scale.
    Turbo(Turbo),
}

impl Coding {
    pub(super) fn new(side: &KvSide) -> Result<Self> {
        Ok(match (side.format, side.format.turbo()) {
            (KvFormat::Int8, _) => Self::Int8,
            (_, Some(bits)) => Self::Turbo(Turbo::new(side, bits)?),
            (_, None) => Self::Float,
        })
    }

    /// Width and type of each array that rows of `dim` coordinates become; floats are `float`.
    pub(super) fn parts(&self, dim: usize, float: Dtype) -> Vec<(usize, Dtype)> {
        let scale = (1, Dtype::Float16);
        match self {
            Self::Float => vec![(dim, float)],
            Self::Int8 => vec![(KvFormat::Int8.code_bytes(dim), Dtype::Int8), scale],
            Self::Turbo(turbo) => vec![(turbo.format.code_bytes(dim), Dtype::Uint8), scale],
        }
    }

    /// `rows`, `[…, dim]`, as the arrays of [`Self::parts`], `[…, width]` each.
    pub(super) fn encode(&self, rows: &Array) -> Result<Vec<Array>> {
        match self {
            Self::Float => Ok(vec![rows.clone()]),
            Self::Int8 => int8(&ops::astype(rows, Dtype::Float32)?),
            Self::Turbo(turbo) => turbo.encode(&ops::astype(rows, Dtype::Float32)?),
        }
    }

    /// The rows that were encoded, in `dtype` unless they are floats; Turbo's are left rotated.
    pub(super) fn decode(&self, parts: &[Array], dtype: Dtype) -> Result<Array> {
        let levels = match self {
            Self::Float => return Ok(parts[0].clone()),
            Self::Int8 => ops::astype(&parts[0], Dtype::Float32)?,
            Self::Turbo(turbo) => turbo.levels(&parts[0])?,
        };
        let scales = ops::astype(&parts[1], Dtype::Float32)?;
        Ok(ops::astype(&ops::multiply(&levels, &scales)?, dtype)?)
    }

    /// The rotation that [`Self::decode`] leaves rows in.
    pub(super) fn rotation(&self) -> Option<&Rotation> {
        match self {
            Self::Turbo(turbo) => Some(&turbo.rotation),
            Self::Float | Self::Int8 => None,
        }
    }
}

/// Codes and scales of `x`, `[…, dim]` in fp32.
fn int8(x: &Array) -> Result<Vec<Array>> {
    let largest = ops::max(&ops::abs(x)?, -1, true)?;
    let nearest = ops::astype(&ops::divide_scalar(&largest, INT8_LARGEST.into())?, Dtype::Float16)?;
    let wide = ops::astype(&nearest, Dtype::Float32)?;
    let clips = ops::greater(&largest, &ops::multiply_scalar(&wide, INT8_CLIPS.into())?)?;
    let finite = ops::less(&wide, &Array::scalar(F16_MAX, Dtype::Float32)?)?;
    let bits = ops::view(&nearest, Dtype::Uint16)?;
    let next = ops::view(&ops::add_scalar(&bits, 1.0)?, Dtype::Float16)?;
    let scale = ops::select(&ops::logical_and(&clips, &finite)?, &next, &nearest)?;

    let wide = ops::astype(&scale, Dtype::Float32)?;
    let zero = Array::scalar(0.0, Dtype::Float32)?;
    let inverse = ops::select(&ops::equal(&wide, &zero)?, &zero, &ops::reciprocal(&wide)?)?;
    let codes = ops::round(&ops::multiply(x, &inverse)?)?;
    let most = Array::scalar(INT8_LARGEST.into(), Dtype::Float32)?;
    let least = Array::scalar((-INT8_LARGEST).into(), Dtype::Float32)?;
    let codes = ops::maximum(&ops::minimum(&codes, &most)?, &least)?;
    Ok(vec![ops::astype(&codes, Dtype::Int8)?, scale])
}

/// The rotation H·S of one side: signs, then the Walsh–Hadamard transform.
#[derive(Clone)]
pub(crate) struct Rotation {
    /// The diagonal S, fp32 `[dim]`.
    signs: Array,
}

impl Rotation {
    fn new(side: Side, dim: usize) -> Result<Self> {
        Ok(Self { signs: Array::from_slice(&side.signs(dim)?, &[int(dim)?])? })
    }

    /// `H·S·x` of every row, computed in fp32, in the type of `x`.
    pub(crate) fn apply(&self, x: &Array) -> Result<Array> {
        let exact = ops::astype(x, Dtype::Float32)?;
        let rotated = ops::hadamard_transform(&ops::multiply(&exact, &self.signs)?)?;
        Ok(ops::astype(&rotated, x.dtype())?)
    }

    /// `S·H·x` of every row, the inverse of [`Self::apply`].
    pub(crate) fn undo(&self, x: &Array) -> Result<Array> {
        let exact = ops::astype(x, Dtype::Float32)?;
        let back = ops::multiply(&ops::hadamard_transform(&exact)?, &self.signs)?;
        Ok(ops::astype(&back, x.dtype())?)
    }
}

/// The Turbo quantiser of one side as arrays.
#[derive(Clone)]
pub(super) struct Turbo {
    format: KvFormat,
    book: &'static Codebook,
    rule: ScaleRule,
    dim: usize,
    rotation: Rotation,
    /// Boundaries between levels, ascending, in standard deviations.
    edges: Array,
    /// The levels, ascending, fp32.
    levels: Array,
    planes: Vec<Plane>,
}

impl Turbo {
    fn new(side: &KvSide, bits: TurboBits) -> Result<Self> {
        let book = bits.codebook();
        let dim = side.dim;
        let step = turbo::level_step(bits, dim);
        let edges = book.ascending_edges();
        let codes = book.ascending_codes();
        let levels: Vec<f32> = codes.iter().map(|&code| book.level(code).into()).collect();
        // Bits of the level of a code, ahead of those of its sign where it has one of its own.
        let level_bits = match bits {
            TurboBits::Four => 4,
            TurboBits::Three => 2,
        };
        let level_field = Field { shift: 0, bits: level_bits };
        let mut planes =
            vec![Plane::new(&codes, level_field, |code| f32::from(book.level(code)) * step)?];
        if bits == TurboBits::Three {
            let sign_field = Field { shift: 2, bits: 1 };
            planes.push(Plane::new(&codes, sign_field, |bit| if bit == 0 { 1.0 } else { -1.0 })?);
        }
        Ok(Self {
            format: side.format,
            book,
            rule: side.rule,
            dim,
            rotation: Rotation::new(side.side, dim)?,
            edges: Array::from_slice(&edges, &[int(edges.len())?])?,
            levels: Array::from_slice(&levels, &[int(levels.len())?])?,
            planes,
        })
    }

    /// Codes and scales of `x`, `[…, dim]` in fp32. A row that is not finite, or whose length is not,
    /// gets a scale that is not finite, so that the fault shows in the result of attention.
    #[expect(clippy::cast_precision_loss, reason = "head dimensions are small")]
    fn encode(&self, x: &Array) -> Result<Vec<Array>> {
        let norm = ops::sqrt(&ops::sum(&ops::square(x)?, -1, true)?)?;
        let root = Array::scalar((self.dim as f64).sqrt(), Dtype::Float32)?;
        let deviations = ops::multiply(&self.rotation.apply(x)?, &ops::divide(&root, &norm)?)?;
        let beyond = ops::greater(&ops::expand_dims(&deviations, -1)?, &self.edges)?;
        let order = ops::sum(&beyond, -1, false)?;

        let levels = ops::take(&self.levels, &order, 0)?;
        let zero = Array::scalar(0.0, Dtype::Float32)?;
        let scale = self.scale(&norm, &deviations, &levels)?;
        let scale = ops::select(&ops::equal(&norm, &zero)?, &zero, &scale)?;

        let planes: Vec<Array> =
            self.planes.iter().map(|plane| plane.pack(&order)).collect::<Result<_>>()?;
        let codes = ops::concatenate(&planes.iter().collect::<Vec<_>>(), -1)?;
        Ok(vec![codes, ops::astype(&scale, Dtype::Float16)?])
    }

    /// The scale of each row by the rule; names are those of [`turbo::encode`].
    #[expect(clippy::cast_precision_loss, reason = "head dimensions are small")]
    fn scale(&self, norm: &Array, deviations: &Array, levels: &Array) -> Result<Array> {
        let dim = self.dim as f64;
        let unit = f64::from(self.book.unit);
        Ok(match self.rule {
            ScaleRule::Unbiased => {
                let dot = ops::sum(&ops::multiply(deviations, levels)?, -1, true)?;
                ops::divide(&ops::multiply_scalar(norm, dim * unit)?, &dot)?
            }
            ScaleRule::Renormalised => {
                let length = ops::sqrt(&ops::sum(&ops::square(levels)?, -1, true)?)?;
                ops::divide(&ops::multiply_scalar(norm, dim.sqrt() * unit)?, &length)?
            }
            ScaleRule::Norm => norm.clone(),
        })
    }

    /// `codes`, `[…, bytes]`, as coordinates of a row of scale 1, fp32 `[…, dim]`.
    fn levels(&self, codes: &Array) -> Result<Array> {
        let mut start = 0;
        let mut product: Option<Array> = None;
        for plane in &self.planes {
            let end = start + int(self.dim)? / plane.coordinates;
            let values = plane.unpack(&ops::slice_axis(codes, -1, start, end)?)?;
            product = Some(match product {
                Some(before) => ops::multiply(&before, &values)?,
                None => values,
            });
            start = end;
        }
        Ok(product.expect("a Turbo code has at least one plane"))
    }
}

/// Some bits of a code.
#[derive(Clone, Copy)]
struct Field {
    shift: u8,
    bits: u8,
}

/// One [`Field`] of each code of a row, packed; a coordinate's value is the product over planes.
#[derive(Clone)]
struct Plane {
    /// Coordinates in a byte.
    coordinates: i32,
    /// The field, by the order of levels, u8.
    fields: Array,
    /// Weight of a field at each place of a byte, u8 `[coordinates]`.
    weights: Array,
    /// Values of each byte, fp32 `[256, coordinates]`.
    bytes: Array,
}

impl Plane {
    /// The plane of `field` of `codes`, which are in the order of their levels; `value` maps a field to
    /// its value.
    fn new(codes: &[u8], Field { shift, bits }: Field, value: impl Fn(u8) -> f32) -> Result<Self> {
        let mask = (1u8 << bits) - 1;
        let coordinates = 8 / bits;
        let fields: Vec<u8> = codes.iter().map(|code| code >> shift & mask).collect();
        let weights: Vec<u8> = (0..coordinates).map(|place| 1 << (place * bits)).collect();
        let bytes = (0..=u8::MAX)
            .flat_map(|byte| (0..coordinates).map(move |place| byte >> (place * bits) & mask));
        let bytes: Vec<f32> = bytes.map(value).collect();
        let coordinates = i32::from(coordinates);
        Ok(Self {
            coordinates,
            fields: Array::from_slice(&fields, &[int(fields.len())?])?,
            weights: Array::from_slice(&weights, &[coordinates])?,
            bytes: Array::from_slice(&bytes, &[256, coordinates])?,
        })
    }

    /// The bytes of rows of levels, `[…, dim]`, given by their order.
    fn pack(&self, order: &Array) -> Result<Array> {
        let fields = ops::take(&self.fields, order, 0)?;
        let mut shape = fields.shape().to_vec();
        if let Some(dim) = shape.last_mut() {
            *dim /= self.coordinates;
        }
        shape.push(self.coordinates);
        let weighed = ops::multiply(&ops::reshape(&fields, &shape)?, &self.weights)?;
        Ok(ops::astype(&ops::sum(&weighed, -1, false)?, Dtype::Uint8)?)
    }

    /// Values of `bytes`, `[…, n]`: fp32 `[…, n · coordinates]`.
    fn unpack(&self, bytes: &Array) -> Result<Array> {
        let mut shape = bytes.shape().to_vec();
        if let Some(dim) = shape.last_mut() {
            *dim *= self.coordinates;
        }
        Ok(ops::reshape(&ops::take(&self.bytes, bytes, 0)?, &shape)?)
    }
}
