//! The ragged batch: what one forward pass computes, as a list of token runs.
//!
//! Linear layers see `[total tokens, hidden]`; attention sees each run with its own cache. A single
//! prompt, a chunk of a prefill, a step of many sequences and a prefix hit are all one `Batch`.

use std::ops::Range;
use std::sync::Arc;

use mlx_ffi::Array;

use crate::attention::AttentionSpec;
use crate::cache::SequenceCache;
use crate::layers::Embedding;
use crate::ops::Ops;
use crate::recurrent::{Convolution, Scan};
use crate::shape::{int, rows_cols};
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

/// Which tokens the rows of an image see, besides those before the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Those of the image at their own position and before.
    Causal,
    /// All of the image (Gemma 3).
    Mutual,
}

/// Rows of a pass that stand for an image instead of tokens.
#[derive(Clone)]
pub struct ImageRows {
    /// First of the rows in the pass.
    pub start: usize,
    /// What takes the place of the tokens' embeddings, `[rows, hidden]`.
    pub embeddings: Array,
    /// What they see.
    pub sight: Sight,
}

impl ImageRows {
    /// The rows in the pass.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + rows_cols(&self.embeddings).0
    }
}

/// One forward pass over several sequences.
pub struct Batch<'a> {
    ops: &'a Ops,
    tokens: Array,
    positions: Arc<[i32]>,
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
        Ok(Self {
            ops,
            tokens: Array::from_slice(&tokens, &[int(tokens.len())?])?,
            positions: positions.into(),
            spans,
            caches: runs.iter().map(|run| run.cache.clone()).collect(),
            images: Vec::new(),
        })
    }

    /// The same with images in place of some rows' tokens, in order.
    ///
    /// # Errors
    /// Images that overlap, or that do not lie within one run each.
    pub fn with_images(mut self, images: Vec<ImageRows>) -> Result<Self> {
        let mut free = 0;
        for image in &images {
            let rows = image.rows();
            let within =
                |span: &Span| span.start <= rows.start && rows.end <= span.start + span.len;
            if rows.is_empty() || rows.start < free || !self.spans.iter().any(within) {
                let what = format!("an image in rows {rows:?}, which are not one run's own");
                return Err(Error::Config { what });
            }
            free = rows.end;
        }
        self.images = images;
        Ok(self)
    }

    /// `x`, `[total tokens, hidden]`, with the images' embeddings in their rows.
    ///
    /// # Errors
    /// Embeddings of another width.
    pub fn place_images(&self, x: &Array) -> Result<Array> {
        let mut x = x.clone();
        for image in &self.images {
            x = self.ops.replace_rows(&x, image.start, &image.embeddings)?;
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

    /// Rotates `x`, `[total tokens, heads · head_dim]`, each row by its position.
    ///
    /// # Errors
    /// When the shape does not match.
    pub fn rope(&self, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
        self.ops.rope(self, x, heads, rope)
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
        }
    }
}
