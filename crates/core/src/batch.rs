//! The ragged batch: what one forward pass computes, as a list of token runs.
//!
//! Linear layers see `[total tokens, hidden]`; attention sees each run with its own cache. A single
//! prompt, a chunk of a prefill, a step of many sequences and a prefix hit are all one `Batch`.

use std::ops::Range;
use std::sync::Arc;

use mlx_ffi::Array;
use mlxcel_kernels::kv::KV_BLOCK_TOKENS;

use crate::attention::AttentionSpec;
use crate::cache::SequenceCache;
use crate::images::{ImagePositions, ImageRows, Sight, coordinates};
use crate::layers::Embedding;
use crate::ops::{Map, Ops};
use crate::recurrent::{Convolution, Scan};
use crate::shape::int;
use crate::{Error, Result, Rope};

/// The tokens that one sequence adds in this pass, and the cache that they extend.
pub struct SequenceRun<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// The sequence's cache; it grows by `tokens.len()`.
    pub cache: &'a SequenceCache,
}

/// Where a run lies in the batch and in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row of the run in the batch.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
}

impl Span {
    /// The run cut where its positions cross the end of a block.
    pub(crate) fn by_blocks(self) -> impl Iterator<Item = Self> + use<> {
        let Self { start, len, position } = self;
        let end = position + len;
        let mut at = position;
        std::iter::from_fn(move || {
            let next = end.min((at / KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS);
            let part = Self { start: start + (at - position), len: next - at, position: at };
            at = next;
            (part.len > 0).then_some(part)
        })
    }
}

/// One forward pass over several sequences.
pub struct Batch<'a> {
    ops: &'a Ops,
    tokens: Array,
    positions: Arc<[i32]>,
    /// Time, height and width of each row, `[total tokens, 3]`, where they are not its position.
    grid: Option<Arc<[i32]>>,
    spans: Vec<Span>,
    caches: Vec<SequenceCache>,
    images: Vec<ImageRows>,
}

