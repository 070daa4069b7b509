//! Layout of every byte of a cache block.
//!
//! A block is four areas, in this order: key codes, key scales, value codes, value scales. Each
//! area holds its KV heads one after the other, each head [`KV_BLOCK_TOKENS`] tokens. Scales are
//! one fp16 per token. Codes are ordered so that a vector register holds what an attention kernel
//! needs at once:
//!
//! * float keys `[tokens/16][dim][16]`: one register is one coordinate of 16 tokens;
//! * float values `[tokens][dim]`;
//! * int8 and Turbo codes are *groups* of 64 bytes, 16 rows of 4: a key group is 16 tokens × 4
//!   coordinates, a value group 16 coordinates × 4 tokens, so one 8-bit dot product instruction
//!   adds four products into each of 16 lanes.
//!   - key groups: `[tokens/16][dim/4]`;
//!   - value groups: `[dim/32][tokens/4][2]`, the last chunk of fewer than 32 coordinates has
//!     groups for what is left.
//! * int8 keys are stored plus 128 (unsigned operand), int8 values as they are (signed operand).
//! * a Turbo4 *unit* is 64 bytes for two consecutive groups: low nibbles are the codes of the
//!   first, high nibbles of the second;
//! * a Turbo3 unit is 96 bytes for four consecutive groups: 64 bytes hold the two magnitude bits
//!   of each (group g in bits 2g and 2g+1), then one 64-bit little-endian sign mask per group.
//!
//! With a dimension that is no multiple of 4 (keys) or 16 (values), the last int8 group has
//! narrower or fewer rows; nothing is padded.

use super::format::KvFormat;
use crate::error::{KernelError, Result};
use crate::turbo::ScaleRule;
use std::ops::Range;

/// Tokens per block: allocation step, rounding unit of estimates, unit of sharing.
pub const KV_BLOCK_TOKENS: usize = 256;

/// Storage of the values of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueStore {
    /// Their own area in this format.
    Own(KvFormat),
    /// Nothing: a value is the first `value_dim` coordinates of its key (MLA latents).
    KeyPrefix,
}

/// The shape and formats of a block; equal layouts have interchangeable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    key: KvFormat,
    value: ValueStore,
    value_scale: ScaleRule,
}

/// Bytes of each area of a block, in the order in which they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaBytes {
    /// Key coordinates.
    pub key_codes: usize,
    /// Key scales.
    pub key_scales: usize,
    /// Value coordinates.
    pub value_codes: usize,
    /// Value scales.
    pub value_scales: usize,
}

impl AreaBytes {
    /// All areas together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.key_codes + self.key_scales + self.value_codes + self.value_scales
    }
}

impl BlockLayout {
    /// A layout for `kv_heads` heads of `key_dim` and `value_dim` coordinates. Turbo values take
    /// the default scale rule; see [`Self::with_value_scale`].
    ///
    /// # Errors
    /// [`KernelError::Dimension`] for no heads, a dimension that the format cannot store, or a
    /// key prefix longer than the key or of a rotated (Turbo) key.
    pub fn new(
        kv_heads: usize,
        key_dim: usize,
        value_dim: usize,
        key: KvFormat,
        value: ValueStore,
    ) -> Result<Self> {
        if kv_heads == 0 || kv_heads > 1 << 16 {
            let rule = "between 1 and 65536";
            return Err(KernelError::Dimension { what: "kv_heads", value: kv_heads, rule });
        }
        key.check_dim(key_dim)?;
        match value {
            ValueStore::Own(format) => format.check_dim(value_dim)?,
            ValueStore::KeyPrefix if key.turbo().is_some() => {
                let rule = "stored separately with turbo keys";
                return Err(KernelError::Dimension { what: "value_dim", value: value_dim, rule });
            }
            ValueStore::KeyPrefix if value_dim == 0 || value_dim > key_dim => {
                let rule = "between 1 and key_dim when values are a prefix of keys";
                return Err(KernelError::Dimension { what: "value_dim", value: value_dim, rule });
            }
            ValueStore::KeyPrefix => {}
        }
        let value_scale = ScaleRule::default();
        Ok(Self { kv_heads, key_dim, value_dim, key, value, value_scale })
    }

