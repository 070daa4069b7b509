//! The ragged batch: the tokens of one forward pass, as a list of runs.
//!
//! Linear layers see `[total tokens, hidden]`; attention sees each run with its own cache. A single
//! prompt, a chunk of a prefill, a step of many sequences and a prefix hit are all one `Batch`. It is
//! plain data: [`crate::Pass`] joins it with operations and caches.

use std::ops::Range;

use mlxcel_kernels::kv::KV_BLOCK_TOKENS;

use crate::error::ImageProblem;
use crate::images::{ImageAttention, ImagePositions, ImageRows, RunCoordinates};
use crate::{Error, Result};

/// Tokens that one sequence adds in a pass.
#[derive(Clone, Copy, Debug)]
pub struct RunTokens<'a> {
    /// New tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them in its sequence.
    pub position: usize,
    /// Difference between that position and the rotary one, because of images before it.
    pub position_delta: usize,
}

/// Location of a run in the batch and in its sequence.
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
    /// Rows of the run in the batch.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The run cut where its positions cross the end of a block.
    pub(crate) fn by_blocks(self) -> Vec<Self> {
        let end = self.position + self.len;
        let mut parts = Vec::new();
        let mut position = self.position;
        while position < end {
            let next = end.min((position / KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS);
            let start = self.start + (position - self.position);
            parts.push(Self { start, len: next - position, position });
            position = next;
        }
        parts
    }
}

/// Tokens, positions and images of one forward pass over several sequences.
pub struct Batch {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    /// Time, height and width of each row, `[total tokens, 3]`, where they are not its position.
    grid: Option<Vec<i32>>,
    spans: Vec<Span>,
    /// Position delta of the images before each run.
    position_deltas: Vec<usize>,
    images: Vec<ImageRows>,
}

impl Batch {
    /// Lays out the runs.
    ///
    /// # Errors
    /// No token, or a position that does not fit 31 bits.
    pub fn new(runs: &[RunTokens<'_>]) -> Result<Self> {
        let mut batch = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            grid: None,
            spans: Vec::with_capacity(runs.len()),
            position_deltas: runs.iter().map(|run| run.position_delta).collect(),
            images: Vec::new(),
        };
        for run in runs {
            batch.push(run)?;
        }
        if runs.is_empty() {
            return Err(Error::Length { list: "the runs of a pass", found: 0, expected: 1 });
        }
        batch.grid = batch.grid_with(&[]);
        Ok(batch)
    }

    fn push(&mut self, run: &RunTokens<'_>) -> Result<()> {
        let len = run.tokens.len();
        if len == 0 {
            return Err(Error::Length { list: "the tokens of a run", found: 0, expected: 1 });
        }
        let (first, end) = positions(run.position, len)?;
        self.spans.push(Span { start: self.tokens.len(), len, position: run.position });
        self.tokens.extend(run.tokens.iter().map(|t| i32::try_from(*t).unwrap_or(i32::MAX)));
        self.positions.extend(first..end);
        Ok(())
    }

    /// Puts images in place of some rows' tokens, in order.
    ///
    /// # Errors
    /// Images that overlap or do not lie within one run each, and rows that they do not have.
    pub fn with_images(mut self, images: Vec<ImageRows>) -> Result<Self> {
        let mut free = 0;
        for image in &images {
            image.check()?;
            let rows = image.rows();
            let in_one_run = self
                .spans
                .iter()
                .any(|span| span.start <= rows.start && rows.end <= span.start + span.len);
            if rows.start < free || !in_one_run {
                return Err(Error::Image { rows, problem: ImageProblem::NotInOneRun });
            }
            free = rows.end;
        }
        self.grid = self.grid_with(&images);
        self.images = images;
        Ok(self)
    }

