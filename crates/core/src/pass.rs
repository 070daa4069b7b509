//! A forward pass: a batch, the operations that compute it, and the caches that it extends.

use mlx_ffi::Array;

use crate::attention::AttentionSpec;
use crate::batch::{Batch, RunTokens};
use crate::cache::SequenceCache;
use crate::images::ImageRows;
use crate::kernels::{AttentionInputs, Runs};
use crate::layers::Embedding;
use crate::ops::{Map, Ops, check_rope};
use crate::recurrent::{Convolution, Scan};
use crate::shape::{dims, last_dim, shape_error};
use crate::{Error, Result, Rope};

/// Tokens that one sequence adds in a pass, and the cache that they extend.
///
/// The cache is borrowed mutably, so that it cannot be in one pass twice:
///
/// ```compile_fail,E0499
/// # use mlxcel_core::{Ops, Pass, SequenceCache, SequenceRun};
/// fn twice(ops: &Ops, cache: &mut SequenceCache) {
///     let mut runs = [
///         SequenceRun { tokens: &[1], cache: &mut *cache },
///         SequenceRun { tokens: &[2], cache: &mut *cache },
///     ];
///     Pass::new(ops, &mut runs, Vec::new()).unwrap();
/// }
/// ```
///
/// Two caches can:
///
/// ```no_run
/// # use mlxcel_core::{Ops, Pass, SequenceCache, SequenceRun};
/// fn both(ops: &Ops, first: &mut SequenceCache, second: &mut SequenceCache) {
///     let mut runs = [
///         SequenceRun { tokens: &[1], cache: &mut *first },
///         SequenceRun { tokens: &[2], cache: &mut *second },
///     ];
///     Pass::new(ops, &mut runs, Vec::new()).unwrap();
/// }
/// ```
pub struct SequenceRun<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// The sequence's cache; it grows by `tokens.len()`.
    pub cache: &'a mut SequenceCache,
}

/// One forward pass over several sequences.
pub struct Pass<'a> {
    ops: &'a Ops,
    batch: Batch,
    caches: Vec<&'a mut SequenceCache>,
}

