//! Appending to block caches and attending to them, in one call.

use std::ops::Range;

use mlx_ffi::host::call_one;
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::attention::{self as kernel, AttentionParams, AttentionRun, Mask};
use mlxcel_kernels::{Order, Pool};

use super::HostKernels;
use crate::Result;
use crate::attention::AttentionSpec;
use crate::batch::Span;
use crate::cache::{BlockCache, HostCaches, sealed_image};
use crate::kernels::{AttentionInputs, Runs};
use crate::shape::{ints, rows_cols};

pub(super) fn attention(
    kernels: &HostKernels,
    runs: Runs<'_, '_>,
    inputs: &AttentionInputs<'_>,
) -> Result<Array> {
    let AttentionInputs { layer, q, k, v, spec } = *inputs;
    let mut caches = Vec::with_capacity(runs.caches.len());
    for cache in runs.caches.iter_mut() {
        caches.push(cache.storage_mut::<HostCaches>().layer_mut(layer)?);
    }
    let attention = LayerAttention {
        pool: &kernels.pool,
        order: kernels.sums.order,
        spec,
        spans: runs.batch.spans(),
        bidirectional: runs.batch.bidirectional(),
    };
    let (rows, _) = rows_cols(q);
    let shape = ints([rows, spec.query_heads() * spec.layout().value_dim])?;
    call_one("attention", &[q, k, v], (&shape, Dtype::Float32), |inputs, mut outputs| {
        let rows = RowInputs { q: inputs.f32(0)?, k: inputs.f32(1)?, v: inputs.f32(2)? };
        attention.run(&rows, &mut caches, outputs.f32(0)?)
    })
}

/// Queries, keys and values of all rows of a batch.
struct RowInputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// One layer's attention over all runs of a batch.
struct LayerAttention<'a> {
    pool: &'a Pool,
    order: Order,
    spec: &'a AttentionSpec,
    spans: &'a [Span],
    /// Rows of images whose rows attend to each other.
    bidirectional: Vec<Range<usize>>,
}

impl LayerAttention<'_> {
    fn run(
        &self,
        rows: &RowInputs<'_>,
        caches: &mut [&mut BlockCache],
        out: &mut [f32],
    ) -> Result<()> {
        let breaks_at_blocks = caches.iter().any(|cache| cache.breaks_at_blocks());
        if !self.bidirectional.is_empty() {
            if breaks_at_blocks {
                return Err(sealed_image());
            }
            return self.run_by_images(rows, caches, out);
        }
        if breaks_at_blocks {
            return self.run_by_blocks(rows, caches, out);
        }
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            self.append(rows, cache, span)?;
        }
        self.attend(rows.q, caches, self.spans, Mask::Causal, out)
    }

    /// Cuts runs around images: an image attends to all of itself and to what comes before.
    fn run_by_images(
        &self,
        rows: &RowInputs<'_>,
        caches: &mut [&mut BlockCache],
        out: &mut [f32],
    ) -> Result<()> {
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            for (part, mask) in parts_by_image(span, &self.bidirectional) {
                self.append(rows, cache, &part)?;
                let out = &mut out[self.output(&part)];
                self.attend(rows.q, std::slice::from_mut(cache), &[part], mask, out)?;
            }
        }
        Ok(())
    }

    /// Cuts runs at block boundaries: each part sees its own block as written, and earlier ones
    /// sealed, whatever the chunk of the prefill was.
    fn run_by_blocks(
        &self,
        rows: &RowInputs<'_>,
        caches: &mut [&mut BlockCache],
        out: &mut [f32],
    ) -> Result<()> {
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            for part in span.by_blocks() {
                cache.seal_before(self.pool, part.position)?;
                self.append(rows, cache, &part)?;
                let out = &mut out[self.output(&part)];
                self.attend(rows.q, std::slice::from_mut(cache), &[part], Mask::Causal, out)?;
            }
        }
        Ok(())
    }

    /// Elements of the output of `span`.
    fn output(&self, span: &Span) -> Range<usize> {
        let width = self.spec.query_heads() * self.spec.layout().value_dim;
        span.start * width..(span.start + span.len) * width
    }

    fn append(&self, rows: &RowInputs<'_>, cache: &mut BlockCache, span: &Span) -> Result<()> {
        let layout = self.spec.layout();
        let key_width = layout.kv_heads * layout.key_dim;
        let value_width = layout.kv_heads * layout.value_dim;
        let end = span.start + span.len;
        let k = &rows.k[span.start * key_width..end * key_width];
        let v = match layout.latent {
            true => &[][..],
            false => &rows.v[span.start * value_width..end * value_width],
        };
        cache.append(self.pool, span.position, k, v)
    }

    /// Attends the rows of `spans`, which lie one after the other in `out`.
    fn attend(
        &self,
        q: &[f32],
        caches: &[&mut BlockCache],
        spans: &[Span],
        mask: Mask,
        out: &mut [f32],
    ) -> Result<()> {
        let row = self.spec.query_heads() * self.spec.layout().key_dim;
        let views: Vec<_> = caches.iter().map(|cache| cache.view()).collect();
        let runs = spans.iter().zip(&views).map(|(span, (blocks, first))| AttentionRun {
            q: &q[span.start * row..(span.start + span.len) * row],
            first_position: span.position,
            blocks,
            first_block_position: *first,
            first_key: 0,
            kv_tokens: span.position + span.len - first,
        });
        let params = params(self.spec, mask, self.order);
        Ok(kernel::attention(self.pool, &params, &runs.collect::<Vec<_>>(), out)?)
    }
}

