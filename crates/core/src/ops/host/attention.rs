//! Appending to block caches and attending to them, in one call.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use mlx_ffi::host::call_one;
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::attention::{self as kernel, AttentionParams, AttentionRun, Mask};
use mlxcel_kernels::kv::{
    BlockLayout, KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore, append as append_to_blocks,
};
use mlxcel_kernels::{Order, Pool};

use crate::attention::AttentionSpec;
use crate::batch::{Batch, Span};
use crate::cache::{BlockCache, LayerCache, sealed_image};
use crate::ops::Ops;
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

pub(crate) fn attention(
    ops: &Ops,
    batch: &Batch,
    layer: usize,
    qkv: [&Array; 3],
    spec: &AttentionSpec,
) -> Result<Array> {
    let pass = Pass {
        pool: ops.pool(),
        order: ops.order(),
        spec,
        spans: batch.spans(),
        caches: batch
            .caches()
            .iter()
            .map(|cache| blocks(cache.layer(layer)?))
            .collect::<Result<_>>()?,
        mutual: batch.mutual(),
    };
    let (rows, _) = rows_cols(qkv[0]);
    let shape = ints([rows, spec.query_heads() * spec.layout().value_dim])?;
    call_one("attention", &qkv, (&shape, Dtype::Float32), |inputs, mut outputs| {
        pass.run([inputs.f32(0)?, inputs.f32(1)?, inputs.f32(2)?], outputs.f32(0)?)
    })
}

fn blocks(layer: &LayerCache) -> Result<&Mutex<BlockCache>> {
    match layer {
        LayerCache::Blocks(blocks) => Ok(blocks),
        LayerCache::Contiguous(_) => {
            Err(Error::Cache { what: "an MLX cache was given to the host kernel set".into() })
        }
    }
}

/// One layer's attention over all runs of a batch.
struct Pass<'a> {
    pool: &'a Pool,
    order: Order,
    spec: &'a AttentionSpec,
    spans: &'a [Span],
    caches: Vec<&'a Mutex<BlockCache>>,
    /// Rows of images that see each other.
    mutual: Vec<Range<usize>>,
}

