//! Images beside a sequence: cross-attention layers attend to their rows, which are no part of the
//! token sequence.
//!
//! A sequence is given all of its images before its first token, since tokens before the first image
//! attend to every row of every image, padding included (Llama 3.2 Vision does so, and only masks
//! their feed-forward part). A later token attends to the visible rows of the last images at or
//! before it: of one, or of several whose tokens are adjacent. So rows lie in the order
//! [visible rows, image by image; padding of all images], and a token attends to one range.

use std::ops::Range;

use mlx_ffi::{Array, ops};

use crate::batch::Span;
use crate::error::ImageProblem;
use crate::shape::{int, rows_cols};
use crate::{Error, Result};

/// An image that cross-attention layers attend to.
#[derive(Clone)]
pub struct CrossImage {
    /// Token of the sequence that stands for it.
    pub token: usize,
    /// `[rows, hidden]`.
    pub rows: Array,
    /// Number of rows, the first ones, that contain picture content.
    pub visible: usize,
}

/// Rows of a sequence's images that each of its tokens attends to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CrossRows {
    /// Token of each image, in order, and its visible rows.
    images: Vec<(usize, Range<usize>)>,
    /// Rows of all images.
    rows: usize,
}

impl CrossRows {
    /// Fails for images that are not in order, and for rows that an image does not have.
    pub(crate) fn of(images: &[CrossImage]) -> Result<Self> {
        let mut layout = Self::default();
        let mut next = 0;
        for image in images {
            let token = image.token;
            let (rows, _) = rows_cols(&image.rows);
            if !(1..=rows).contains(&image.visible) {
                let problem = ImageProblem::VisibleRows { rows };
                return Err(Error::Image { rows: 0..image.visible, problem });
            }
            if layout.images.last().is_some_and(|(last, _)| *last >= token) {
                return Err(Error::Image { rows: token..token + 1, problem: ImageProblem::Order });
            }
            layout.images.push((token, next..next + image.visible));
            next += image.visible;
            layout.rows += rows;
        }
        Ok(layout)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Number of images at or before the token at `position`.
    fn images_before(&self, position: usize) -> usize {
        self.images.partition_point(|(token, _)| *token <= position)
    }

    /// Returns true if the token at `position` stands for an image or follows one.
    pub(crate) fn follows_image(&self, position: usize) -> bool {
        self.images_before(position) > 0
    }

    /// Rows that the token at `position` attends to.
    fn rows_for(&self, position: usize) -> Range<usize> {
        let images = &self.images[..self.images_before(position)];
        let Some((_, last)) = images.last() else { return 0..self.rows };
        let gap = images.windows(2).rposition(|pair| pair[0].0 + 1 != pair[1].0);
        let first = gap.map_or(0, |index| index + 1);
        images[first].1.start..last.end
    }

    /// `span` cut where the attended rows change, each part with its rows.
    pub(crate) fn parts(&self, span: &Span) -> Vec<(Span, Range<usize>)> {
        let end = span.position + span.len;
        let tokens = self.images.iter().map(|(token, _)| *token);
        let cuts = tokens.filter(|token| (span.position + 1..end).contains(token)).chain([end]);
        let mut parts = Vec::new();
        let mut position = span.position;
        for cut in cuts {
            let start = span.start + (position - span.position);
            let part = Span { start, len: cut - position, position };
            parts.push((part, self.rows_for(position)));
            position = cut;
        }
        parts
    }
}

/// Rows of all images, `[rows, hidden]`, in the order that [`CrossRows`] assumes.
pub(crate) fn concatenated(images: &[CrossImage]) -> Result<Array> {
    let mut parts = Vec::with_capacity(2 * images.len());
    for image in images {
        parts.push(row_range(image, 0..image.visible)?);
    }
    for image in images {
        let padding = image.visible..rows_cols(&image.rows).0;
        if !padding.is_empty() {
            parts.push(row_range(image, padding)?);
        }
    }
    let all = ops::concatenate(&parts.iter().collect::<Vec<_>>(), 0)?;
    Ok(ops::contiguous(&all)?)
}

fn row_range(image: &CrossImage, rows: Range<usize>) -> Result<Array> {
    Ok(ops::slice_axis(&image.rows, 0, int(rows.start)?, int(rows.end)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(token: usize, all: usize, visible: usize) -> CrossImage {
        let values: Vec<f32> = (0..all).map(|row| (100 * token + row) as f32).collect();
        let rows = Array::from_slice(&values, &[int(all).unwrap(), 1]).unwrap();
        CrossImage { token, rows, visible }
    }

    /// An image alone, then two side by side.
    fn images() -> [CrossImage; 3] {
        [image(3, 4, 2), image(7, 4, 4), image(8, 4, 1)]
    }

    #[test]
    fn a_token_attends_to_the_last_group_of_images_before_it() {
        let layout = CrossRows::of(&images()).unwrap();
        let rows = |position| layout.rows_for(position);
        assert_eq!([rows(0), rows(2)], [0..12, 0..12]);
        assert_eq!([rows(3), rows(6), rows(7), rows(8), rows(99)], [0..2, 0..2, 2..6, 2..7, 2..7]);
        assert!(!layout.follows_image(2) && layout.follows_image(3));
        assert_eq!(
            concatenated(&images()).unwrap().to_vec::<f32>().unwrap()[5..9],
            [703., 800., 302., 303.]
        );
    }

    #[test]
    fn runs_are_cut_at_images() {
        let layout = CrossRows::of(&images()).unwrap();
        let part = |start, len, position| Span { start, len, position };
        let parts = layout.parts(&part(10, 9, 1));
        let expected = [
            (part(10, 2, 1), 0..12),
            (part(12, 4, 3), 0..2),
            (part(16, 1, 7), 2..6),
            (part(17, 2, 8), 2..7),
        ];
        assert_eq!(parts, expected);
        assert_eq!(layout.parts(&part(0, 1, 3)), [(part(0, 1, 3), 0..2)]);
        assert_eq!(CrossRows::default().parts(&part(0, 5, 3)), [(part(0, 5, 3), 0..0)]);
    }

    #[test]
    fn impossible_images_are_refused() {
        let refused = |images: &[CrossImage]| CrossRows::of(images).unwrap_err().to_string();
        assert!(refused(&[image(3, 4, 5)]).contains("the visible rows must be 1 to 4"));
        assert!(refused(&[image(3, 4, 0)]).contains("image rows 0..0"));
        let twice = [image(3, 4, 1), image(3, 4, 1)];
        assert!(refused(&twice).contains("image rows 3..4: its token does not follow"));
    }
}
