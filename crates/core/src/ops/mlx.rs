//! The MLX kernel set: the operations that mlx-lm emits, run by run where MLX wants one sequence.

mod experts;
mod recurrent;
mod rope;
mod rows;

use std::cell::RefCell;
use std::ops::Range;

use mlx_ffi::ops::{Mode, Orientation, Quantization, Quantized};
use mlx_ffi::{Array, Dtype, fast, ops};
use mlxcel_kernels::elementwise::{CLAMPED_SWISH_LIMIT, CLAMPED_SWISH_SLOPE};

use crate::attention::AttentionSpec;
use crate::batch::{Batch, Span};
use crate::cache::{ContiguousCache, Held, LayerCache, sealed_image};
use crate::layers::{AffineWeight, Embedding, LayerNorm, Linear, Mxfp4Weight, RmsNorm, Weight};
use crate::ops::{Activation, ComputeDtype, Map};
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

pub(super) use self::experts::{absorbed, every_nth_row, experts, heads, stack, stored_like};
pub(super) use self::recurrent::{convolve, scan};
pub(super) use self::rope::{rope, rope_on_grid};
pub(super) use self::rows::{join_heads, split_heads, take};

/// Decoded keys and values from which attention is computed at once: MLX would decode the next layers
/// while these are alive. Below, waiting for each layer would cost more time than it saves memory.
const DECODED_BYTES: usize = 16 << 20;

pub(super) fn embed(tokens: &Array, table: &Embedding, dtype: ComputeDtype) -> Result<Array> {
    let stored = match &table.weight {
        Weight::Dense(array) => return Ok(ops::take(array, tokens, 0)?),
        Weight::Affine(w) => affine(w)?,
        Weight::Mxfp4(w) => mxfp4(w),
    };
    let rows = |array: &Array| ops::take(array, tokens, 0);
    let rows = Quantized {
        weight: rows(&stored.weight)?,
        scales: rows(&stored.scales)?,
        biases: stored.biases.as_ref().map(rows).transpose()?,
        quantization: stored.quantization,
    };
    let exact = dtype == ComputeDtype::Fp32;
    Ok(ops::dequantize(&rows, exact.then_some(Dtype::Float32))?)
}

pub(super) fn linears<const N: usize>(x: &Array, layers: [&Linear; N]) -> Result<[Array; N]> {
    let outputs: Vec<Array> = layers.iter().map(|layer| linear(x, layer)).collect::<Result<_>>()?;
    outputs.try_into().map_err(|_| Error::Config { what: "a projection is missing".into() })
}

fn linear(x: &Array, layer: &Linear) -> Result<Array> {
    let product = |w: &Quantized| ops::quantized_matmul(x, w, Orientation::Transposed);
    let y = match &layer.weight {
        Weight::Dense(array) => ops::matmul(x, &ops::swapaxes(array, 0, 1)?)?,
        Weight::Affine(w) => product(&affine(w)?)?,
        Weight::Mxfp4(w) => product(&mxfp4(w))?,
    };
    Ok(match &layer.bias {
        Some(bias) => ops::add(&y, bias)?,
        None => y,
    })
}

fn scheme(w: &AffineWeight) -> Result<Quantization> {
    Ok(Quantization { mode: Mode::Affine, group_size: int(w.group_size)?, bits: int(w.bits)? })
}

fn affine(w: &AffineWeight) -> Result<Quantized> {
    Ok(Quantized {
        weight: w.codes.clone(),
        scales: w.scales.clone(),
        biases: Some(w.biases.clone()),
        quantization: scheme(w)?,
    })
}

/// The parts of a matrix whose codes are [`in_words`].
fn mxfp4(w: &Mxfp4Weight) -> Quantized {
    let quantization = Quantization { mode: Mode::Mxfp4, group_size: 32, bits: 4 };
    let (weight, scales) = (w.codes.clone(), w.scales.clone());
    Quantized { weight, scales, biases: None, quantization }
}

