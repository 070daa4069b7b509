//! Images among the tokens of a sequence: the rows of a pass that stand for one, their attention,
//! and their rotary positions.
//!
//! A row takes a token's place in the cache; its rotary position is smaller than that by the
//! position deltas of the images before it (M-RoPE). So a sequence remembers the images that it
//! holds completely.

use std::ops::Range;

use mlx_ffi::Array;

use crate::error::{ImageProblem, TrimLimit};
use crate::shape::{int, rows_cols};
use crate::{Error, Result};

/// Attention of an image's rows, besides that to everything before the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAttention {
    /// Each row attends to the rows of the image up to its own.
    Causal,
    /// Each row attends to all rows of the image (Gemma 3).
    Bidirectional,
    /// The rows are no part of the sequence: cross-attention layers attend to them (Llama 3.2
    /// Vision).
    Cross {
        /// Number of rows, the first ones, that contain picture content; the others are padding.
        visible: usize,
    },
}

/// Rotary positions of an image's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePositions {
    /// One after the other, like tokens.
    Line,
    /// On a grid, row by row (M-RoPE): all at the time of the first, each at its own height and
    /// width. Text continues after the longer side.
    Grid {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

impl ImagePositions {
    /// Fails for a number of rows that does not fill the grid.
    fn check(self, rows: usize) -> std::result::Result<(), ImageProblem> {
        match self {
            Self::Line => Ok(()),
            Self::Grid { height, width } => match height.checked_mul(width) {
                Some(cells) if cells == rows => Ok(()),
                cells => Err(ImageProblem::Grid { rows, cells: cells.unwrap_or(usize::MAX) }),
            },
        }
    }

    /// Number of positions by which `rows` rows advance less than as many tokens.
    fn position_delta(self, rows: usize) -> usize {
        match self {
            Self::Line => 0,
            Self::Grid { height, width } => rows.saturating_sub(height.max(width)),
        }
    }

    /// Time, height and width of row `row` of an image whose first row is at position `first`.
    fn coordinates(self, row: usize, first: usize) -> [usize; 3] {
        match self {
            Self::Line => [first + row; 3],
            Self::Grid { width, .. } => [first, first + row / width, first + row % width],
        }
    }
}

/// Rows of a pass that stand for an image, or for a part of one, instead of tokens.
#[derive(Clone)]
pub struct ImageRows {
    /// First of the rows in the pass.
    pub start: usize,
    /// Range of the image's rows; those before it are in the cache.
    pub part: Range<usize>,
    /// Replacement of the tokens' embeddings, `[rows of the image, hidden]`.
    pub embeddings: Array,
    /// Attention of the rows to each other.
    pub attention: ImageAttention,
    /// Rotary positions of the rows.
    pub positions: ImagePositions,
}

impl ImageRows {
    /// Rows in the pass.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.part.len()
    }

    /// Number of rows of the whole image.
    fn image_rows(&self) -> usize {
        rows_cols(&self.embeddings).0
    }

    /// Embeddings of the rows in the pass.
    pub(crate) fn part_embeddings(&self) -> Result<Array> {
        if self.part.len() == self.image_rows() {
            return Ok(self.embeddings.clone());
        }
        let first = int(self.part.start)?;
        let end = int(self.part.end)?;
        Ok(mlx_ffi::ops::slice_axis(&self.embeddings, 0, first, end)?)
    }

    /// Fails for rows that the image does not have, and for positions or an attention that the rows
    /// cannot have in a pass.
    pub(crate) fn check(&self) -> Result<()> {
        self.problem().map_err(|problem| Error::Image { rows: self.part.clone(), problem })
    }

    fn problem(&self) -> std::result::Result<(), ImageProblem> {
        let rows = self.image_rows();
        if self.part.is_empty() || self.part.end > rows {
            return Err(ImageProblem::BeyondImage { rows });
        }
        if matches!(self.attention, ImageAttention::Cross { .. }) {
            return Err(ImageProblem::CrossAttention);
        }
        if self.attention == ImageAttention::Bidirectional && self.part.len() != rows {
            return Err(ImageProblem::PartOfBidirectional { rows });
        }
        self.positions.check(rows)
    }
}

