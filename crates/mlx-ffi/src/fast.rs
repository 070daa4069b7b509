//! MLX's fused operations.

use crate::array::optional;
use crate::bindings as sys;
use crate::{Array, Result};

/// `x / sqrt(mean(x²) + eps) * weight` over the last axis. `weight`: `[last axis]`, or none.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let weight = optional(weight);
    // SAFETY: live or null handles where the shim allows it; `out` is a slot to write.
    Array::from_call("rms_norm", |out| unsafe {
        sys::mlxcel_fast_rms_norm(out, x.raw(), weight, eps)
    })
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis; both are `[last axis]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(
    x: &Array,
    weight: Option<&Array>,
    bias: Option<&Array>,
    eps: f32,
) -> Result<Array> {
    let (weight, bias) = (optional(weight), optional(bias));
    // SAFETY: live or null handles where the shim allows it; `out` is a slot to write.
    Array::from_call("layer_norm", |out| unsafe {
        sys::mlxcel_fast_layer_norm(out, x.raw(), weight, bias, eps)
    })
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with element `i + dims/2` (GPT-NeoX, Llama in Hugging Face's order).
    Halves,
    /// Element `2i` with element `2i + 1` (the original; MLX's `traditional`).
    Pairs,
}

/// Where the angles of a rotary embedding come from.
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
    /// How many elements of each head are rotated; the rest is passed through.
    pub dims: i32,
    /// Which elements are rotated together.
    pub layout: RopeLayout,
    /// Where the angles come from.
    pub angles: RopeAngles<'a>,
    /// What positions are multiplied with.
    pub scale: f32,
}

/// Rotates `x`, `[batch, heads, tokens, head_dim]`, whose first token has position `offset`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rope(x: &Array, rope: &Rope<'_>, offset: i32) -> Result<Array> {
    let (base, freqs) = match rope.angles {
        RopeAngles::Base(base) => (base, None),
        RopeAngles::Freqs(freqs) => (f32::NAN, Some(freqs)),
    };
    let (freqs, traditional) = (optional(freqs), rope.layout == RopeLayout::Pairs);
    // SAFETY: live or null handles where the shim allows it; `out` is a slot to write.
    Array::from_call("rope", |out| unsafe {
        let (dims, scale) = (rope.dims, rope.scale);
        sys::mlxcel_fast_rope(out, x.raw(), dims, traditional, base, scale, offset, freqs)
    })
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All of them.
    None,
    /// Those up to its own position, the last query being at the last key.
    Causal,
    /// Boolean (true: seen) or additive, broadcast to `[batch, heads, queries, keys]`.
    Array(&'a Array),
}

/// `softmax(queries · keysᵀ · scale + mask) · values`.
///
/// `queries`: `[batch, heads, tokens, head_dim]`; `keys` and `values`: `[batch, kv_heads, keys,
/// head_dim]`, each shared by `heads / kv_heads` query heads. `sinks`: `[heads]`, a score of a key
/// without a value.
///
/// # Errors
/// Shapes or types that do not fit.
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
    let (mask, sinks) = (optional(mask), optional(sinks));
    let (q, k, v) = (queries.raw(), keys.raw(), values.raw());
    Array::from_call("scaled_dot_product_attention", |out| {
        // SAFETY: live or null handles where the shim allows it, a static C string, a slot.
        unsafe {
            let mode = mode.as_ptr();
            sys::mlxcel_fast_scaled_dot_product_attention(out, q, k, v, scale, mode, mask, sinks)
        }
    })
}
