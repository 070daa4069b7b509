//! Images beside a sequence: cross-attention layers see their rows, which take no place among the
//! tokens.
//!
//! A sequence is shown all of its images before its first token, since tokens before the first image
//! see every row of every image, also those that show nothing of it (Llama 3.2 Vision attends so, and
//! only leaves their feed-forward part out). A later token sees what shows something of the last
//! images at or before it: of one, or of several whose tokens stand side by side. So rows lie in the
//! order [those that show something, image by image; all others], and what a token sees is one range.

use std::ops::Range;

use mlx_ffi::{Array, ops};

use crate::batch::Span;
use crate::shape::{int, rows_cols};
use crate::{Error, Result};

/// An image that cross-attention layers see.
#[derive(Clone)]
pub struct CrossImage {
    /// The token of the sequence that stands for it.
    pub token: usize,
    /// `[rows, hidden]`.
    pub rows: Array,
    /// How many rows, the first ones, show something of it.
    pub shown: usize,
}

/// Which rows of its images the tokens of a sequence see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeenImages {
    /// The token of each image, in order, and where the rows lie that show something of it.
    images: Vec<(usize, Range<usize>)>,
    /// Rows of all images.
    rows: usize,
}

impl SeenImages {
    /// Fails for images that are not in order, and for rows that an image does not have.
    pub(crate) fn of(images: &[CrossImage]) -> Result<Self> {
        let wrong = |what: String| Err(Error::Config { what });
        let mut seen = Self::default();
        let mut shown = 0;
        for CrossImage { token, rows, shown: own } in images {
            let (all, _) = rows_cols(rows);
            if !(1..=all).contains(own) {
                return wrong(format!("{own} rows that show something of an image of {all}"));
            }
            if seen.images.last().is_some_and(|(last, _)| last >= token) {
                return wrong(format!("an image at token {token}, which is not behind the last"));
            }
            seen.images.push((*token, shown..shown + own));
            shown += own;
            seen.rows += all;
        }
        Ok(seen)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Images at or before the token at `position`.
    fn before(&self, position: usize) -> usize {
        self.images.partition_point(|(token, _)| *token <= position)
    }

    /// Whether the token at `position` stands for an image or behind one.
    pub(crate) fn is_behind(&self, position: usize) -> bool {
        self.before(position) > 0
    }

    /// The rows that the token at `position` sees.
    fn rows_for(&self, position: usize) -> Range<usize> {
        let images = &self.images[..self.before(position)];
        let Some((_, last)) = images.last() else { return 0..self.rows };
        let alone = |pair: &[(usize, Range<usize>)]| pair[0].0 + 1 != pair[1].0;
        let first = images.windows(2).rposition(alone).map_or(0, |index| index + 1);
        images[first].1.start..last.end
    }

    /// `span` cut where what its tokens see changes, each part with what they see.
    pub(crate) fn parts(&self, span: &Span) -> Vec<(Span, Range<usize>)> {
        let end = span.position + span.len;
        let tokens = self.images.iter().map(|(token, _)| *token);
        let cuts = tokens.filter(|token| (span.position + 1..end).contains(token)).chain([end]);
        let mut parts = Vec::new();
        let mut at = span.position;
        for cut in cuts {
            let start = span.start + (at - span.position);
            parts.push((Span { start, len: cut - at, position: at }, self.rows_for(at)));
            at = cut;
        }
        parts
    }
}

/// The rows of all images, `[rows, hidden]`, in the order that [`SeenImages`] counts on.
pub(crate) fn joined(images: &[CrossImage]) -> Result<Array> {
    let part = |image: &CrossImage, rows: Range<usize>| -> Result<Array> {
        Ok(ops::slice_axis(&image.rows, 0, int(rows.start)?, int(rows.end)?)?)
    };
    let rest = |image: &CrossImage| image.shown..rows_cols(&image.rows).0;
    let mut parts = Vec::with_capacity(2 * images.len());
    for image in images {
        parts.push(part(image, 0..image.shown)?);
    }
    for image in images.iter().filter(|image| !rest(image).is_empty()) {
        parts.push(part(image, rest(image))?);
    }
    let all = ops::concatenate(&parts.iter().collect::<Vec<_>>(), 0)?;
    Ok(ops::contiguous(&all)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(token: usize, all: usize, shown: usize) -> CrossImage {
        let values: Vec<f32> = (0..all).map(|row| (100 * token + row) as f32).collect();
        let rows = Array::from_slice(&values, &[int(all).unwrap(), 1]).unwrap();
        CrossImage { token, rows, shown }
    }

    /// An image alone, then two side by side.
    fn images() -> [CrossImage; 3] {
        [image(3, 4, 2), image(7, 4, 4), image(8, 4, 1)]
    }

    #[test]
    fn a_token_sees_the_last_group_and_before_all_images_everything() {
        let seen = SeenImages::of(&images()).unwrap();
        let rows = |position| seen.rows_for(position);
        assert_eq!([rows(0), rows(2)], [0..12, 0..12]);
        assert_eq!([rows(3), rows(6), rows(7), rows(8), rows(99)], [0..2, 0..2, 2..6, 2..7, 2..7]);
        assert!(!seen.is_behind(2) && seen.is_behind(3));
        assert_eq!(
            joined(&images()).unwrap().to_vec::<f32>().unwrap()[5..9],
            [703., 800., 302., 303.]
        );
    }

    #[test]
    fn runs_are_cut_at_images() {
        let seen = SeenImages::of(&images()).unwrap();
        let part = |start, len, position| Span { start, len, position };
        let parts = seen.parts(&part(10, 9, 1));
        let expected = [
            (part(10, 2, 1), 0..12),
            (part(12, 4, 3), 0..2),
            (part(16, 1, 7), 2..6),
            (part(17, 2, 8), 2..7),
        ];
        assert_eq!(parts, expected);
        assert_eq!(seen.parts(&part(0, 1, 3)), [(part(0, 1, 3), 0..2)]);
        assert_eq!(SeenImages::default().parts(&part(0, 5, 3)), [(part(0, 5, 3), 0..0)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |images: &[CrossImage]| SeenImages::of(images).unwrap_err().to_string();
        assert!(refused(&[image(3, 4, 5)]).contains("5 rows that show something of an image of 4"));
        assert!(refused(&[image(3, 4, 0)]).contains("0 rows"));
        let twice = [image(3, 4, 1), image(3, 4, 1)];
        assert!(refused(&twice).contains("at token 3, which is not behind the last"));
    }
}