/// An image that a sequence holds completely.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CachedImage {
    tokens: Range<usize>,
    /// Positions by which its rows advance less than as many tokens.
    position_delta: usize,
    attention: ImageAttention,
}

/// The images that a sequence holds completely, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CachedImages(Vec<CachedImage>);

impl CachedImages {
    /// Difference between the number of tokens and the next rotary position.
    pub(crate) fn position_delta(&self) -> usize {
        self.0.iter().map(|image| image.position_delta).sum()
    }

    /// Fails within an image whose rows have attended to rows that a trim would drop.
    pub(crate) fn check_trim(&self, tokens: usize) -> Result<()> {
        let split = self.0.iter().find(|image| {
            image.attention == ImageAttention::Bidirectional
                && image.tokens.start < tokens
                && tokens < image.tokens.end
        });
        match split {
            Some(image) => {
                let limit = TrimLimit::Image { tokens: image.tokens.clone() };
                Err(Error::Trim { to: tokens, limit })
            }
            None => Ok(()),
        }
    }

    /// Drops the images that do not end within `tokens` tokens.
    pub(crate) fn trim(&mut self, tokens: usize) {
        self.0.retain(|image| image.tokens.end <= tokens);
    }

    /// Records the image of `rows` if it ends with them; its first row in the pass is token
    /// `position`.
    pub(crate) fn push(&mut self, rows: &ImageRows, position: usize) {
        let count = rows.image_rows();
        if rows.part.end == count {
            let start = position - rows.part.start;
            self.0.push(CachedImage {
                tokens: start..start + count,
                position_delta: rows.positions.position_delta(count),
                attention: rows.attention,
            });
        }
    }

    /// Text form that [`Self::parse`] reads: `start end delta bidirectional` per image.
    pub(crate) fn to_text(&self) -> String {
        let mut images = Vec::with_capacity(self.0.len());
        for CachedImage { tokens, position_delta, attention } in &self.0 {
            let bidirectional = u8::from(*attention == ImageAttention::Bidirectional);
            images
                .push(format!("{} {} {position_delta} {bidirectional}", tokens.start, tokens.end));
        }
        images.join(", ")
    }

    /// Inverse of [`Self::to_text`] for a sequence of `tokens` tokens; `None` for any other text.
    pub(crate) fn parse(text: &str, tokens: usize) -> Option<Self> {
        let mut images: Vec<CachedImage> = Vec::new();
        for image in text.split(", ").filter(|image| !image.is_empty()) {
            let numbers: Vec<usize> =
                image.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            let [start, end, position_delta, bidirectional @ (0 | 1)] = numbers[..] else {
                return None;
            };
            let free = images.last().map_or(0, |image| image.tokens.end);
            if start < free || end <= start || end > tokens || position_delta >= end - start {
                return None;
            }
            let attention = match bidirectional {
                1 => ImageAttention::Bidirectional,
                _ => ImageAttention::Causal,
            };
            images.push(CachedImage { tokens: start..end, position_delta, attention });
        }
        Some(Self(images))
    }
}

/// Rotary coordinates of the rows of one run.
pub(crate) struct RunCoordinates<'a> {
    /// Token position of the first row.
    pub(crate) position: usize,
    /// Number of rows.
    pub(crate) len: usize,
    /// Position delta of the images before the run.
    pub(crate) position_delta: usize,
    /// Images among the rows, each with its first row counted from that of the run.
    pub(crate) images: Vec<(usize, &'a ImageRows)>,
}

impl RunCoordinates<'_> {
    /// Appends time, height and width of each row.
    pub(crate) fn append_to(self, rows: &mut Vec<[usize; 3]>) {
        let Self { position, len, position_delta: mut delta, images } = self;
        let first = rows.len();
        for (start, image) in images {
            rows.extend((rows.len() - first..start).map(|row| [position + row - delta; 3]));
            let origin = position + start - image.part.start - delta;
            rows.extend(image.part.clone().map(|row| image.positions.coordinates(row, origin)));
            if image.part.end == image.image_rows() {
                delta += image.positions.position_delta(image.image_rows());
            }
        }
        rows.extend((rows.len() - first..len).map(|row| [position + row - delta; 3]));
    }
}

#[cfg(test)]
mod tests {
    use mlx_ffi::Dtype;

