//! Quantised matrices as MLX's operations take them.

use mlx_ffi::ops::{Mode, Quantization, Quantized};

use crate::Result;
use crate::layers::{AffineWeight, Mxfp4Weight};
use crate::shape::int;

/// Quantisation of an affine matrix.
pub(crate) fn affine_scheme(w: &AffineWeight) -> Result<Quantization> {
    Ok(Quantization { mode: Mode::Affine, group_size: int(w.group_size)?, bits: int(w.bits)? })
}

/// The parts of an affine matrix.
pub(crate) fn affine(w: &AffineWeight) -> Result<Quantized> {
    Ok(Quantized {
        weight: w.codes.clone(),
        scales: w.scales.clone(),
        biases: Some(w.biases.clone()),
        quantization: affine_scheme(w)?,
    })
}

/// The parts of an MXFP4 matrix whose codes are 32-bit words.
pub(crate) fn mxfp4(w: &Mxfp4Weight) -> Quantized {
    Quantized {
        weight: w.codes.clone(),
        scales: w.scales.clone(),
        biases: None,
        quantization: Quantization { mode: Mode::Mxfp4, group_size: 32, bits: 4 },
    }
}