    /// Time, height and width of each row with `images` in it, where any differs from its position.
    fn grid_with(&self, images: &[ImageRows]) -> Option<Vec<i32>> {
        let on_a_line = images.iter().all(|image| image.positions == ImagePositions::Line);
        if on_a_line && self.position_deltas.iter().all(|delta| *delta == 0) {
            return None;
        }
        let mut rows = Vec::with_capacity(self.positions.len());
        for (span, position_delta) in self.spans.iter().zip(&self.position_deltas) {
            let run = RunCoordinates {
                position: span.position,
                len: span.len,
                position_delta: *position_delta,
                images: images_in(images, span)
                    .map(|image| (image.start - span.start, image))
                    .collect(),
            };
            run.append_to(&mut rows);
        }
        // Token positions, which are no smaller, fit.
        let coordinates = rows.into_iter().flatten();
        Some(coordinates.map(|at| i32::try_from(at).unwrap_or(i32::MAX)).collect())
    }

    /// Token ids, `total tokens` of them.
    #[must_use]
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Position of each row in its sequence, `total tokens` of them.
    #[must_use]
    pub fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// Time, height and width of each row, `[total tokens, 3]`, where they are not its position.
    #[must_use]
    pub fn grid(&self) -> Option<&[i32]> {
        self.grid.as_deref()
    }

    /// The runs, in batch order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Images among the rows, in order.
    #[must_use]
    pub fn images(&self) -> &[ImageRows] {
        &self.images
    }

    /// Images that begin in run `span`.
    pub(crate) fn images_in(&self, span: &Span) -> impl Iterator<Item = &ImageRows> {
        images_in(&self.images, span)
    }

    /// Rows of each image whose rows attend to each other.
    pub(crate) fn bidirectional(&self) -> Vec<Range<usize>> {
        self.images
            .iter()
            .filter(|image| image.attention == ImageAttention::Bidirectional)
            .map(ImageRows::rows)
            .collect()
    }
}

/// Images of `images` that begin in run `span`.
fn images_in<'a>(
    images: &'a [ImageRows],
    span: &Span,
) -> impl Iterator<Item = &'a ImageRows> + use<'a> {
    let rows = span.rows();
    images.iter().filter(move |image| rows.contains(&image.start))
}

/// First position of a run of `len` tokens and the one after its last.
fn positions(position: usize, len: usize) -> Result<(i32, i32)> {
    let end = position.saturating_add(len);
    match (i32::try_from(position), i32::try_from(end)) {
        (Ok(first), Ok(end)) => Ok((first, end)),
        _ => Err(Error::Value {
            name: "the number of tokens",
            value: end.to_string(),
            expected: "less than 2^31",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_block_boundaries() {
        let parts = Span { start: 10, len: 300, position: 250 }.by_blocks();
        let expected = [
            Span { start: 10, len: 6, position: 250 },
            Span { start: 16, len: 256, position: 256 },
            Span { start: 272, len: 38, position: 512 },
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn runs_lie_one_after_the_other() {
        let runs = [
            RunTokens { tokens: &[5, 6], position: 7, position_delta: 0 },
            RunTokens { tokens: &[8], position: 0, position_delta: 0 },
        ];
        let batch = Batch::new(&runs).unwrap();
        assert_eq!(batch.tokens(), [5, 6, 8]);
        assert_eq!(batch.positions(), [7, 8, 0]);
        assert_eq!(batch.spans()[1], Span { start: 2, len: 1, position: 0 });
        assert_eq!(batch.grid(), None);
    }

    #[test]
    fn runs_without_tokens_are_refused() {
        let empty = RunTokens { tokens: &[], position: 0, position_delta: 0 };
        assert!(Batch::new(&[empty]).is_err());
        assert!(Batch::new(&[]).is_err());
        let long = RunTokens { tokens: &[1], position: usize::MAX, position_delta: 0 };
        assert!(Batch::new(&[long]).is_err());
    }

    #[test]
    fn a_position_delta_makes_a_grid() {
        let run = RunTokens { tokens: &[5, 6], position: 7, position_delta: 3 };
        let batch = Batch::new(&[run]).unwrap();
        assert_eq!(batch.grid(), Some(&[4, 4, 4, 5, 5, 5][..]));
    }
}
