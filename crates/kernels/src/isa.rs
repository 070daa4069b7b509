//! Instruction sets: what the processor has, and which of it the kernels use.
//!
//! A [`Cpu`] is a proof: it can only be made by asking the processor, so a kernel that holds one
//! may call functions compiled for its features. `MLXCEL_ISA` is read here and nowhere else.

use crate::error::{KernelError, Result};
use std::fmt;

/// A family of vector instructions that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable Rust, on every machine.
    Scalar,
    /// x86-64 AVX2 with FMA and F16C.
    Avx2,
    /// x86-64 AVX-512 F, BW, VL, DQ, VBMI and VNNI: Ice Lake, Zen 4 and later. Earlier AVX-512
    /// processors lower their clock for it and run [`Isa::Avx2`].
    Avx512,
    /// AArch64 Advanced SIMD.
    Neon,
}

impl Isa {
    /// The instruction set called `word` in `MLXCEL_ISA`.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] for any other word.
    pub fn parse(word: &str) -> Result<Self> {
        match word.trim().to_ascii_lowercase().as_str() {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "neon" => Ok(Self::Neon),
            _ => Err(KernelError::UnknownIsa { word: word.to_owned() }),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        })
    }
}

/// An instruction set that this processor has, with its optional extensions.
///
/// The fields are private because safe code relies on them: a `Cpu` whose [`Cpu::isa`] is
/// [`Isa::Avx512`] exists only on a processor with AVX-512.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    isa: Isa,
    vnni: bool,
    bf16: bool,
}

impl Cpu {
    /// The best instruction set of this processor.
    #[must_use]
    pub fn detect() -> Self {
        [Isa::Avx512, Isa::Avx2, Isa::Neon].into_iter().find_map(probe).unwrap_or(Self {
            isa: Isa::Scalar,
            vnni: false,

            bf16: false,
        })
    }

    /// `isa` with every extension of it that this processor has.
    ///
    /// # Errors
    /// [`KernelError::MissingIsa`] when the processor lacks `isa`.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        probe(isa).ok_or_else(|| KernelError::MissingIsa { isa, best: Self::detect().isa })
    }

    /// The instruction set that `MLXCEL_ISA` names, or the best one when it is unset or empty.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] and [`KernelError::MissingIsa`].
    pub fn from_env() -> Result<Self> {
        match std::env::var_os("MLXCEL_ISA") {
            Some(word) if !word.is_empty() => Self::with_isa(Isa::parse(&word.to_string_lossy())?),
            _ => Ok(Self::detect()),
        }
    }

    /// Every instruction set of this processor, best last; for tests and benches.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512].into_iter().filter_map(probe).collect()
    }

    /// This processor without its optional extensions (the ones that [`Isa`] does not imply);
    /// for tests of the plain paths.
    #[must_use]
    pub fn without_extensions(self) -> Self {
        Self { vnni: self.isa == Isa::Avx512, bf16: false, ..self }
    }

    /// The instruction set.
    #[must_use]
    pub fn isa(self) -> Isa {
        self.isa
    }

    /// Returns true if there are 8-bit dot products: always with [`Isa::Avx512`], AVX-VNNI with
    /// [`Isa::Avx2`], `dotprod` with [`Isa::Neon`].
    #[must_use]
    pub fn has_vnni(self) -> bool {
        self.vnni
    }

    /// Returns true if there are bf16 dot products: AVX512-BF16 with [`Isa::Avx512`].
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self.bf16
    }
}

/// Asks the processor for `isa` and its extensions.
#[cfg(target_arch = "x86_64")]
fn probe(isa: Isa) -> Option<Cpu> {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    match isa {
        Isa::Scalar => Some(Cpu { isa, vnni: false, bf16: false }),
        Isa::Avx2 => avx2.then(|| Cpu { isa, vnni: has!("avxvnni"), bf16: false }),
        Isa::Avx512 => {
            let base = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            let bytes = has!("avx512vbmi") && has!("avx512vnni");
            (avx2 && base && bytes).then(|| Cpu { isa, vnni: true, bf16: has!("avx512bf16") })
        }
        Isa::Neon => None,
    }
}

/// Asks the processor for `isa` and its extensions.
#[cfg(target_arch = "aarch64")]
fn probe(isa: Isa) -> Option<Cpu> {
    use std::arch::is_aarch64_feature_detected as has;
    match isa {
        Isa::Scalar => Some(Cpu { isa, vnni: false, bf16: false }),
        Isa::Neon => has!("neon").then(|| Cpu { isa, vnni: has!("dotprod"), bf16: false }),
        Isa::Avx2 | Isa::Avx512 => None,
    }
}

/// Other processors have the portable kernels.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn probe(isa: Isa) -> Option<Cpu> {
    (isa == Isa::Scalar).then_some(Cpu { isa, vnni: false, bf16: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_others_are_refused() {
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon] {
            assert_eq!(Isa::parse(&isa.to_string().to_uppercase()).unwrap(), isa);
        }
        for word in ["sse9", "avx-512", ""] {
            assert!(matches!(Isa::parse(word), Err(KernelError::UnknownIsa { .. })), "{word}");
        }
    }

    #[test]
    fn an_instruction_set_of_another_architecture_is_missing() {
        let foreign = if cfg!(target_arch = "aarch64") { Isa::Avx2 } else { Isa::Neon };
        let err = Cpu::with_isa(foreign).unwrap_err();
        assert!(matches!(err, KernelError::MissingIsa { isa, .. } if isa == foreign));
        assert!(Cpu::all().iter().all(|cpu| cpu.isa() != foreign));
    }

    #[test]
    fn detect_is_the_best_of_all() {
        assert_eq!(Cpu::all().last().copied(), Some(Cpu::detect()));
        assert_eq!(Cpu::all()[0].isa(), Isa::Scalar);
    }
}