/// The matrix with its codes as MLX wants them, u32 `[rows, cols / 8]`.
pub(super) fn in_words(w: Mxfp4Weight) -> Result<Mxfp4Weight> {
    let (rows, groups) = rows_cols(&w.scales);
    let bytes = match w.codes.dtype() {
        Dtype::Uint32 => return Ok(w),
        _ => ops::reshape(&w.codes, &ints([rows, groups * Mxfp4Weight::GROUP / 2])?)?,
    };
    Mxfp4Weight::new(ops::view(&bytes, Dtype::Uint32)?, w.scales)
}

pub(super) fn glu(
    x: &Array,
    (gate, up): (&Linear, &Linear),
    activation: Activation,
) -> Result<Array> {
    gated_unit(&linear(x, gate)?, &linear(x, up)?, activation)
}

fn gated_unit(gate: &Array, up: &Array, activation: Activation) -> Result<Array> {
    if activation != Activation::ClampedSwish {
        return Ok(ops::multiply(&activate(gate, activation)?, up)?);
    }
    let limit = |value: f32| Array::scalar(value.into(), up.dtype());
    let up = ops::minimum(up, &limit(CLAMPED_SWISH_LIMIT)?)?;
    let up = ops::maximum(&up, &limit(-CLAMPED_SWISH_LIMIT)?)?;
    Ok(ops::multiply(&ops::add_scalar(&up, 1.0)?, &activate(gate, activation)?)?)
}

fn activate(x: &Array, activation: Activation) -> Result<Array> {
    Ok(match activation {
        Activation::Silu => ops::silu(x)?,
        Activation::Sigmoid => ops::sigmoid(x)?,
        Activation::ReluSquared => ops::square(&ops::maximum(x, &zero(x)?)?)?,
        Activation::Identity => x.clone(),
        Activation::ClampedSwish => {
            let limit = Array::scalar(CLAMPED_SWISH_LIMIT.into(), x.dtype())?;
            let x = ops::minimum(x, &limit)?;
            let inner = ops::multiply_scalar(&x, CLAMPED_SWISH_SLOPE.into())?;
            ops::multiply(&x, &ops::sigmoid(&inner)?)?
        }
        Activation::GeluErf => {
            let erf = ops::erf(&ops::divide_scalar(x, std::f64::consts::SQRT_2)?)?;
            ops::divide_scalar(&ops::multiply(x, &ops::add_scalar(&erf, 1.0)?)?, 2.0)?
        }
        Activation::GeluTanh => {
            let cube = ops::multiply(&ops::square(x)?, x)?;
            let inner = ops::add(x, &ops::multiply_scalar(&cube, 0.044_715)?)?;
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = ops::tanh(&ops::multiply_scalar(&inner, root)?)?;
            ops::multiply(&ops::multiply_scalar(x, 0.5)?, &ops::add_scalar(&tanh, 1.0)?)?
        }
    })
}

fn zero(x: &Array) -> Result<Array> {
    Ok(Array::scalar(0.0, x.dtype())?)
}

/// `activation(gate) · x`.
pub(super) fn gated(gate: &Array, x: &Array, activation: Activation) -> Result<Array> {
    Ok(ops::multiply(&activate(gate, activation)?, x)?)
}

pub(super) fn map(x: &Array, function: Map) -> Result<Array> {
    Ok(match function {
        Map::Activation(activation) => activate(x, activation)?,
        Map::Scale(factor) => ops::multiply_scalar(x, factor.into())?,
        Map::Softcap(cap) => softcap(x, cap)?,
    })
}

fn softcap(x: &Array, cap: f32) -> Result<Array> {
    let inner = ops::tanh(&ops::divide_scalar(x, cap.into())?)?;
    Ok(ops::multiply_scalar(&inner, cap.into())?)
}

pub(super) fn layer_norm(x: &Array, norm: &LayerNorm) -> Result<Array> {
    Ok(fast::layer_norm(x, Some(&norm.weight), norm.bias.as_ref(), norm.eps)?)
}

