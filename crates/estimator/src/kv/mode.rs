//! Cache types, the modes that pair them, and their names in flags.

use std::fmt;

use crate::error::{EstimatorError, shortened};

/// Storage of one side of the cache, keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CacheType {
    /// 16-bit floats, fp16 or bf16.
    Fp16,
    /// 32-bit floats, in the place of 16-bit ones if everything is computed in fp32. No flag names it
    /// ([`crate::KvStorage`]).
    Fp32,
    /// 8-bit integers, an fp16 scale per vector.
    Int8,
    /// 4-bit rotated codes, an fp16 scale per vector.
    Turbo4,
    /// 3-bit rotated codes, an fp16 scale per vector.
    Turbo3,
    /// fp16 in the open block, turbo4 in sealed ones.
    Turbo4Delegated,
}

/// Names and bits per element (of sealed blocks).
const TYPES: [(CacheType, &str, u64); 6] = [
    (CacheType::Fp16, "fp16", 16),
    (CacheType::Fp32, "fp32", 32),
    (CacheType::Int8, "int8", 8),
    (CacheType::Turbo4, "turbo4", 4),
    (CacheType::Turbo3, "turbo3", 3),
    (CacheType::Turbo4Delegated, "turbo4-delegated", 4),
];

/// Types of llama.cpp, and the nearest ones here.
const NAMES_OF_LLAMA_CPP: [(&str, &str); 7] = [
    ("bf16", "fp16"),
    ("q8_0", "int8"),
    ("q4_0", "turbo4"),
    ("q4_1", "turbo4"),
    ("iq4_nl", "turbo4"),
    ("q5_0", "int8"),
    ("q5_1", "int8"),
];

/// The error for an unknown `value`, listing the known names and the nearest to a type of llama.cpp.
fn unknown(flag: &str, value: &str, names: &str) -> EstimatorError {
    let same = NAMES_OF_LLAMA_CPP.iter().find(|(theirs, _)| *theirs == value);
    let hint = same.map_or(String::new(), |(theirs, ours)| {
        format!(" (llama.cpp's {theirs} is nearest to {ours} here)")
    });
    EstimatorError::BadValue {
        name: flag.to_owned(),
        value: shortened(value),
        reason: format!("one of {names} is needed{hint}"),
    }
}

/// `f16` is but another name of fp16.
fn canonical(text: &str) -> &str {
    if text == "f16" { "fp16" } else { text }
}

impl CacheType {
    /// Name in flags and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        TYPES.iter().find(|(cache, ..)| *cache == self).map_or("", |(_, name, _)| name)
    }

    /// Bits per element.
    #[must_use]
    pub fn bits(self) -> u64 {
        TYPES.iter().find(|(cache, ..)| *cache == self).map_or(0, |(.., bits)| *bits)
    }

    /// Reports whether it stores rotated codes, which need a power-of-two head.
    #[must_use]
    pub fn is_turbo(self) -> bool {
        matches!(self, Self::Turbo4 | Self::Turbo3 | Self::Turbo4Delegated)
    }

    /// Reads what a flag gives; `flag` is named in the error.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`], listing the types; of a name of llama.cpp, the nearest.
    pub fn parse(flag: &str, text: &str) -> Result<Self, EstimatorError> {
        let text = canonical(text);
        let named: Vec<_> = TYPES.iter().filter(|(cache, ..)| *cache != Self::Fp32).collect();
        match named.iter().find(|(_, name, _)| *name == text) {
            Some((cache, ..)) => Ok(*cache),
            None => {
                let names: Vec<_> = named.iter().map(|(_, name, _)| *name).collect();
                Err(unknown(flag, text, &names.join(", ")))
            }
        }
    }
}

/// Cache mode: the storage of keys and of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KvMode {
    /// Both fp16.
    #[default]
    Fp16,
    /// Both int8.
    Int8,
    /// fp16 keys, turbo4 values.
    Fp16Turbo4,
    /// fp16 keys, turbo3 values.
    Fp16Turbo3,
    /// int8 keys, turbo4 values.
    Int8Turbo4,
    /// Both turbo4.
    Turbo4,
    /// fp16 keys, values fp16 in the open block and turbo4 behind it.
    Turbo4Delegated,
}

/// The supported pairs.
const MODES: [(KvMode, &str, CacheType, CacheType); 7] = [
    (KvMode::Fp16, "fp16", CacheType::Fp16, CacheType::Fp16),
    (KvMode::Int8, "int8", CacheType::Int8, CacheType::Int8),
    (KvMode::Fp16Turbo4, "fp16+turbo4", CacheType::Fp16, CacheType::Turbo4),
    (KvMode::Fp16Turbo3, "fp16+turbo3", CacheType::Fp16, CacheType::Turbo3),
    (KvMode::Int8Turbo4, "int8+turbo4", CacheType::Int8, CacheType::Turbo4),
    (KvMode::Turbo4, "turbo4", CacheType::Turbo4, CacheType::Turbo4),
    (KvMode::Turbo4Delegated, "turbo4-delegated", CacheType::Fp16, CacheType::Turbo4Delegated),
];

