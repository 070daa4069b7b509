//! Index tables for the byte and lane shuffles.
#![expect(clippy::cast_possible_truncation, reason = "indices below 128")]

use super::LANES;

/// Columns of the narrowest groups; the others have 64 or 128.
pub(crate) const NARROW_GROUP: usize = 32;

/// Per group size 32, 64, 128 and unit of 128 elements within a block of 16 groups: the group
/// within the block that each dword lane belongs to.
static LANE_GROUPS: [[[i32; LANES]; LANES]; 3] =
    [expand_rows(32), expand_rows(64), expand_rows(128)];

/// Places of the groups of a size in the units that 16 of them make, `group / 8` units.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    units: &'static [[i32; LANES]; LANES],
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by AVX2"))]
    shift: u32,
}

impl Places {
    /// Places of groups of 32, 64 or 128.
    #[inline(always)]
    pub(crate) fn of(group: usize) -> Self {
        let size = (group / 64).min(2);
        Self { units: &LANE_GROUPS[size], shift: u32::from(size == 2) }
    }
    /// The group of each dword lane of unit `unit`.
    #[inline(always)]
    pub(super) fn lanes(self, unit: usize) -> &'static [i32; LANES] {
        &self.units[unit % LANES]
    }
    /// The group that half a unit belongs to, if none is narrower.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn group(self, half: usize) -> usize {
        half >> self.shift
    }
}

const fn expand_rows(group: usize) -> [[i32; LANES]; LANES] {
    let mut rows = [[0; LANES]; LANES];
    let mut unit = 0;
    while unit < group / 8 {
        let mut lane = 0;
        while lane < LANES {
            rows[unit][lane] = ((unit * 128 + lane * 8) / group) as i32;
            lane += 1;
        }
        unit += 1;
    }
    rows
}

/// Byte indices that put `take` consecutive bytes into each of eight qwords.
#[cfg(target_arch = "x86_64")]
pub(super) const fn spread_bytes(take: usize) -> [u8; 64] {
    let mut index = [0; 64];
    let mut i = 0;
    while i < 64 {
        let byte = take * (i / 8) + i % 8;
        index[i] = if byte < 64 { byte as u8 } else { 63 };
        i += 1;
    }
    index
}

/// Per byte of each qword, the bit offset of the code it selects: code
/// `first + step·j` of `bits` bits for byte `j`.
#[cfg(target_arch = "x86_64")]
pub(super) const fn code_shifts(bits: usize, codes: [usize; 8]) -> [u8; 64] {
    let mut shifts = [0; 64];
    let mut i = 0;
    while i < 64 {
        shifts[i] = (bits * codes[i % 8]) as u8;
        i += 1;
    }
    shifts
}