pub(super) fn rms_norm(x: &Array, norm: &RmsNorm) -> Result<Array> {
    let (_, cols) = rows_cols(x);
    let (_, length) = rows_cols(&norm.weight);
    let in_rows_of =
        |width: usize| -> Result<Array> { Ok(ops::reshape(x, &ints([x.size() / width, width])?)?) };
    if norm.group < length {
        let normed = fast::rms_norm(&in_rows_of(norm.group)?, None, norm.eps)?;
        let rows = ops::reshape(&normed, &ints([x.size() / length, length])?)?;
        return Ok(ops::reshape(&ops::multiply(&rows, &norm.weight)?, x.shape())?);
    }
    if cols == length {
        return Ok(fast::rms_norm(x, Some(&norm.weight), norm.eps)?);
    }
    let normed = fast::rms_norm(&in_rows_of(length)?, Some(&norm.weight), norm.eps)?;
    Ok(ops::reshape(&normed, x.shape())?)
}

pub(super) fn attention(
    batch: &Batch,
    layer: usize,
    [q, k, v]: [&Array; 3],
    spec: &AttentionSpec,
) -> Result<Array> {
    let (mut outputs, mut decoded_bytes) = (Vec::with_capacity(batch.spans().len()), 0);
    let images = batch.mutual();
    for (span, cache) in batch.spans().iter().zip(batch.caches()) {
        let mut cache = contiguous(cache.layer(layer)?)?.borrow_mut();
        let parts = match cache.breaks_at_blocks() {
            true if !images.is_empty() => return Err(sealed_image()),
            true => span.by_blocks().collect(),
            false => vec![*span],
        };
        for span in &parts {
            let queries = to_heads(q, span, spec.query_heads())?;
            let k = to_heads(k, span, spec.kv_heads())?;
            let [k, v] = match spec.layout().latent {
                true => latent_parts(&k, spec)?,
                false => [k, to_heads(v, span, spec.kv_heads())?],
            };
            let held = cache.append(&k, &v)?;
            let view = View { span, images: &images };
            let attended = attend(&held.rotate(queries)?, &held, &view, spec)?;
            let output = from_heads(&held.rotate_back(attended)?)?;
            decoded_bytes += held.decoded_bytes;
            if decoded_bytes >= DECODED_BYTES {
                output.eval()?;
                decoded_bytes = 0;
            }
            outputs.push(output);
        }
    }
    join(&outputs)
}

fn contiguous(layer: &LayerCache) -> Result<&RefCell<ContiguousCache>> {
    match layer {
        LayerCache::Contiguous(cache) => Ok(cache),
        LayerCache::Blocks(_) => {
            Err(Error::Cache { what: "a host cache was given to the mlx kernel set".into() })
        }
    }
}

/// Queries or keys of latent attention in their two parts: for the latent, and rotary.
fn latent_parts(x: &Array, spec: &AttentionSpec) -> Result<[Array; 2]> {
    let layout = spec.layout();
    let (latent, all) = (int(layout.value_dim)?, int(layout.key_dim)?);
    Ok([ops::slice_axis(x, -1, 0, latent)?, ops::slice_axis(x, -1, latent, all)?])
}

/// Attention to latents, which are keys and values; the rotary part enters as a mask.
fn attend_latent(queries: &Array, held: &Held, view: &View, spec: &AttentionSpec) -> Result<Array> {
    let [queries, rotary] = latent_parts(queries, spec)?;
    let rotary = ops::multiply_scalar(&rotary, spec.scale().into())?;
    let mut scores = ops::matmul(&rotary, &ops::swapaxes(&held.values, -1, -2)?)?;
    if view.span.len > 1 {
        let visible = visible_mask(view, held.first, dims(&held.keys)[2], usize::MAX)?;
        let hidden = Array::scalar(f64::NEG_INFINITY, scores.dtype())?;
        scores = ops::select(&visible, &scores, &hidden)?;
    }
    let (latents, mask) = (&held.keys, fast::Mask::Array(&scores));
    Ok(fast::scaled_dot_product_attention(&queries, latents, latents, spec.scale(), mask, None)?)
}

