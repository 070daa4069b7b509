//! Element types of a safetensors file.

use std::fmt;

/// An element type, with the name that a safetensors header gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte per truth value.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Float, 4 bits (2 exponent, 1 mantissa), two in a byte.
    F4,
    /// Float, 6 bits (2 exponent, 3 mantissa).
    F6E2M3,
    /// Float, 6 bits (3 exponent, 2 mantissa).
    F6E3M2,
    /// Float, 8 bits (5 exponent, 2 mantissa).
    F8E5M2,
    /// Float, 8 bits (4 exponent, 3 mantissa).
    F8E4M3,
    /// A power of two in 8 bits, as microscaling formats use it.
    F8E8M0,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 16 bits.
    U16,
    /// IEEE half.
    F16,
    /// Brain float.
    BF16,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 32 bits: what MLX packs quantised weights into.
    U32,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 64 bits.
    U64,
    /// Two singles.
    C64,
}

/// Every type with its name in a header and its bits.
const TABLE: [(Dtype, &str, u64); 20] = [
    (Dtype::Bool, "BOOL", 8),
    (Dtype::U8, "U8", 8),
    (Dtype::I8, "I8", 8),
    (Dtype::F4, "F4", 4),
    (Dtype::F6E2M3, "F6_E2M3", 6),
    (Dtype::F6E3M2, "F6_E3M2", 6),
    (Dtype::F8E5M2, "F8_E5M2", 8),
    (Dtype::F8E4M3, "F8_E4M3", 8),
    (Dtype::F8E8M0, "F8_E8M0", 8),
    (Dtype::I16, "I16", 16),
    (Dtype::U16, "U16", 16),
    (Dtype::F16, "F16", 16),
    (Dtype::BF16, "BF16", 16),
    (Dtype::I32, "I32", 32),
    (Dtype::U32, "U32", 32),
    (Dtype::F32, "F32", 32),
    (Dtype::F64, "F64", 64),
    (Dtype::I64, "I64", 64),
    (Dtype::U64, "U64", 64),
    (Dtype::C64, "C64", 64),
];

impl Dtype {
    /// The type of this name in a header.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(dtype, _, _)| *dtype)
    }

    /// Name of this type in a header.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|(dtype, _, _)| *dtype == self).map_or("", |(_, name, _)| name)
    }

    /// Bits of one element.
    #[must_use]
    pub fn bits(self) -> u64 {
        TABLE.iter().find(|(dtype, _, _)| *dtype == self).map_or(0, |(_, _, bits)| *bits)
    }

    /// Bytes of `elements` elements, or `None` where that overflows or does not fill whole bytes.
    #[must_use]
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        (bits.checked_rem(8) == Some(0)).then(|| bits.checked_div(8))?
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (dtype, name, bits) in TABLE {
            assert_eq!(Dtype::from_name(name), Some(dtype));
            assert_eq!((dtype.name(), dtype.bits()), (name, bits));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }

    #[test]
    fn bytes_fill_whole_bytes() {
        assert_eq!(Dtype::BF16.bytes_of(3), Some(6));
        assert_eq!(Dtype::F4.bytes_of(3), None);
        assert_eq!(Dtype::F6E2M3.bytes_of(4), Some(3));
        assert_eq!(Dtype::F64.bytes_of(u64::MAX), None);
    }
}