impl Pass<'_> {
    fn run(&self, qkv: [&[f32]; 3], out: &mut [f32]) -> Result<()> {
        let mut caches: Vec<_> = self.caches.iter().map(|cache| LayerCache::lock(cache)).collect();
        if !self.mutual.is_empty() {
            return self.run_by_images(qkv, &mut caches, out);
        }
        if caches.iter().any(|cache| cache.breaks_at_blocks()) {
            return self.run_by_blocks(qkv, &mut caches, out);
        }
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            self.append(qkv, cache, span)?;
        }
        self.attend(qkv[0], &caches, self.spans, Mask::Causal, out)
    }

    /// Cuts runs around images: an image sees all of itself and what comes before.
    fn run_by_images(
        &self,
        qkv: [&[f32]; 3],
        caches: &mut [MutexGuard<'_, BlockCache>],
        out: &mut [f32],
    ) -> Result<()> {
        if caches.iter().any(|cache| cache.breaks_at_blocks()) {
            return Err(sealed_image());
        }
        let width = self.spec.query_heads() * self.spec.layout().value_dim;
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            for (part, mask) in parts_by_image(span, &self.mutual) {
                self.append(qkv, cache, &part)?;
                let out = &mut out[part.start * width..(part.start + part.len) * width];
                self.attend(qkv[0], std::slice::from_ref(cache), &[part], mask, out)?;
            }
        }
        Ok(())
    }

    /// Cuts runs at block boundaries: each part sees its own block as written, and earlier ones
    /// sealed, whatever the chunk of the prefill was.
    fn run_by_blocks(
        &self,
        qkv: [&[f32]; 3],
        caches: &mut [MutexGuard<'_, BlockCache>],
        out: &mut [f32],
    ) -> Result<()> {
        let width = self.spec.query_heads() * self.spec.layout().value_dim;
        for (cache, span) in caches.iter_mut().zip(self.spans) {
            for part in span.by_blocks() {
                cache.seal_before(self.pool, part.position)?;
                self.append(qkv, cache, &part)?;
                let out = &mut out[part.start * width..(part.start + part.len) * width];
                self.attend(qkv[0], std::slice::from_ref(cache), &[part], Mask::Causal, out)?;
            }
        }
        Ok(())
    }

    fn append(&self, [_, k, v]: [&[f32]; 3], cache: &mut BlockCache, span: &Span) -> Result<()> {
        let layout = self.spec.layout();
        let rows = |dim: usize| {
            span.start * layout.kv_heads * dim..(span.start + span.len) * layout.kv_heads * dim
        };
        let own_values = if layout.latent { 0..0 } else { rows(layout.value_dim) };
        let (k, v) = (&k[rows(layout.key_dim)], &v[own_values]);
        cache.append(self.pool, span.position, k, v)
    }

    /// Attends the rows of `spans`, which lie one after the other in `out`.
    fn attend(
        &self,
        q: &[f32],
        caches: &[MutexGuard<'_, BlockCache>],
        spans: &[Span],
        mask: Mask,
        out: &mut [f32],
    ) -> Result<()> {
        let layout = self.spec.layout();
        let row = self.spec.query_heads() * layout.key_dim;
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

/// `span` cut around the images `mutual` (rows of the batch, in order), each part with its mask.
fn parts_by_image(span: &Span, mutual: &[Range<usize>]) -> Vec<(Span, Mask)> {
    let end = span.start + span.len;
    let mut parts = Vec::new();
    let mut at = span.start;
    let mut push = |rows: Range<usize>, mask| {
        if !rows.is_empty() {
            let position = span.position + rows.start - span.start;
            parts.push((Span { start: rows.start, len: rows.len(), position }, mask));
        }
    };
    for image in mutual.iter().filter(|image| (span.start..end).contains(&image.start)) {
        push(at..image.start, Mask::Causal);
        push(image.clone(), Mask::Full);
        at = image.end;
    }
    push(at..end, Mask::Causal);
    parts
}

/// Attention of an encoder among the tokens of each segment, one segment after the other: keys and
/// values of one are copied into blocks at a time.
pub(crate) fn encoder_attention(
    ops: &Ops,
    qkv: [&Array; 3],
    heads: usize,
    segments: &[usize],
) -> Result<Array> {
    let (_, width) = rows_cols(qkv[0]);
    let dim = width / heads;
    let layout = BlockLayout::new(heads, dim, dim, KvFormat::F32, ValueStore::Own(KvFormat::F32))?;
    let output = (qkv[0].shape(), Dtype::Float32);
    call_one("encoder_attention", &qkv, output, |inputs, mut outputs| {
        let (qkv, out) = ([inputs.f32(0)?, inputs.f32(1)?, inputs.f32(2)?], outputs.f32(0)?);
        let mut start = 0;
        for &len in segments {
            let rows = start * width..(start + len) * width;
            let (qkv, out) = (qkv.map(|x| &x[rows.clone()]), &mut out[rows.clone()]);
            attend_segment(ops.pool(), layout, qkv, len, out)?;
            start += len;
        }
        Ok(())
    })
}

/// Attention of an encoder among the rows of one image: the first `real` see all of them, the others
/// only those.
pub(crate) fn padded_encoder_attention(
    ops: &Ops,
    qkv: [&Array; 3],
    heads: usize,
    real: usize,
) -> Result<Array> {
    let dim = rows_cols(qkv[0]).1 / heads;
    let layout = BlockLayout::new(heads, dim, dim, KvFormat::F32, ValueStore::Own(KvFormat::F32))?;
    let output = (qkv[0].shape(), Dtype::Float32);
    call_one("encoder_attention", &qkv, output, |inputs, mut outputs| {
        let (qkv, out) = ([inputs.f32(0)?, inputs.f32(1)?, inputs.f32(2)?], outputs.f32(0)?);
        attend_segment(ops.pool(), layout, qkv, real, out)
    })
}

/// Attention of the rows of each run to what they see of their sequence's images, all runs at once.
pub(crate) fn cross_attention(
    ops: &Ops,
    batch: &Batch,
    layer: usize,
    q: &Array,
    spec: &AttentionSpec,
) -> Result<Array> {
    let mut parts = Vec::new();
    for (span, cache) in batch.spans().iter().zip(batch.caches()) {
        let seen = cache.seen();
        let held = if seen.is_empty() { None } else { Some(blocks(cache.cross_layer(layer)?)?) };
        parts.extend(seen.parts(span).into_iter().map(|(part, rows)| (part, rows, held)));
    }
    let (rows, layout) = (batch.positions().len(), spec.layout());
    let shape = ints([rows, spec.query_heads() * layout.value_dim])?;
    let output = (&shape[..], Dtype::Float32);
    call_one("cross_attention", &[q], output, |inputs, mut outputs| {
        let (q, row) = (inputs.f32(0)?, spec.query_heads() * layout.key_dim);
        let caches: Vec<Option<BlockCache>> = parts
            .iter()
            .map(|(_, _, held)| held.map(|blocks| LayerCache::lock(blocks).clone()))
            .collect();
        let views: Vec<_> =
            caches.iter().map(|cache| cache.as_ref().map_or(Vec::new(), |c| c.view().0)).collect();
        let runs = parts.iter().zip(&views).map(|((span, rows, _), blocks)| AttentionRun {
            q: &q[span.start * row..(span.start + span.len) * row],
            first_position: 0,
            blocks,
            first_block_position: 0,
            first_key: rows.start,
            kv_tokens: rows.end,
        });
        let params = params(spec, Mask::Full, ops.order());
        let runs: Vec<_> = runs.collect();
        Ok(kernel::attention(ops.pool(), &params, &runs, outputs.f32(0)?)?)
    })
}

/// What the kernel needs to know of `spec`.
fn params(spec: &AttentionSpec, mask: Mask, order: Order) -> AttentionParams<'_> {
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

/// Attention among the tokens of one segment: the first `real` see all of them, the others only those.
fn attend_segment(
    pool: &Pool,
    layout: BlockLayout,
    [q, k, v]: [&[f32]; 3],
    real: usize,
    out: &mut [f32],
) -> Result<()> {
    let (heads, dim) = (layout.kv_heads(), layout.key_dim());
    let tokens = q.len() / (heads * dim);
    let blocks = (0..tokens.div_ceil(KV_BLOCK_TOKENS)).map(|_| KvBlock::new(layout));
    let mut blocks = blocks.collect::<std::result::Result<Vec<_>, _>>()?;
    let mut targets: Vec<&mut KvBlock> = blocks.iter_mut().collect();
    append_to_blocks(pool, &mut targets, 0, k, v)?;
    let spec = AttentionSpec::causal(heads, heads, dim);
    let blocks: Vec<&KvBlock> = blocks.iter().collect();
    let run = |q, kv_tokens| AttentionRun {
        q,
        first_position: 0,
        blocks: &blocks,
        first_block_position: 0,
        first_key: 0,
        kv_tokens,
    };
    let (real_q, padding_q) = q.split_at(real * heads * dim);
    let runs = [run(real_q, tokens), run(padding_q, real)];
    Ok(kernel::attention(pool, &params(&spec, Mask::Full, Order::Fastest), &runs, out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_around_images() {
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