fn attend(queries: &Array, held: &Held, view: &View, spec: &AttentionSpec) -> Result<Array> {
    if spec.layout().latent {
        return attend_latent(queries, held, view, spec);
    }
    let keys = dims(&held.keys)[2];
    let sinks = match spec.sinks() {
        Some(sinks) => {
            Some(ops::astype(&Array::from_slice(sinks, &[int(sinks.len())?])?, queries.dtype())?)
        }
        None => None,
    };
    let window = spec.layout().window.map(std::num::NonZeroUsize::get).filter(|w| *w < keys);
    if let Some(cap) = spec.softcap() {
        let mask = visible_mask(view, held.first, keys, window.unwrap_or(usize::MAX))?;
        return capped(queries, held, spec, cap, &mask);
    }
    let array = match window {
        Some(window) => Some(visible_mask(view, held.first, keys, window)?),
        None if view.has_images() => Some(visible_mask(view, held.first, keys, usize::MAX)?),
        None => None,
    };
    let mask = match &array {
        Some(mask) => fast::Mask::Array(mask),
        None if view.span.len == 1 => fast::Mask::None,
        None => fast::Mask::Causal,
    };
    Ok(fast::scaled_dot_product_attention(
        queries,
        &held.keys,
        &held.values,
        spec.scale(),
        mask,
        sinks.as_ref(),
    )?)
}

/// Attention with a soft cap on the scores, which MLX's fused one does not have; no sinks.
fn capped(
    queries: &Array,
    held: &Held,
    spec: &AttentionSpec,
    cap: f32,
    mask: &Array,
) -> Result<Array> {
    if spec.sinks().is_some() {
        return Err(Error::Config { what: "attention with a soft cap and sinks".into() });
    }
    let [_, heads, tokens, dim] = dims(queries)[..] else {
        return Err(Error::Config { what: "queries are not [1, heads, tokens, dim]".into() });
    };
    let groups = ints([1, spec.kv_heads(), heads / spec.kv_heads(), tokens, dim])?;
    let queries = ops::multiply_scalar(&ops::reshape(queries, &groups)?, spec.scale().into())?;
    let (keys, values) = (ops::expand_dims(&held.keys, 2)?, ops::expand_dims(&held.values, 2)?);
    let scores = softcap(&ops::matmul(&queries, &ops::swapaxes(&keys, 3, 4)?)?, cap)?;
    let lowest = ops::astype(&Array::from_slice(&[f32::NEG_INFINITY], &[1])?, scores.dtype())?;
    let scores = ops::select(mask, &scores, &lowest)?;
    let attended = ops::matmul(&ops::softmax(&scores, -1, ops::Precision::Float32)?, &values)?;
    Ok(ops::reshape(&attended, &ints([1, heads, tokens, spec.layout().value_dim])?)?)
}

/// A run, and the images of the pass whose rows see each other.
struct View<'a> {
    span: &'a Span,
    /// Rows of the batch.
    images: &'a [Range<usize>],
}

impl View<'_> {
    fn has_images(&self) -> bool {
        let run = self.span.start..self.span.start + self.span.len;
        self.images.iter().any(|image| run.contains(&image.start))
    }

    /// The end of the positions that the query at position `query` sees.
    fn end(&self, query: usize) -> usize {
        let row = self.span.start + query - self.span.position;
        let image = self.images.iter().find(|image| image.contains(&row));
        image.map_or(query, |image| query + (image.end - 1 - row)) + 1
    }
}

/// Attention of an encoder among the tokens of each segment.
pub(super) fn encoder_attention(
    qkv: [&Array; 3],
    heads: usize,
    segments: &[usize],
) -> Result<Array> {
    let scale = AttentionSpec::causal(heads, heads, rows_cols(qkv[0]).1 / heads).scale();
    let mut start = 0;
    let outputs = segments.iter().map(|len| {
        let span = Span { start, len: *len, position: 0 };
        start += len;
        let [q, k, v] = qkv.map(|x| to_heads(x, &span, heads));
        let mask = fast::Mask::None;
        from_heads(&fast::scaled_dot_product_attention(&q?, &k?, &v?, scale, mask, None)?)
    });
    join(&outputs.collect::<Result<Vec<_>>>()?)
}