    /// This layout with Turbo values written by `rule`.
    #[must_use]
    pub fn with_value_scale(self, rule: ScaleRule) -> Self {
        Self { value_scale: rule, ..self }
    }

    /// This layout with values stored in `format`.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn with_value_format(self, format: KvFormat) -> Result<Self> {
        let own = ValueStore::Own(format);
        let layout = Self::new(self.kv_heads, self.key_dim, self.value_dim, self.key, own)?;
        Ok(layout.with_value_scale(self.value_scale))
    }

    /// KV heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Coordinates of a key.
    #[must_use]
    pub fn key_dim(&self) -> usize {
        self.key_dim
    }

    /// Coordinates of a value.
    #[must_use]
    pub fn value_dim(&self) -> usize {
        self.value_dim
    }

    /// Format of the keys.
    #[must_use]
    pub fn key(&self) -> KvFormat {
        self.key
    }

    /// Format of the values, or that they are a key prefix.
    #[must_use]
    pub fn value(&self) -> ValueStore {
        self.value
    }

    /// Scale rule of Turbo values (keys are always unbiased).
    #[must_use]
    pub fn value_scale(&self) -> ScaleRule {
        self.value_scale
    }

    /// Bytes of each area.
    #[must_use]
    pub fn areas(&self) -> AreaBytes {
        let vectors = KV_BLOCK_TOKENS * self.kv_heads;
        let (value_codes, value_scales) = match self.value {
            ValueStore::Own(format) => (format.code_bytes(self.value_dim), format.scale_bytes()),
            ValueStore::KeyPrefix => (0, 0),
        };
        AreaBytes {
            key_codes: vectors * self.key.code_bytes(self.key_dim),
            key_scales: vectors * self.key.scale_bytes(),
            value_codes: vectors * value_codes,
            value_scales: vectors * value_scales,
        }
    }

    /// Bytes of a block: 256 × kv_heads × bytes per token and head.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.areas().total()
    }

    /// Byte range of the key codes of `head`.
    pub(crate) fn key_codes(&self, head: usize) -> Range<usize> {
        part(0, self.areas().key_codes, self.kv_heads, head)
    }

    /// Byte range of the key scales of `head`.
    pub(crate) fn key_scales(&self, head: usize) -> Range<usize> {
        let areas = self.areas();
        part(areas.key_codes, areas.key_scales, self.kv_heads, head)
    }

    /// Byte range of the value codes of `head`.
    pub(crate) fn value_codes(&self, head: usize) -> Range<usize> {
        let areas = self.areas();
        part(areas.key_codes + areas.key_scales, areas.value_codes, self.kv_heads, head)
    }

    /// Byte range of the value scales of `head`.
    pub(crate) fn value_scales(&self, head: usize) -> Range<usize> {
        let areas = self.areas();
        part(areas.total() - areas.value_scales, areas.value_scales, self.kv_heads, head)
    }
}

/// The `head`-th of `heads` equal parts of the area of `bytes` at `start`.
fn part(start: usize, bytes: usize, heads: usize, head: usize) -> Range<usize> {
    let size = bytes / heads;
    start + head * size..start + (head + 1) * size
}

/// Index of a float key coordinate among its head's elements: `[tokens/16][dim][16]`.
#[inline(always)]
pub(crate) fn float_key_index(dim: usize, token: usize, coord: usize) -> usize {
    (token / 16 * dim + coord) * 16 + token % 16
}

/// Index of an int8 key coordinate among its head's bytes.
#[inline(always)]
pub(crate) fn int8_key_index(dim: usize, token: usize, coord: usize) -> usize {
    let group = coord / 4;
    let width = (dim - 4 * group).min(4);
    token / 16 * 16 * dim + group * 64 + token % 16 * width + coord % 4
}

