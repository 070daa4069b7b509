//! Storage formats of a head vector in one side (keys or values) of a cache block, and their sizes.

use crate::error::{KernelError, Result};
use crate::turbo::{self, TurboBits};
use std::fmt;

/// Storage of one head vector of `dim` coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// IEEE single precision: 4·dim bytes.
    F32,
    /// IEEE half precision: 2·dim bytes.
    F16,
    /// bfloat16: 2·dim bytes.
    Bf16,
    /// dim bytes and one fp16 scale.
    Int8,
    /// dim/2 bytes and one fp16 scale; dim a power of two, 32 to 512.
    Turbo4,
    /// 3·dim/8 bytes and one fp16 scale; dim a power of two, 32 to 512.
    Turbo3,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [Self; 6] =
        [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Turbo4, Self::Turbo3];

    /// Bytes of the coordinates of one head vector, scale not included.
    #[must_use]
    pub fn code_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => 4 * dim,
            Self::F16 | Self::Bf16 => 2 * dim,
            Self::Int8 => dim,
            Self::Turbo4 => dim / 2,
            Self::Turbo3 => 3 * dim / 8,
        }
    }

    /// Bytes of the scale of one head vector: 2 or 0.
    #[must_use]
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 0,
            Self::Int8 | Self::Turbo4 | Self::Turbo3 => 2,
        }
    }

    /// The Turbo code width, if this is a Turbo format.
    #[must_use]
    pub fn turbo(self) -> Option<TurboBits> {
        match self {
            Self::Turbo4 => Some(TurboBits::Four),
            Self::Turbo3 => Some(TurboBits::Three),
            Self::F32 | Self::F16 | Self::Bf16 | Self::Int8 => None,
        }
    }

    /// Errors unless vectors of `dim` coordinates can be stored this way.
    ///
    /// # Errors
    /// [`KernelError::Dimension`].
    pub fn check_dim(self, dim: usize) -> Result<()> {
        if dim == 0 || dim > 1 << 16 {
            let rule = "between 1 and 65536";
            return Err(KernelError::Dimension { what: "head dimension", value: dim, rule });
        }
        if self.turbo().is_none() {
            return Ok(());
        }
        if dim < 32 {
            let rule = "at least 32 for a turbo mode";
            return Err(KernelError::Dimension { what: "head dimension", value: dim, rule });
        }
        turbo::check_dim(dim)
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "fp32",
            Self::F16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Turbo4 => "turbo4",
            Self::Turbo3 => "turbo3",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_per_vector_are_the_designs() {
        let table = [
            (KvFormat::F16, 128, 256),
            (KvFormat::Bf16, 80, 160),
            (KvFormat::Int8, 128, 130),
            (KvFormat::Turbo4, 128, 66),
            (KvFormat::Turbo3, 128, 50),
            (KvFormat::Turbo3, 64, 26),
        ];
        for (format, dim, bytes) in table {
            assert_eq!(format.code_bytes(dim) + format.scale_bytes(), bytes, "{format} {dim}");
        }
    }

    #[test]
    fn turbo_needs_a_power_of_two() {
        for dim in [80, 96, 112, 576, 16, 1024, 0] {
            assert!(KvFormat::Turbo4.check_dim(dim).is_err(), "{dim}");
            assert_eq!(KvFormat::Int8.check_dim(dim).is_err(), dim == 0, "{dim}");
        }
    }
}