/// `span` cut around the images `images` (rows of the batch, in order), each part with its mask.
fn parts_by_image(span: &Span, images: &[Range<usize>]) -> Vec<(Span, Mask)> {
    let end = span.start + span.len;
    let mut cuts = Vec::new();
    let mut at = span.start;
    for image in images.iter().filter(|image| span.rows().contains(&image.start)) {
        cuts.push((at..image.start, Mask::Causal));
        cuts.push((image.clone(), Mask::Full));
        at = image.end;
    }
    cuts.push((at..end, Mask::Causal));
    let mut parts = Vec::with_capacity(cuts.len());
    for (rows, mask) in cuts {
        if !rows.is_empty() {
            let position = span.position + rows.start - span.start;
            parts.push((Span { start: rows.start, len: rows.len(), position }, mask));
        }
    }
    parts
}

/// Attention of the rows of each run to the rows of their sequence's images, all runs at once.
pub(super) fn cross_attention(
    kernels: &HostKernels,
    runs: &Runs<'_, '_>,
    layer: usize,
    q: &Array,
    spec: &AttentionSpec,
) -> Result<Array> {
    let mut parts = Vec::new();
    for (span, cache) in runs.batch.spans().iter().zip(&*runs.caches) {
        let cross_rows = cache.cross_rows();
        let blocks = match cross_rows.is_empty() {
            true => Vec::new(),
            false => cache.storage::<HostCaches>().cross_layer(layer)?.view().0,
        };
        for (part, rows) in cross_rows.parts(span) {
            parts.push((part, rows, blocks.clone()));
        }
    }
    let rows = runs.batch.positions().len();
    let shape = ints([rows, spec.query_heads() * spec.layout().value_dim])?;
    call_one("cross_attention", &[q], (&shape, Dtype::Float32), |inputs, mut outputs| {
        let q = inputs.f32(0)?;
        let row = spec.query_heads() * spec.layout().key_dim;
        let runs = parts.iter().map(|(span, rows, blocks)| AttentionRun {
            q: &q[span.start * row..(span.start + span.len) * row],
            first_position: 0,
            blocks,
            first_block_position: 0,
            first_key: rows.start,
            kv_tokens: rows.end,
        });
        let params = params(spec, Mask::Full, kernels.sums.order);
        let runs: Vec<_> = runs.collect();
        Ok(kernel::attention(&kernels.pool, &params, &runs, outputs.f32(0)?)?)
    })
}

/// Parameters of the kernel for `spec`.
pub(super) fn params(spec: &AttentionSpec, mask: Mask, order: Order) -> AttentionParams<'_> {
    let layout = spec.layout();
    AttentionParams {
        query_heads: spec.query_heads(),
        kv_heads: layout.kv_heads,
        key_dim: layout.key_dim,
        value_dim: layout.value_dim,
        scale: spec.scale(),
        softcap: spec.softcap(),
        sinks: spec.sinks().map(|sinks| &**sinks),
        window: layout.window.map(std::num::NonZeroUsize::get),
        mask,
        order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_around_images() {
        let part = |start, len, position| Span { start, len, position };
        let images = [2..4, 12..15, 15..16, 30..32];
        let parts = parts_by_image(&part(10, 8, 100), &images);
        let expected = [
            (part(10, 2, 100), Mask::Causal),
            (part(12, 3, 102), Mask::Full),
            (part(15, 1, 105), Mask::Full),
            (part(16, 2, 106), Mask::Causal),
        ];
        assert_eq!(parts, expected);
        assert_eq!(parts_by_image(&part(5, 1, 7), &images), [(part(5, 1, 7), Mask::Causal)]);
    }
}