    use super::*;

    fn image(
        part: Range<usize>,
        positions: ImagePositions,
        all: i32,
        attention: ImageAttention,
    ) -> ImageRows {
        let embeddings = Array::zeros(&[all, 1], Dtype::Float32).unwrap();
        ImageRows { start: 0, part, embeddings, attention, positions }
    }

    /// Rows behind images that have a position delta of 4.
    fn run<'a>(
        position: usize,
        len: usize,
        images: Vec<(usize, &'a ImageRows)>,
    ) -> RunCoordinates<'a> {
        RunCoordinates { position, len, position_delta: 4, images }
    }

    const GRID: ImagePositions = ImagePositions::Grid { height: 2, width: 3 };

    #[test]
    fn text_continues_after_the_longer_side() {
        let whole = image(0..6, GRID, 6, ImageAttention::Causal);
        let mut all = Vec::new();
        run(10, 12, vec![(1, &whole)]).append_to(&mut all);
        let expected = [
            [6, 6, 6],
            [7, 7, 7],
            [7, 7, 8],
            [7, 7, 9],
            [7, 8, 7],
            [7, 8, 8],
            [7, 8, 9],
            [10, 10, 10],
            [11, 11, 11],
            [12, 12, 12],
            [13, 13, 13],
            [14, 14, 14],
        ];
        assert_eq!(all, expected);
        // Three passes over the same rows, of which one begins and one ends within the image.
        let mut parts = Vec::new();
        let first = image(0..2, GRID, 6, ImageAttention::Causal);
        run(10, 3, vec![(1, &first)]).append_to(&mut parts);
        let second = image(2..3, GRID, 6, ImageAttention::Causal);
        run(13, 1, vec![(0, &second)]).append_to(&mut parts);
        let rest = image(3..6, GRID, 6, ImageAttention::Causal);
        run(14, 8, vec![(0, &rest)]).append_to(&mut parts);
        assert_eq!(parts, expected);
    }

    #[test]
    fn cached_images_are_trimmed_and_serialised() {
        let mut cached = CachedImages::default();
        cached.push(&image(0..6, GRID, 6, ImageAttention::Causal), 4);
        cached.push(&image(0..2, GRID, 6, ImageAttention::Causal), 20);
        assert_eq!(cached.position_delta(), 3, "a part is not cached");
        cached.push(&image(2..6, GRID, 6, ImageAttention::Causal), 22);
        cached.push(&image(0..6, ImagePositions::Line, 6, ImageAttention::Bidirectional), 30);
        assert_eq!(cached.position_delta(), 6);
        assert_eq!(CachedImages::parse(&cached.to_text(), 36).as_ref(), Some(&cached));
        assert_eq!(CachedImages::parse("", 0), Some(CachedImages::default()));
        for text in ["4 10 3 0", "4 6 2 0", "1 2 0 0, 1 3 0 0", "1 2 0", "1 2 0 2", "a 2 0 0"] {
            assert_eq!(CachedImages::parse(text, 9), None, "{text}");
        }
        assert!(cached.check_trim(33).unwrap_err().to_string().contains("an image at 30..36"));
        assert!([7, 30, 36].iter().all(|tokens| cached.check_trim(*tokens).is_ok()));
        cached.trim(25);
        assert_eq!(cached.position_delta(), 3);
        cached.trim(4);
        assert_eq!(cached, CachedImages::default());
    }

    #[test]
    fn rows_out_of_range_are_refused() {
        let refused = |image: ImageRows| image.check().unwrap_err().to_string();
        assert!(
            refused(image(2..7, GRID, 6, ImageAttention::Causal))
                .contains("image rows 2..7: the image has 6 rows")
        );
        assert!(refused(image(2..2, GRID, 6, ImageAttention::Causal)).contains("rows 2..2"));
        assert!(
            refused(image(0..3, GRID, 6, ImageAttention::Bidirectional))
                .contains("attend to each other")
        );
        assert!(
            refused(image(0..5, GRID, 5, ImageAttention::Causal))
                .contains("the image has 5 rows, its grid 6 cells")
        );
        assert!(image(1..3, GRID, 6, ImageAttention::Causal).check().is_ok());
    }
}
