//! The MLX kernel set: the operations that mlx-lm emits, run by run where MLX wants one sequence.

use mlx_ffi::{Array, Dtype, fast, ops};

use crate::attention::AttentionSpec;
use crate::batch::{Batch, Span};
use crate::cache::LayerCache;
use crate::layers::{Embedding, Linear, RmsNorm, Weight};
use crate::{Error, Result, Rope};

pub(super) fn embed(tokens: &Array, table: &Embedding) -> Result<Array> {
    Ok(match &table.weight {
        Weight::Dense(array) => ops::take(array, tokens, 0)?,
        Weight::Affine(w) => {
            let rows = [&w.codes, &w.scales, &w.biases].map(|part| ops::take(part, tokens, 0));
            let [codes, scales, biases] = rows;
            ops::dequantize(&codes?, &scales?, Some(&biases?), affine(w.group_size, w.bits), None)?
        }
    })
}

pub(super) fn linears<const N: usize>(x: &Array, layers: [&Linear; N]) -> Result<[Array; N]> {
    let outputs: Vec<Array> = layers.iter().map(|layer| linear(x, layer)).collect::<Result<_>>()?;
    outputs.try_into().map_err(|_| Error::Config { what: "a projection is missing".into() })
}

fn linear(x: &Array, layer: &Linear) -> Result<Array> {
    let y = match &layer.weight {
        Weight::Dense(array) => ops::matmul(x, &ops::swapaxes(array, 0, 1)?)?,
        Weight::Affine(w) => {
            let scheme = affine(w.group_size, w.bits);
            ops::quantized_matmul(x, &w.codes, &w.scales, Some(&w.biases), true, scheme)?
        }
    };
    Ok(match &layer.bias {
        Some(bias) => ops::add(&y, bias)?,
        None => y,
    })
}

fn affine(group_size: usize, bits: usize) -> ops::Quantization {
    ops::Quantization::affine(group_size, bits)
}

pub(super) fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    let silu = ops::multiply(gate, &ops::sigmoid(gate)?)?;
    Ok(ops::multiply(&silu, up)?)
}

pub(super) fn rms_norm(x: &Array, norm: &RmsNorm) -> Result<Array> {
    let group = norm.weight.shape()[0];
    let shape = x.shape().to_vec();
    if shape.last() == Some(&group) {
        return Ok(fast::rms_norm(x, Some(&norm.weight), norm.eps)?);
    }
    let grouped = ops::reshape(x, &[shape[0], shape[1] / group, group])?;
    Ok(ops::reshape(&fast::rms_norm(&grouped, Some(&norm.weight), norm.eps)?, &shape)?)
}

pub(super) fn rope(batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    let x = scale_input(x, heads, rope)?;
    let freqs = Array::from_slice(rope.freqs(), &[rope.freqs().len()])?;
    let rotated = batch.spans().iter().map(|span| {
        let run = to_heads(&x, span, heads)?;
        let options = fast::Rope { dims: rope.dims(), traditional: rope.traditional(), scale: 1.0, offset: span.position };
        from_heads(&fast::rope(&run, options, fast::Angles::Freqs(&freqs))?)
    });
    join(&rotated.collect::<Result<Vec<_>>>()?)
}

/// `x` with the rotated dimensions of each head multiplied by the rope's input scale.
fn scale_input(x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    if (rope.input_scale() - 1.0).abs() < f32::EPSILON {
        return Ok(x.clone());
    }
    let (rows, width) = (x.shape()[0], x.shape()[1]);
    let head_dim = width / heads;
    let mut factors = vec![1.0f32; head_dim];
    factors[..rope.dims()].fill(rope.input_scale());
    let factors = ops::astype(&Array::from_slice(&factors, &[head_dim])?, x.dtype())?;
    let by_head = ops::reshape(x, &[rows, heads, head_dim])?;
    Ok(ops::reshape(&ops::multiply(&by_head, &factors)?, &[rows, width])?)
}

pub(super) fn attention(batch: &Batch, layer: usize, [q, k, v]: [&Array; 3], spec: &AttentionSpec) -> Result<Array> {
    let mut outputs = Vec::with_capacity(batch.spans().len());
    for (span, cache) in batch.spans().iter().zip(batch.caches()) {
        let LayerCache::Contiguous(cache) = cache.layer(layer)? else {
            return Err(Error::Cache { what: "a host cache was given to the mlx kernel set".into() });
        };
        let queries = to_heads(q, span, spec.query_heads())?;
        let (k, v) = (to_heads(k, span, spec.kv_heads())?, to_heads(v, span, spec.kv_heads())?);
        let held = cache.borrow_mut().append(&k, &v)?;
        outputs.push(from_heads(&attend(&queries, &held, span, spec)?)?);
    }
    join(&outputs)
}

/// Keys and values `[1, kv_heads, tokens, dim]` of a sequence from position `first` on.
pub(crate) struct Held {
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) first: usize,
}

fn attend(queries: &Array, held: &Held, span: &Span, spec: &AttentionSpec) -> Result<Array> {
    let keys = held.keys.shape()[2];
    let sinks = match spec.sinks() {
        Some(sinks) => Some(ops::astype(&Array::from_slice(sinks, &[sinks.len()])?, queries.dtype())?),
        None => None,
    };
    if spec.softcap().is_some() {
        return Err(Error::Config { what: "a soft cap on the scores is not available with MLXCEL_KERNELS=mlx".into() });
    }
    let window = spec.layout().window.map(std::num::NonZeroUsize::get).filter(|w| *w < keys);
    let array = match window {
        Some(window) => Some(window_mask(span, held.first, keys, window)?),
        None => None,
    };
    let mask = match &array {
        Some(mask) => fast::Mask::Array(mask),
        None if span.len == 1 => fast::Mask::None,
        None => fast::Mask::Causal,
    };
    Ok(fast::scaled_dot_product_attention(queries, &held.keys, &held.values, spec.scale(), mask, sinks.as_ref())?)
}

/// Boolean `[queries, keys]`: whether a query sees a key through a causal sliding window.
fn window_mask(span: &Span, first: usize, keys: usize, window: usize) -> Result<Array> {
    let visible = |query: usize, key: usize| key <= query && query < key + window;
    let rows = (span.position..span.position + span.len)
        .flat_map(|query| (first..first + keys).map(move |key| u8::from(visible(query, key))));
    let mask = Array::from_slice(&rows.collect::<Vec<u8>>(), &[span.len, keys])?;
    Ok(ops::astype(&mask, Dtype::Bool)?)
}

/// Rows of one run as `[1, heads, tokens, head_dim]`.
fn to_heads(x: &Array, span: &Span, heads: usize) -> Result<Array> {
    let width = x.shape()[1];
    let run = ops::slice(x, &[span.start, 0], &[span.start + span.len, width])?;
    let by_head = ops::reshape(&run, &[1, span.len, heads, width / heads])?;
    Ok(ops::transpose(&by_head, &[0, 2, 1, 3])?)
}

/// `[1, heads, tokens, head_dim]` back to rows.
fn from_heads(x: &Array) -> Result<Array> {
    let (heads, tokens, dim) = (x.shape()[1], x.shape()[2], x.shape()[3]);
    Ok(ops::reshape(&ops::transpose(x, &[0, 2, 1, 3])?, &[tokens, heads * dim])?)
}

fn join(runs: &[Array]) -> Result<Array> {
    match runs {
        [one] => Ok(one.clone()),
        many => Ok(ops::concatenate(&many.iter().collect::<Vec<_>>(), 0)?),
    }
}