/// Attention of an encoder among the rows of one image: the first `real` see all of them, the others
/// only those.
pub(super) fn padded_encoder_attention(
    qkv: [&Array; 3],
    heads: usize,
    real: usize,
) -> Result<Array> {
    let (rows, width) = rows_cols(qkv[0]);
    let scale = AttentionSpec::causal(heads, heads, width / heads).scale();
    let part = |queries: Range<usize>, keys: usize| {
        let span = |rows: Range<usize>| Span { start: rows.start, len: rows.len(), position: 0 };
        let q = to_heads(qkv[0], &span(queries), heads)?;
        let [k, v] = [qkv[1], qkv[2]].map(|x| to_heads(x, &span(0..keys), heads));
        let mask = fast::Mask::None;
        from_heads(&fast::scaled_dot_product_attention(&q, &k?, &v?, scale, mask, None)?)
    };
    let mut parts = vec![part(0..real, rows)?];
    if real < rows {
        parts.push(part(real..rows, real)?);
    }
    join(&parts)
}

/// Attention of the rows of each run to what they see of their sequence's images.
pub(super) fn cross_attention(
    batch: &Batch,
    layer: usize,
    q: &Array,
    spec: &AttentionSpec,
) -> Result<Array> {
    let mut outputs = Vec::new();
    for (span, cache) in batch.spans().iter().zip(batch.caches()) {
        let seen = cache.seen();
        if seen.is_empty() {
            let shape = ints([span.len, spec.query_heads() * spec.layout().value_dim])?;
            outputs.push(Array::zeros(&shape, q.dtype())?);
            continue;
        }
        let cache = contiguous(cache.cross_layer(layer)?)?.borrow();
        for (part, rows) in seen.parts(span) {
            let Held { keys, values, .. } = cache.held(rows, q.dtype())?;
            let q = to_heads(q, &part, spec.query_heads())?;
            let (scale, mask) = (spec.scale(), fast::Mask::None);
            let attended =
                fast::scaled_dot_product_attention(&q, &keys, &values, scale, mask, None)?;
            outputs.push(from_heads(&attended)?);
        }
    }
    join(&outputs)
}

/// Boolean `[queries, keys]`: whether a query sees a key through a sliding window that is causal, or
/// reaches to the end of an image.
fn visible_mask(view: &View, first: usize, keys: usize, window: usize) -> Result<Array> {
    let span = view.span;
    let visible =
        |query: usize, end: usize, key: usize| key < end && (key > query || query - key < window);
    let rows = (span.position..span.position + span.len).flat_map(|query| {
        let end = view.end(query);
        (first..first + keys).map(move |key| u8::from(visible(query, end, key)))
    });
    let mask = Array::from_slice(&rows.collect::<Vec<u8>>(), &ints([span.len, keys])?)?;
    Ok(ops::astype(&mask, Dtype::Bool)?)
}

/// Rows of one run as `[1, heads, tokens, head_dim]`.
fn to_heads(x: &Array, span: &Span, heads: usize) -> Result<Array> {
    let (_, width) = rows_cols(x);
    let run = ops::slice(x, &ints([span.start, 0])?, &ints([span.start + span.len, width])?)?;
    let by_head = ops::reshape(&run, &ints([1, span.len, heads, width / heads])?)?;
    Ok(ops::transpose(&by_head, &[0, 2, 1, 3])?)
}

/// `[1, heads, tokens, head_dim]` back to rows.
fn from_heads(x: &Array) -> Result<Array> {
    let dims = dims(x);
    let rows = ints([dims[2], dims[1] * dims[3]])?;
    Ok(ops::reshape(&ops::transpose(x, &[0, 2, 1, 3])?, &rows)?)
}

fn join(runs: &[Array]) -> Result<Array> {
    match runs {
        [one] => Ok(one.clone()),
        many => Ok(ops::concatenate(&many.iter().collect::<Vec<_>>(), 0)?),
    }
}
