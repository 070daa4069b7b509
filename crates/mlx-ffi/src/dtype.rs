//! Element types and their Rust counterparts.

use std::fmt;

use half::{bf16, f16};

use crate::bindings as sys;

/// Element type of an array; covers every type of MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// `u8`.
    Uint8,
    /// `u16`.
    Uint16,
    /// `u32`.
    Uint32,
    /// `u64`.
    Uint64,
    /// `i8`.
    Int8,
    /// `i16`.
    Int16,
    /// `i32`.
    Int32,
    /// `i64`.
    Int64,
    /// [`half::f16`].
    Float16,
    /// `f32`.
    Float32,
    /// `f64`; CPU only.
    Float64,
    /// [`half::bf16`].
    Bfloat16,
    /// Two `f32`: real and imaginary part.
    Complex64,
}

/// Every type with its number in the C ABI, its size in bytes, and MLX's name.
const TABLE: [(Dtype, u32, usize, &str); 14] = [
    (Dtype::Bool, sys::MLXCEL_BOOL, 1, "bool"),
    (Dtype::Uint8, sys::MLXCEL_UINT8, 1, "uint8"),
    (Dtype::Uint16, sys::MLXCEL_UINT16, 2, "uint16"),
    (Dtype::Uint32, sys::MLXCEL_UINT32, 4, "uint32"),
    (Dtype::Uint64, sys::MLXCEL_UINT64, 8, "uint64"),
    (Dtype::Int8, sys::MLXCEL_INT8, 1, "int8"),
    (Dtype::Int16, sys::MLXCEL_INT16, 2, "int16"),
    (Dtype::Int32, sys::MLXCEL_INT32, 4, "int32"),
    (Dtype::Int64, sys::MLXCEL_INT64, 8, "int64"),
    (Dtype::Float16, sys::MLXCEL_FLOAT16, 2, "float16"),
    (Dtype::Float32, sys::MLXCEL_FLOAT32, 4, "float32"),
    (Dtype::Float64, sys::MLXCEL_FLOAT64, 8, "float64"),
    (Dtype::Bfloat16, sys::MLXCEL_BFLOAT16, 2, "bfloat16"),
    (Dtype::Complex64, sys::MLXCEL_COMPLEX64, 8, "complex64"),
];

impl Dtype {
    fn row(self) -> &'static (Self, u32, usize, &'static str) {
        // A test asserts that the table follows the order of the enum.
        &TABLE[self as usize]
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        self.row().2
    }

    /// Bytes of an array of `shape`; `None` if a dimension is negative or the product overflows.
    #[must_use]
    pub fn nbytes(self, shape: &[i32]) -> Option<usize> {
        shape.iter().try_fold(self.size_bytes(), |bytes, &dim| {
            bytes.checked_mul(usize::try_from(dim).ok()?)
        })
    }

    pub(crate) fn number(self) -> i32 {
        self.row().1.cast_signed()
    }

    pub(crate) fn from_number(number: i32) -> Self {
        let row = TABLE.iter().find(|row| row.1.cast_signed() == number);
        row.expect("the shim asserts that its types are numbered as in MLX").0
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().3)
    }
}

/// Rust counterpart of an element type for which every bit pattern is valid.
///
/// (`bool` has invalid bit patterns: see [`Array::to_bools`](crate::Array::to_bools).)
pub trait Element: bytemuck::Pod + sealed::Sealed {
    /// MLX's name for this type.
    const DTYPE: Dtype;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements! {
    u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64,
    i8 => Int8, i16 => Int16, i32 => Int32, i64 => Int64,
    f16 => Float16, bf16 => Bfloat16, f32 => Float32, f64 => Float64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(row.1 as usize, i);
            assert_eq!(Dtype::from_number(row.0.number()), row.0);
        }
    }

    #[test]
    fn nbytes_rejects_negative_and_overflowing_shapes() {
        assert_eq!(Dtype::Float32.nbytes(&[2, 3]), Some(24));
        assert_eq!(Dtype::Float32.nbytes(&[]), Some(4));
        assert_eq!(Dtype::Float32.nbytes(&[0, 7]), Some(0));
        assert_eq!(Dtype::Float32.nbytes(&[-1]), None);
        assert_eq!(Dtype::Uint8.nbytes(&[i32::MAX; 3]), None);
    }
}
