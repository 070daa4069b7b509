//! Attention over contiguous caches, run by run, and attention of encoders.

use std::ops::Range;

use mlx_ffi::{Array, Dtype, fast, ops};

use super::activations::softcap;
use super::heads::{concatenate_runs, from_heads, to_heads};
use crate::attention::AttentionSpec;
use crate::batch::Span;
use crate::cache::{ArrayCaches, KvView, sealed_image};
use crate::kernels::{AttentionInputs, EncoderInputs, Runs};
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

/// Decoded keys and values from which attention is computed at once: MLX would decode the next layers
/// while these are alive. Below, waiting for each layer would cost more time than it saves memory.
const DECODED_BYTES: usize = 16 << 20;

pub(super) fn attention(runs: Runs<'_, '_>, inputs: &AttentionInputs<'_>) -> Result<Array> {
    let AttentionInputs { layer, q, k, v, spec } = *inputs;
    let mut outputs = Vec::with_capacity(runs.caches.len());
    let mut decoded_bytes = 0;
    let images = runs.batch.bidirectional();
    for (span, cache) in runs.batch.spans().iter().zip(runs.caches) {
        let cache = cache.storage_mut::<ArrayCaches>().layer_mut(layer)?;
        let parts = match cache.breaks_at_blocks() {
            true if !images.is_empty() => return Err(sealed_image()),
            true => span.by_blocks(),
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
            let run = RunQueries { span, images: &images };
            let attended = attend(&held.rotate(queries)?, &held, &run, spec)?;
            let output = from_heads(&held.rotate_back(attended)?)?;
            decoded_bytes += held.decoded_bytes;
            if decoded_bytes >= DECODED_BYTES {
                output.eval()?;
                decoded_bytes = 0;
            }
            outputs.push(output);
        }
    }
    concatenate_runs(&outputs)
}

/// Queries or keys of latent attention in their two parts: for the latent, and rotary.
fn latent_parts(x: &Array, spec: &AttentionSpec) -> Result<[Array; 2]> {
    let layout = spec.layout();
    let latent = int(layout.value_dim)?;
    let all = int(layout.key_dim)?;
    Ok([ops::slice_axis(x, -1, 0, latent)?, ops::slice_axis(x, -1, latent, all)?])
}

/// Attention to latents, which are keys and values; the rotary part enters as a mask.
fn attend_latent(
    queries: &Array,
    held: &KvView,
    run: &RunQueries<'_>,
    spec: &AttentionSpec,
) -> Result<Array> {
    let [queries, rotary] = latent_parts(queries, spec)?;
    let rotary = ops::multiply_scalar(&rotary, spec.scale().into())?;
    let mut scores = ops::matmul(&rotary, &ops::swapaxes(&held.values, -1, -2)?)?;
    if run.span.len > 1 {
        let visible = run.mask(held.first, dims(&held.keys)[2], usize::MAX)?;
        let hidden = Array::scalar(f64::NEG_INFINITY, scores.dtype())?;
        scores = ops::select(&visible, &scores, &hidden)?;
    }
    let latents = &held.keys;
    let mask = fast::Mask::Array(&scores);
    Ok(fast::scaled_dot_product_attention(&queries, latents, latents, spec.scale(), mask, None)?)
}