impl KvMode {
    /// Every mode.
    pub const ALL: [Self; 7] = [
        Self::Fp16,
        Self::Int8,
        Self::Fp16Turbo4,
        Self::Fp16Turbo3,
        Self::Int8Turbo4,
        Self::Turbo4,
        Self::Turbo4Delegated,
    ];

    /// Name in `--kv-cache-mode`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Storage of keys.
    #[must_use]
    pub fn keys(self) -> CacheType {
        self.entry().2
    }

    /// Storage of values.
    #[must_use]
    pub fn values(self) -> CacheType {
        self.entry().3
    }

    /// Reports whether either side stores rotated codes.
    #[must_use]
    pub fn is_turbo(self) -> bool {
        self.keys().is_turbo() || self.values().is_turbo()
    }

    fn entry(self) -> (Self, &'static str, CacheType, CacheType) {
        const FP16: (KvMode, &str, CacheType, CacheType) =
            (KvMode::Fp16, "fp16", CacheType::Fp16, CacheType::Fp16);
        MODES.into_iter().find(|(mode, ..)| *mode == self).unwrap_or(FP16)
    }

    /// Reads what `--kv-cache-mode` gives.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`], listing the modes.
    pub fn parse(text: &str) -> Result<Self, EstimatorError> {
        let text = canonical(text);
        let known = MODES.iter().find(|(_, name, ..)| *name == text).map(|(mode, ..)| *mode);
        known.ok_or_else(|| {
            unknown("--kv-cache-mode", text, &MODES.map(|(_, name, ..)| name).join(", "))
        })
    }

    /// The mode of a pair.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`] for a pair outside the table, listing the table.
    pub fn from_pair(keys: CacheType, values: CacheType) -> Result<Self, EstimatorError> {
        let known = MODES.iter().find(|(_, _, k, v)| (*k, *v) == (keys, values));
        known.map(|(mode, ..)| *mode).ok_or_else(|| EstimatorError::BadValue {
            name: "--cache-type-k/--cache-type-v".to_owned(),
            value: format!("{}/{}", keys.name(), values.name()),
            reason: format!("there is no such pair; the pairs are {}", pairs()),
        })
    }

    /// Combines the three flags: split flags override `--kv-cache-mode` (with a note if they differ),
    /// and a side that is not given is fp16.
    ///
    /// # Errors
    /// A name or a pair that does not exist.
    pub fn choose(
        mode: Option<&str>,
        keys: Option<&str>,
        values: Option<&str>,
    ) -> Result<KvChoice, EstimatorError> {
        let stated = mode.map(Self::parse).transpose()?;
        if keys.is_none() && values.is_none() {
            return Ok(KvChoice { mode: stated.unwrap_or_default(), note: None });
        }
        let keys = CacheType::parse("--cache-type-k", keys.unwrap_or("fp16"))?;
        let values = CacheType::parse("--cache-type-v", values.unwrap_or("fp16"))?;
        let pair = Self::from_pair(keys, values)?;
        let overruled = stated.filter(|stated| *stated != pair);
        let note = overruled.map(|stated| {
            format!("--cache-type-k/-v give {pair}, which overrules --kv-cache-mode {stated}")
        });
        Ok(KvChoice { mode: pair, note })
    }
}

impl fmt::Display for KvMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The mode that the flags select, and a note for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvChoice {
    /// The mode.
    pub mode: KvMode,
    /// A sentence if one flag overrides another.
    pub note: Option<String>,
}

fn pairs() -> String {
    MODES.map(|(_, _, k, v)| format!("{}/{}", k.name(), v.name())).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mode: Option<&str>, k: Option<&str>, v: Option<&str>, expected: &str) {
        let got = match KvMode::choose(mode, k, v) {
            Ok(KvChoice { mode, note }) => format!("{mode} {}", note.unwrap_or_default()),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{got}");
    }

    #[test]
    fn flags_together() {
        check(None, None, None, "fp16 ");
        check(Some("turbo4"), None, None, "turbo4 ");
        check(None, None, Some("turbo3"), "fp16+turbo3");
        check(None, Some("int8"), Some("turbo4"), "int8+turbo4");
        check(None, None, Some("turbo4-delegated"), "turbo4-delegated");
        check(Some("int8"), Some("int8"), Some("int8"), "int8 ");
        check(Some("int8"), None, Some("turbo4"), "which overrules --kv-cache-mode int8");
    }

    #[test]
    fn what_does_not_exist_lists_what_does() {
        check(
            None,
            Some("int8"),
            None,
            "int8/fp16: there is no such pair; the pairs are fp16/fp16, int8/int8",
        );
        check(None, Some("turbo3"), Some("turbo3"), "no such pair");
        check(None, Some("q4_0"), None, "--cache-type-k=q4_0: one of fp16, int8");
        check(None, Some("fp32"), None, "--cache-type-k=fp32: one of fp16, int8, turbo4, turbo3");
        check(Some("fp8"), None, None, "--kv-cache-mode=fp8: one of fp16, int8, fp16+turbo4");
    }

    #[test]
    fn every_mode_is_its_pair() {
        for mode in KvMode::ALL {
            assert_eq!(KvMode::parse(mode.name()).unwrap(), mode);
            assert_eq!(KvMode::from_pair(mode.keys(), mode.values()).unwrap(), mode);
        }
    }
}