impl<'a> Pass<'a> {
    /// Lays out the runs, with images in place of some rows' tokens, and reserves the cache memory
    /// that they will fill.
    ///
    /// # Errors
    /// No token, a position that does not fit 31 bits, images that overlap or do not lie within one
    /// run each, or cache memory that cannot be allocated. Nothing is appended to any cache then.
    pub fn new(
        ops: &'a Ops,
        runs: &'a mut [SequenceRun<'_>],
        images: Vec<ImageRows>,
    ) -> Result<Self> {
        let mut tokens = Vec::with_capacity(runs.len());
        for run in &*runs {
            tokens.push(RunTokens {
                tokens: run.tokens,
                position: run.cache.tokens(),
                position_delta: run.cache.position_delta(),
            });
        }
        let batch = Batch::new(&tokens)?.with_images(images)?;
        let mut caches = Vec::with_capacity(runs.len());
        for run in runs {
            run.cache.reserve(run.tokens.len())?;
            caches.push(&mut *run.cache);
        }
        Ok(Self { ops, batch, caches })
    }

    /// The operations of this pass.
    #[must_use]
    pub fn ops(&self) -> &'a Ops {
        self.ops
    }

    /// Tokens, positions and images.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Last row of each run, in batch order.
    #[must_use]
    pub fn last_rows(&self) -> Vec<usize> {
        self.batch.spans().iter().map(|span| span.start + span.len - 1).collect()
    }

    /// Embeddings of the tokens, `[total tokens, hidden]`.
    ///
    /// # Errors
    /// Errors of [`Ops::embed`].
    pub fn embed_tokens(&self, table: &Embedding) -> Result<Array> {
        self.ops.embed(self.batch.tokens(), table)
    }

    /// Row of `table` for each row's position, `[total tokens, hidden]`.
    ///
    /// # Errors
    /// A position beyond the table.
    pub fn embed_positions(&self, table: &Embedding) -> Result<Array> {
        let (len, _) = table.weight.shape();
        let last = self.batch.positions().iter().copied().max().unwrap_or(0);
        let index = usize::try_from(last).expect("positions are not negative");
        if index >= len {
            return Err(Error::OutOfRange { what: "learned position", index, len });
        }
        self.ops.embed(self.batch.positions(), table)
    }

    /// `x`, `[total tokens, hidden]`, with the images' embeddings in their rows.
    ///
    /// # Errors
    /// Embeddings of another width.
    pub fn place_images(&self, x: &Array) -> Result<Array> {
        let mut x = x.clone();
        for image in self.batch.images() {
            x = self.ops.replace_rows(&x, image.start, &image.part_embeddings()?)?;
        }
        Ok(x)
    }

    /// Rotates `x`, `[total tokens, heads · head_dim]`, each row by its position or, with a rope of
    /// three sections, by its time, height and width.
    ///
    /// # Errors
    /// A shape that does not match.
    pub fn rope(&self, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
        if let (Some(grid), false) = (self.batch.grid(), rope.sections().is_empty()) {
            return self.ops.rope_on_grid(x, heads, rope, grid);
        }
        check_rope(x, heads, rope)?;
        self.ops.implementation().rope(&self.batch, x, heads, rope)
    }

    /// Appends `k` and `v` to layer `layer`'s caches and attends with `q`.
    ///
    /// `q` is `[total tokens, query_heads · head_dim]`, `k` and `v` are
    /// `[total tokens, kv_heads · head_dim]`; the result has `q`'s rows with `value_dim` per head.
    ///
    /// # Errors
    /// Shapes that do not match the spec or the cache.
    pub fn attention(
        &mut self,
        layer: usize,
        q: &Array,
        k: &Array,
        v: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let layout = spec.layout();
        let value_dim = if layout.latent { layout.key_dim } else { layout.value_dim };
        check_rows("q", q, spec.query_heads() * layout.key_dim)?;
        check_rows("k", k, layout.kv_heads * layout.key_dim)?;
        check_rows("v", v, layout.kv_heads * value_dim)?;
        let inputs = AttentionInputs { layer, q, k, v, spec };
        let runs = Runs { batch: &self.batch, caches: &mut self.caches };
        self.ops.implementation().attention(runs, &inputs)
    }

    /// [`Self::attention`] of absorbed queries, `[total tokens, query_heads · (latent + rotary)]`,
    /// to latents with the rotary part of the key behind each, `[total tokens, latent + rotary]`.
    /// The result has `latent` elements per query head.
    ///
    /// # Errors
    /// Errors of [`Self::attention`].
    ///
    /// # Panics
    /// A spec that is not [`AttentionSpec::latent`].
    pub fn latent_attention(
        &mut self,
        layer: usize,
        q: &Array,
        keys: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        assert!(spec.layout().latent, "latent attention needs a latent layout");
        self.attention(layer, q, keys, keys, spec)
    }

    /// Returns true if any sequence of the batch has images that cross-attention layers attend to.
    #[must_use]
    pub fn has_cross_images(&self) -> bool {
        self.caches.iter().any(|cache| !cache.cross_rows().is_empty())
    }

    /// Attends with `q`, `[total tokens, query_heads · head_dim]`, to each token's rows of its
    /// sequence's images in cross-attention layer `layer` (counted without the others). Rows of
    /// sequences without images are 0.
    ///
    /// # Errors
    /// A shape that does not match the spec.
    pub fn cross_attention(
        &mut self,
        layer: usize,
        q: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let rows = self.batch.positions().len();
        let expected = [rows, spec.query_heads() * spec.layout().key_dim];
        if dims(q) != expected {
            return Err(shape_error("cross_attention", "q", q, format!("{expected:?}")));
        }
        let runs = Runs { batch: &self.batch, caches: &mut self.caches };
        self.ops.implementation().cross_attention(runs, layer, q, spec)
    }

    /// `factor · x` in the rows of tokens that stand for a cross-attention image or follow one; 0 in
    /// all others.
    ///
    /// # Errors
    /// Another number of rows than of tokens.
    pub fn scale_after_images(&self, x: &Array, factor: f32) -> Result<Array> {
        let mut factors = Vec::with_capacity(self.batch.positions().len());
        let mut all_follow = true;
        for (span, cache) in self.batch.spans().iter().zip(&self.caches) {
            for position in span.position..span.position + span.len {
                let follows = cache.cross_rows().follows_image(position);
                factors.push(if follows { factor } else { 0.0 });
                all_follow &= follows;
            }
        }
        if all_follow {
            return self.ops.map(x, Map::Scale(factor));
        }
        self.ops.scale_rows(x, &factors)
    }

    /// Runs the convolution of recurrent layer `index` (counted without the others) over each run
    /// of `x`, `[total tokens, channels]`; the result has the same shape. Every recurrent layer
    /// has one, and its scan follows.
    ///
    /// # Errors
    /// A shape that does not match the layer.
    pub fn convolve(&mut self, index: usize, x: &Array, layer: &Convolution) -> Result<Array> {
        if last_dim(x) != layer.channels() {
            let expected = format!("rows of {}", layer.channels());
            return Err(shape_error("convolve", "x", x, expected));
        }
        let runs = Runs { batch: &self.batch, caches: &mut self.caches };
        self.ops.implementation().convolve(runs, index, x, layer)
    }

    /// Runs the scan of recurrent layer `index` over each run of `inputs`, whose widths are
    /// [`Scan::input_widths`]; the result is `[total tokens, width]`.
    ///
    /// # Errors
    /// Shapes that do not match the scan.
    pub fn scan(&mut self, index: usize, inputs: &[&Array], scan: &Scan) -> Result<Array> {
        let rows = self.batch.positions().len();
        let widths = scan.input_widths();
        if inputs.len() != widths.len() {
            return Err(Error::Length {
                list: "the inputs of a scan",
                found: inputs.len(),
                expected: widths.len(),
            });
        }
        for (array, width) in inputs.iter().zip(&widths) {
            if dims(array) != [rows, *width] {
                return Err(shape_error("scan", "input", array, format!("[{rows}, {width}]")));
            }
        }
        let runs = Runs { batch: &self.batch, caches: &mut self.caches };
        self.ops.implementation().scan(runs, index, inputs, scan)
    }

    /// Records that the pass was evaluated: every cache now holds its run's tokens.
    pub fn commit(self) {
        for (cache, span) in self.caches.into_iter().zip(self.batch.spans()) {
            cache.advance(span.len);
            for image in self.batch.images_in(span) {
                cache.push_image(image, span.position + image.start - span.start);
            }
        }
    }
}

/// Fails unless the rows of `array` have `width` elements.
fn check_rows(operand: &'static str, array: &Array, width: usize) -> Result<()> {
    if last_dim(array) == width {
        return Ok(());
    }
    Err(shape_error("attention", operand, array, format!("rows of {width}")))
}