impl<'a> Batch<'a> {
    /// Lays out the runs and reserves the cache memory that they will fill.
    ///
    /// # Errors
    /// When there is no token, a token or position does not fit 31 bits, or cache memory cannot be
    /// allocated. Nothing is appended to any cache then.
    pub fn new(ops: &'a Ops, runs: &[SequenceRun<'_>]) -> Result<Self> {
        let (mut tokens, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for run in runs {
            let position = run.cache.tokens();
            let end = position + run.tokens.len();
            spans.push(Span { start: tokens.len(), len: run.tokens.len(), position });
            tokens.extend(run.tokens.iter().map(|t| i32::try_from(*t).unwrap_or(i32::MAX)));
            let range = i32::try_from(position).ok().zip(i32::try_from(end).ok());
            let (first, last) =
                range.ok_or_else(|| Error::Cache { what: format!("{end} tokens are too many") })?;
            positions.extend(first..last);
        }
        if spans.iter().any(|s| s.len == 0) || spans.is_empty() {
            return Err(Error::Cache { what: "a run of no tokens".into() });
        }
        for run in runs {
            run.cache.reserve(run.tokens.len())?;
        }
        let batch = Self {
            ops,
            tokens: Array::from_slice(&tokens, &[int(tokens.len())?])?,
            positions: positions.into(),
            grid: None,
            spans,
            caches: runs.iter().map(|run| run.cache.clone()).collect(),
            images: Vec::new(),
        };
        Ok(Self { grid: batch.grid_of(&[]), ..batch })
    }

    /// The same with images in place of some rows' tokens, in order.
    ///
    /// # Errors
    /// Images that overlap, that do not lie within one run each, or rows that they do not have.
    pub fn with_images(mut self, images: Vec<ImageRows>) -> Result<Self> {
        let mut free = 0;
        for image in &images {
            image.check()?;
            let rows = image.rows();
            let within =
                |span: &Span| span.start <= rows.start && rows.end <= span.start + span.len;
            if rows.start < free || !self.spans.iter().any(within) {
                let what = format!("an image in rows {rows:?}, which are not one run's own");
                return Err(Error::Config { what });
            }
            free = rows.end;
        }
        self.grid = self.grid_of(&images);
        self.images = images;
        Ok(self)
    }

    /// Time, height and width of each row with `images` in it, where any differs from its position.
    fn grid_of(&self, images: &[ImageRows]) -> Option<Arc<[i32]>> {
        let saved = |cache: &SequenceCache| cache.images().saved();
        let on_a_line = |image: &ImageRows| image.positions == ImagePositions::Line;
        if images.iter().all(on_a_line) && self.caches.iter().all(|cache| saved(cache) == 0) {
            return None;
        }
        let mut rows = Vec::with_capacity(self.positions.len());
        for (span, cache) in self.spans.iter().zip(&self.caches) {
            let own = within(images, span).map(|image| (image.start - span.start, image));
            coordinates(&mut rows, (span.position, span.len), saved(cache), own);
        }
        // Positions of tokens, which are no smaller, fit.
        let fitting = |position: usize| i32::try_from(position).unwrap_or(i32::MAX);
        Some(rows.into_iter().flatten().map(fitting).collect())
    }

    /// `x`, `[total tokens, hidden]`, with the images' embeddings in their rows.
    ///
    /// # Errors
    /// Embeddings of another width.
    pub fn place_images(&self, x: &Array) -> Result<Array> {
        let mut x = x.clone();
        for image in &self.images {
            x = self.ops.replace_rows(&x, image.start, &image.part_embeddings()?)?;
        }
        Ok(x)
    }

    /// The rows of each image whose rows see each other.
    pub(crate) fn mutual(&self) -> Vec<Range<usize>> {
        let mutual = self.images.iter().filter(|image| image.sight == Sight::Mutual);
        mutual.map(ImageRows::rows).collect()
    }

    /// The operations that this pass runs on.
    #[must_use]
    pub fn ops(&self) -> &Ops {
        self.ops
    }

    /// Token ids, i32 `[total tokens]`.
    #[must_use]
    pub fn tokens(&self) -> &Array {
        &self.tokens
    }

    /// Position of each row in its sequence, `total tokens` of them.
    #[must_use]
    pub fn positions(&self) -> &Arc<[i32]> {
        &self.positions
    }

    /// The runs, in batch order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The cache of each run.
    #[must_use]
    pub fn caches(&self) -> &[SequenceCache] {
        &self.caches
    }

    /// Rotates `x`, `[total tokens, heads · head_dim]`, each row by its position or, with a rope of
    /// three sections, by its time, height and width.
    ///
    /// # Errors
    /// When the shape does not match.
    pub fn rope(&self, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
        match (&self.grid, rope.sections().is_empty()) {
            (Some(grid), false) => self.ops.rope_on_grid(x, heads, rope, grid),
            _ => self.ops.rope(self, x, heads, rope),
        }
    }

    /// The row of `table` for each row's position, `[total tokens, hidden]`.
    ///
    /// # Errors
    /// A position beyond the table.
    pub fn embed_positions(&self, table: &Embedding) -> Result<Array> {
        let (rows, _) = table.weight.shape();
        let last = self.positions.iter().copied().max().unwrap_or(0);
        if usize::try_from(last).map_or(true, |last| last >= rows) {
            let what = format!("position {last} is beyond the model's {rows} learned positions");
            return Err(Error::Config { what });
        }
        let positions = Array::from_slice(&self.positions, &[int(self.positions.len())?])?;
        self.ops.embed(&positions, table)
    }

    /// Appends `k` and `v` to layer `layer`'s caches and attends with `q`.
    ///
    /// `q` is `[total tokens, query_heads · head_dim]`, `k` and `v` are
    /// `[total tokens, kv_heads · head_dim]`; the result has `q`'s rows with `value_dim` per head.
    ///
    /// # Errors
    /// When shapes do not match the spec or the cache.
    pub fn attention(
        &self,
        layer: usize,
        q: &Array,
        k: &Array,
        v: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        self.ops.attention(self, layer, [q, k, v], spec)
    }

    /// [`Self::attention`] of absorbed queries, `[total tokens, query_heads · (latent + rotary)]`,
    /// to latents with the rotary part of the key behind each, `[total tokens, latent + rotary]`.
    /// The result has `latent` elements per query head.
    ///
    /// # Errors
    /// As [`Self::attention`], and a spec that is not [`AttentionSpec::latent`].
    pub fn latent_attention(
        &self,
        layer: usize,
        q: &Array,
        keys: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        if !spec.layout().latent {
            return Err(Error::Config { what: "this attention has values of its own".into() });
        }
        self.ops.attention(self, layer, [q, keys, keys], spec)
    }

    /// Whether any sequence of the batch was shown images that cross-attention layers see.
    #[must_use]
    pub fn sees_images(&self) -> bool {
        self.caches.iter().any(|cache| !cache.seen().is_empty())
    }

    /// Attends with `q`, `[total tokens, query_heads · head_dim]`, to what each token sees of its
    /// sequence's images in cross-attention layer `layer` (counted without the others). Rows of
    /// sequences without images are 0.
    ///
    /// # Errors
    /// When the shape does not match the spec.
    pub fn cross_attention(&self, layer: usize, q: &Array, spec: &AttentionSpec) -> Result<Array> {
        self.ops.cross_attention(self, layer, q, spec)
    }

    /// `factor · x` in the rows of tokens that stand for an image beside their sequence, or behind
    /// one; 0 in all others.
    ///
    /// # Errors
    /// Another number of rows than of tokens.
    pub fn scale_behind_images(&self, x: &Array, factor: f32) -> Result<Array> {
        let mut behind = Vec::with_capacity(self.positions.len());
        for (span, cache) in self.spans.iter().zip(&self.caches) {
            let seen = cache.seen();
            let positions = span.position..span.position + span.len;
            behind.extend(positions.map(|at| seen.is_behind(at)));
        }
        if !behind.contains(&false) {
            return self.ops.map(x, Map::Scale(factor));
        }
        let own = |behind: bool| if behind { factor } else { 0.0 };
        let factors: Vec<f32> = behind.into_iter().map(own).collect();
        self.ops.scale_rows(x, &factors)
    }

    /// Runs the convolution of recurrent layer `index` (counted without the others) over each run
    /// of `x`, `[total tokens, channels]`; the result has the same shape. Every recurrent layer
    /// has one, and its scan follows.
    ///
    /// # Errors
    /// When the shape does not match the layer.
    pub fn convolve(&self, index: usize, x: &Array, layer: &Convolution) -> Result<Array> {
        self.ops.convolve(self, index, x, layer)
    }

    /// Runs the scan of recurrent layer `index` over each run of `inputs`, whose widths are
    /// [`Scan::input_widths`]; the result is `[total tokens, width]`.
    ///
    /// # Errors
    /// When shapes do not match the scan.
    pub fn scan(&self, index: usize, inputs: &[&Array], scan: &Scan) -> Result<Array> {
        self.ops.scan(self, index, inputs, scan)
    }

    /// Records that the pass was evaluated: every cache now holds its run's tokens.
    pub fn commit(self) {
        for (cache, span) in self.caches.iter().zip(&self.spans) {
            cache.advance(span.len);
            for image in within(&self.images, span) {
                cache.images_mut().push(image, span.position + image.start - span.start);
            }
        }
    }
}

/// Those of `images` that lie in `span`.
fn within<'a>(
    images: &'a [ImageRows],
    span: &Span,
) -> impl Iterator<Item = &'a ImageRows> + use<'a> {
    let rows = span.start..span.start + span.len;
    images.iter().filter(move |image| rows.contains(&image.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_block_boundaries() {
        let parts: Vec<_> = Span { start: 10, len: 300, position: 250 }.by_blocks().collect();
        let expected = [
            Span { start: 10, len: 6, position: 250 },
            Span { start: 16, len: 256, position: 256 },
            Span { start: 272, len: 38, position: 512 },
        ];
        assert_eq!(parts, expected);
    }
}