fn attend(
    queries: &Array,
    held: &KvView,
    run: &RunQueries<'_>,
    spec: &AttentionSpec,
) -> Result<Array> {
    if spec.layout().latent {
        return attend_latent(queries, held, run, spec);
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
        let mask = run.mask(held.first, keys, window.unwrap_or(usize::MAX))?;
        return attend_capped(queries, held, spec, cap, &mask);
    }
    let array = match window {
        Some(window) => Some(run.mask(held.first, keys, window)?),
        None if run.has_images() => Some(run.mask(held.first, keys, usize::MAX)?),
        None => None,
    };
    let mask = match &array {
        Some(mask) => fast::Mask::Array(mask),
        None if run.span.len == 1 => fast::Mask::None,
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
fn attend_capped(
    queries: &Array,
    held: &KvView,
    spec: &AttentionSpec,
    cap: f32,
    mask: &Array,
) -> Result<Array> {
    if spec.sinks().is_some() {
        return Err(Error::Unsupported { feature: "attention with a soft cap and sinks" });
    }
    let [_, heads, tokens, dim] = dims(queries)[..] else {
        unreachable!("`to_heads` makes four dimensions");
    };
    let groups = ints([1, spec.kv_heads(), heads / spec.kv_heads(), tokens, dim])?;
    let queries = ops::multiply_scalar(&ops::reshape(queries, &groups)?, spec.scale().into())?;
    let keys = ops::expand_dims(&held.keys, 2)?;
    let values = ops::expand_dims(&held.values, 2)?;
    let scores = softcap(&ops::matmul(&queries, &ops::swapaxes(&keys, 3, 4)?)?, cap)?;
    let lowest = ops::astype(&Array::from_slice(&[f32::NEG_INFINITY], &[1])?, scores.dtype())?;
    let scores = ops::select(mask, &scores, &lowest)?;
    let attended = ops::matmul(&ops::softmax(&scores, -1, ops::Precision::Float32)?, &values)?;
    Ok(ops::reshape(&attended, &ints([1, heads, tokens, spec.layout().value_dim])?)?)
}

/// Queries of a run, and the images of the pass whose rows attend to each other.
struct RunQueries<'a> {
    span: &'a Span,
    /// Rows of the batch.
    images: &'a [Range<usize>],
}

impl RunQueries<'_> {
    fn has_images(&self) -> bool {
        self.images.iter().any(|image| self.span.rows().contains(&image.start))
    }

    /// End of the positions that the query at position `query` attends to.
    fn end(&self, query: usize) -> usize {
        let row = self.span.start + query - self.span.position;
        let image = self.images.iter().find(|image| image.contains(&row));
        image.map_or(query, |image| query + (image.end - 1 - row)) + 1
    }

    /// Boolean `[queries, keys]` of a sliding window that is causal, or reaches to the end of an
    /// image; the first key is at position `first`.
    fn mask(&self, first: usize, keys: usize, window: usize) -> Result<Array> {
        let span = self.span;
        let mut visible = Vec::with_capacity(span.len * keys);
        for query in span.position..span.position + span.len {
            let end = self.end(query);
            visible.extend(
                (first..first + keys)
                    .map(|key| u8::from(key < end && (key > query || query - key < window))),
            );
        }
        let mask = Array::from_slice(&visible, &ints([span.len, keys])?)?;
        Ok(ops::astype(&mask, Dtype::Bool)?)
    }
}

/// Attention of an encoder among the rows of each segment.
pub(super) fn encoder(inputs: EncoderInputs<'_>, segments: &[usize]) -> Result<Array> {
    let mut outputs = Vec::with_capacity(segments.len());
    let mut start = 0;
    for len in segments {
        let rows = start..start + len;
        outputs.push(attend_rows(inputs, rows.clone(), rows)?);
        start += len;
    }
    concatenate_runs(&outputs)
}

/// Attention of an encoder among the rows of one image: the first `real` attend to all of them, the
/// padding only to those.
pub(super) fn padded_encoder(inputs: EncoderInputs<'_>, real: usize) -> Result<Array> {
    let (rows, _) = rows_cols(inputs.q);
    let mut parts = vec![attend_rows(inputs, 0..real, 0..rows)?];
    if real < rows {
        parts.push(attend_rows(inputs, real..rows, 0..real)?);
    }
    concatenate_runs(&parts)
}

/// Attention of an encoder's rows `queries` to its rows `keys`.
fn attend_rows(
    inputs: EncoderInputs<'_>,
    queries: Range<usize>,
    keys: Range<usize>,
) -> Result<Array> {
    let EncoderInputs { q, k, v, heads } = inputs;
    let queries = Span { start: queries.start, len: queries.len(), position: 0 };
    let keys = Span { start: keys.start, len: keys.len(), position: 0 };
    let q = to_heads(q, &queries, heads)?;
    let k = to_heads(k, &keys, heads)?;
    let v = to_heads(v, &keys, heads)?;
    let scale = AttentionSpec::causal(heads, heads, dims(&q)[3]).scale();
    from_heads(&fast::scaled_dot_product_attention(&q, &k, &v, scale, fast::Mask::None, None)?)
}

/// Attention of the rows of each run to the rows of their sequence's images.
pub(super) fn cross(
    runs: &Runs<'_, '_>,
    layer: usize,
    q: &Array,
    spec: &AttentionSpec,
) -> Result<Array> {
    let mut outputs = Vec::new();
    for (span, cache) in runs.batch.spans().iter().zip(&*runs.caches) {
        let cross_rows = cache.cross_rows();
        if cross_rows.is_empty() {
            let shape = ints([span.len, spec.query_heads() * spec.layout().value_dim])?;
            outputs.push(Array::zeros(&shape, q.dtype())?);
            continue;
        }
        let cache = cache.storage::<ArrayCaches>().cross_layer(layer)?;
        for (part, rows) in cross_rows.parts(span) {
            let KvView { keys, values, .. } = cache.view(rows, q.dtype())?;
            let q = to_heads(q, &part, spec.query_heads())?;
            let attended = fast::scaled_dot_product_attention(
                &q,
                &keys,
                &values,
                spec.scale(),
                fast::Mask::None,
                None,
            )?;
            outputs.push(from_heads(&attended)?);
        }
    }
    concatenate_runs(&outputs)
}
