//! MLX's fused operations.

use crate::array::optional;
use crate::bindings as sys;
use crate::{Array, Result};

/// RMS norm, `x / sqrt(mean(x²) + eps) * weight`, over the last axis. `weight`: `[last axis]`.
///
/// # Errors
/// Shapes that do not match.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let weight = optional(weight);
    // SAFETY: the arguments borrow live handles, null only where the shim takes an optional one; `out` is
    // the valid slot of `from_call`.
    Array::from_call("rms_norm", |out| unsafe {
        sys::mlxcel_fast_rms_norm(out, x.raw(), weight, eps)
    })
}

/// Layer norm, `(x - mean) / sqrt(var + eps) * weight + bias`, over the last axis. `weight`, `bias`:
/// `[last axis]`.
///
/// # Errors
/// Shapes that do not match.
pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
) -> Result<Array> {
    let weight = optional(weight);
    let bias = optional(bias);
    // SAFETY: the arguments borrow live handles, null only where the shim takes an optional one; `out` is
    // the valid slot of `from_call`.
    Array::from_call("layer_norm", |out| unsafe {
        sys::mlxcel_fast_layer_norm(out, x.raw(), weight, bias, eps)
    })
}

/// Pairing of the elements of a head for the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with element `i + dims/2` (GPT-NeoX, Llama in Hugging Face's order).
    Halves,
    /// Element `2i` with element `2i + 1` (the original; MLX's `traditional`).
    Pairs,
}

/// Rotation angles of a rotary embedding.
#[derive(Debug, Clone, Copy)]
pub enum RopeAngles<'a> {
    /// `position * scale * base^(-2i/dims)`.
    Base(f32),
    /// `position * scale / freqs[i]`; `freqs`: `[dims/2]` in fp32.
    Freqs(&'a Array),
}

/// A rotary position embedding.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Elements of each head that are rotated; the rest passes through.
    pub dims: i32,
    /// Pairing of the elements.
    pub layout: RopeLayout,
    /// Rotation angles.
    pub angles: RopeAngles<'a>,
    /// Factor on the positions.
    pub scale: f32,
}

/// Rotary embedding of `x`, `[batch, heads, tokens, head_dim]`, with the first token at position
/// `offset`.
///
/// # Errors
/// Shapes that do not match.
pub fn rope(x: &Array, rope: &Rope<'_>, offset: i32) -> Result<Array> {
    let (base, freqs) = match rope.angles {
        RopeAngles::Base(base) => (base, None),
        RopeAngles::Freqs(freqs) => (f32::NAN, Some(freqs)),
    };
    let freqs = optional(freqs);
    let traditional = rope.layout == RopeLayout::Pairs;
    // SAFETY: the arguments borrow live handles, null only where the shim takes an optional one; `out` is
    // the valid slot of `from_call`.
    Array::from_call("rope", |out| unsafe {
        sys::mlxcel_fast_rope(out, x.raw(), rope.dims, traditional, base, rope.scale, offset, freqs)
    })
}

/// Attention mask.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every query attends to every key.
    None,
    /// Queries attend to the keys up to their own position; the last query is at the last key.
    Causal,
    /// Boolean (true: attend) or additive, broadcast to `[batch, heads, queries, keys]`.
    Array(&'a Array),
}

/// Attention, `softmax(queries · keysᵀ · scale + mask) · values`.
///
/// `queries`: `[batch, heads, tokens, head_dim]`; `keys` and `values`: `[batch, kv_heads, keys,
/// head_dim]`, each shared by `heads / kv_heads` query heads. `sinks`: `[heads]`, the score of a key
/// without a value.
///
/// # Errors
/// Shapes or types that do not match.
pub fn scaled_dot_product_attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: Mask<'_>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let (mode, mask) = match mask {
        Mask::None => (c"", None),
        Mask::Causal => (c"causal", None),
        Mask::Array(mask) => (c"array", Some(mask)),
    };
    Array::from_call("scaled_dot_product_attention", |out| {
        // SAFETY: the arguments borrow live handles, null only where the shim takes an optional one;
        // `mode` is a static C string, and `out` is the valid slot of `from_call`.
        unsafe {
            sys::mlxcel_fast_scaled_dot_product_attention(
                out,
                queries.raw(),
                keys.raw(),
                values.raw(),
                scale,
                mode.as_ptr(),
                optional(mask),
                optional(sinks),
            )
        }
    })
}
