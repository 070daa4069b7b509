//! Decoding units of int8 and Turbo codes into byte groups (see [`crate::kv::layout`]).

use super::lanes::Lanes;

/// A code format: how a unit of storage becomes groups of 64 bytes.
pub(crate) trait Codec {
    /// Groups per unit.
    const GROUPS: usize;
    /// Bytes per unit.
    const UNIT_BYTES: usize;

    /// The first `GROUPS` entries are the groups of the unit at `p`, looked up in `table`.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`; `p` must be valid for `UNIT_BYTES`.
    unsafe fn unit<L: Lanes>(p: *const u8, table: L::Bytes) -> [L::Bytes; 4];
}

/// One byte per code; the table is not used.
pub(crate) struct Bytes;
/// Two nibbles per byte.
pub(crate) struct Nibbles;
/// Two magnitude bits in each byte for each of four groups, and four sign masks.
pub(crate) struct Crumbs;

impl Codec for Bytes {
    const GROUPS: usize = 1;
    const UNIT_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn unit<L: Lanes>(p: *const u8, _table: L::Bytes) -> [L::Bytes; 4] {
        // SAFETY: the caller's.
        [unsafe { L::bytes(p) }; 4]
    }
}

impl Codec for Nibbles {
    const GROUPS: usize = 2;
    const UNIT_BYTES: usize = 64;

    #[inline(always)]
    unsafe fn unit<L: Lanes>(p: *const u8, table: L::Bytes) -> [L::Bytes; 4] {
        // SAFETY: the caller's.
        unsafe {
            let codes = L::bytes(p);
            let low = L::lookup(table, L::field::<0>(codes, 15));
            let high = L::lookup(table, L::field::<4>(codes, 15));
            [low, high, low, high]
        }
    }
}

impl Codec for Crumbs {
    const GROUPS: usize = 4;
    const UNIT_BYTES: usize = 96;

    #[inline(always)]
    unsafe fn unit<L: Lanes>(p: *const u8, table: L::Bytes) -> [L::Bytes; 4] {
        // SAFETY: the caller's; the masks are the last 32 of the 96 bytes.
        unsafe {
            let codes = L::bytes(p);
            let signs = p.add(64).cast::<u64>();
            let sign = |i: usize| u64::from_le(signs.add(i).read_unaligned());
            [
                L::lookup(table, L::add_four(L::field::<0>(codes, 3), sign(0))),
                L::lookup(table, L::add_four(L::field::<2>(codes, 3), sign(1))),
                L::lookup(table, L::add_four(L::field::<4>(codes, 3), sign(2))),
                L::lookup(table, L::add_four(L::field::<6>(codes, 3), sign(3))),
            ]
        }
    }
}