/// Index of an int8 value coordinate among its head's bytes.
#[inline(always)]
pub(crate) fn int8_value_index(dim: usize, token: usize, coord: usize) -> usize {
    let chunk = coord / 32;
    let width = (dim - 32 * chunk).min(32);
    chunk * 32 * KV_BLOCK_TOKENS + token / 4 * 4 * width + coord % 32 * 4 + token % 4
}

/// Group and byte within it of a Turbo key coordinate.
#[inline(always)]
pub(crate) fn turbo_key_position(dim: usize, token: usize, coord: usize) -> (usize, usize) {
    (token / 16 * (dim / 4) + coord / 4, token % 16 * 4 + coord % 4)
}

/// Group and byte within it of a Turbo value coordinate.
#[inline(always)]
pub(crate) fn turbo_value_position(token: usize, coord: usize) -> (usize, usize) {
    let groups_per_chunk = KV_BLOCK_TOKENS / 4 * 2;
    let group = coord / 32 * groups_per_chunk + token / 4 * 2 + coord % 32 / 16;
    (group, coord % 16 * 4 + token % 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_formula() {
        for key in KvFormat::ALL {
            for value in KvFormat::ALL {
                let layout = BlockLayout::new(3, 128, 64, key, ValueStore::Own(value)).unwrap();
                let per_token = key.code_bytes(128)
                    + key.scale_bytes()
                    + value.code_bytes(64)
                    + value.scale_bytes();
                assert_eq!(layout.bytes(), 256 * 3 * per_token);
                assert_eq!(layout.value_scales(2).end, layout.bytes());
                assert_eq!(layout.key_codes(0).end, layout.key_codes(1).start);
                assert_eq!(layout.key_codes(2).end, layout.key_scales(0).start);
                assert_eq!(layout.key_scales(2).end, layout.value_codes(0).start);
                assert_eq!(layout.value_codes(2).end, layout.value_scales(0).start);
            }
        }
        let latent = BlockLayout::new(1, 576, 512, KvFormat::F16, ValueStore::KeyPrefix).unwrap();
        assert_eq!(latent.bytes(), 256 * 576 * 2);
    }

    #[test]
    fn byte_indices_are_permutations() {
        for dim in [1, 3, 8, 31, 40, 72, 80, 112, 128, 577] {
            for index in [float_key_index, int8_key_index, int8_value_index] {
                let mut seen = vec![false; KV_BLOCK_TOKENS * dim];
                for token in 0..KV_BLOCK_TOKENS {
                    for coord in 0..dim {
                        let at = index(dim, token, coord);
                        assert!(!std::mem::replace(&mut seen[at], true), "{dim} {token} {coord}");
                    }
                }
            }
        }
    }

    #[test]
    fn turbo_positions_are_permutations() {
        for dim in [32, 64, 512] {
            for slot in [turbo_key_position, |_, token, coord| turbo_value_position(token, coord)] {
                let mut seen = vec![false; KV_BLOCK_TOKENS * dim];
                for token in 0..KV_BLOCK_TOKENS {
                    for coord in 0..dim {
                        let (group, byte) = slot(dim, token, coord);
                        assert!(byte < 64);
                        assert!(!std::mem::replace(&mut seen[group * 64 + byte], true));
                    }
                }
            }
        }
    }

    #[test]
    fn impossible_layouts_are_errors() {
        let new = BlockLayout::new;
        let own = ValueStore::Own;
        assert!(new(0, 64, 64, KvFormat::F16, own(KvFormat::F16)).is_err());
        assert!(new(1, 0, 64, KvFormat::F16, own(KvFormat::F16)).is_err());
        assert!(new(1, 80, 64, KvFormat::Turbo4, own(KvFormat::F16)).is_err());
        assert!(new(1, 64, 112, KvFormat::F16, own(KvFormat::Turbo3)).is_err());
        assert!(new(1, 64, 65, KvFormat::F16, ValueStore::KeyPrefix).is_err());
        assert!(new(1, 64, 32, KvFormat::Turbo4, ValueStore::KeyPrefix).is_err());
    }
}
