//! Images among the tokens of a sequence: the rows of a pass that stand for one, what they see, and
//! where they and what follows stand for rotary embeddings.
//!
//! A row's place in the cache is its token's; its rotary position falls behind that by what the images
//! before it save. So a sequence remembers the images that it holds whole.

use std::ops::Range;

use mlx_ffi::Array;

use crate::shape::{int, rows_cols};
use crate::{Error, Result};

/// Which tokens the rows of an image see, besides those before the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Those of the image at their own position and before.
    Causal,
    /// All of the image (Gemma 3).
    Mutual,
    /// None: they stand beside the tokens, where cross-attention layers see them (Llama 3.2 Vision).
    Beside {
        /// How many rows, the first ones, show something of the image.
        shown: usize,
    },
}

/// Where the rows of an image stand for rotary embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePositions {
    /// One after the other, as tokens.
    Line,
    /// On a grid, row by row (M-RoPE): all at the time of the first, each at its own height and width.
    /// What follows goes on behind the longer side.
    Grid {
        /// Rows.
        height: usize,
        /// Rows of a column.
        width: usize,
    },
}

impl ImagePositions {
    /// Rows for which this is meant; any number on a line.
    fn fits(self, rows: usize) -> bool {
        match self {
            Self::Line => true,
            Self::Grid { height, width } => height.checked_mul(width) == Some(rows),
        }
    }

    /// By how many positions `rows` rows fall short of as many tokens.
    fn saved(self, rows: usize) -> usize {
        match self {
            Self::Line => 0,
            Self::Grid { height, width } => rows.saturating_sub(height.max(width)),
        }
    }

    /// Time, height and width of row `row` of an image whose first token stands at `first`.
    fn of(self, row: usize, first: usize) -> [usize; 3] {
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
    /// Which of the image's rows they are; those before are in the cache.
    pub part: Range<usize>,
    /// What takes the place of the tokens' embeddings, `[rows of the image, hidden]`.
    pub embeddings: Array,
    /// What they see.
    pub sight: Sight,
    /// Where they stand.
    pub positions: ImagePositions,
}

impl ImageRows {
    /// The rows in the pass.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.start..self.start + self.part.len()
    }

    /// Rows of the whole image.
    fn all(&self) -> usize {
        rows_cols(&self.embeddings).0
    }

    /// The embeddings of the rows in the pass.
    pub(crate) fn part_embeddings(&self) -> Result<Array> {
        if self.part.len() == self.all() {
            return Ok(self.embeddings.clone());
        }
        let (first, end) = (int(self.part.start)?, int(self.part.end)?);
        Ok(mlx_ffi::ops::slice_axis(&self.embeddings, 0, first, end)?)
    }

    /// Fails for rows that the image does not have, or that cannot stand where they shall.
    pub(crate) fn check(&self) -> Result<()> {
        let (part, all) = (&self.part, self.all());
        let wrong = |what: String| Err(Error::Config { what });
        if part.is_empty() || part.end > all {
            return wrong(format!("rows {part:?} of an image of {all}"));
        }
        if matches!(self.sight, Sight::Beside { .. }) {
            return wrong("an image beside the tokens is shown to the cache, not to a pass".into());
        }
        if self.sight == Sight::Mutual && part.len() != all {
            return wrong(format!("a part of an image of {all} rows that see each other"));
        }
        if !self.positions.fits(all) {
            return wrong(format!("an image of {all} rows on {:?}", self.positions));
        }
        Ok(())
    }
}

/// An image that a sequence holds whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HeldImage {
    tokens: Range<usize>,
    /// Positions that its rows fall short of their tokens.
    saved: usize,
    sight: Sight,
}

/// The images that a sequence holds whole, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldImages(Vec<HeldImage>);

impl HeldImages {
    /// By how much rotary positions fall behind the number of tokens at the end.
    pub(crate) fn saved(&self) -> usize {
        self.0.iter().map(|image| image.saved).sum()
    }

    /// Fails within an image whose rows have seen what would be forgotten.
    pub(crate) fn check_trim(&self, tokens: usize) -> Result<()> {
        let within = |image: &&HeldImage| image.tokens.start < tokens && tokens < image.tokens.end;
        match self.0.iter().find(|image| image.sight == Sight::Mutual && within(image)) {
            Some(HeldImage { tokens: held, .. }) => {
                let what = format!("cannot trim to {tokens} tokens, within an image at {held:?}");
                Err(Error::Cache { what })
            }
            None => Ok(()),
        }
    }

    /// Forgets the images that do not end within `tokens` tokens.
    pub(crate) fn trim(&mut self, tokens: usize) {
        self.0.retain(|image| image.tokens.end <= tokens);
    }

    /// Records the image of `rows` if it ends with them; its first row in the pass stands at token
    /// `position`.
    pub(crate) fn push(&mut self, rows: &ImageRows, position: usize) {
        let all = rows.all();
        if rows.part.end == all {
            let start = position - rows.part.start;
            let saved = rows.positions.saved(all);
            self.0.push(HeldImage { tokens: start..start + all, saved, sight: rows.sight });
        }
    }

    /// As [`Self::parse`] reads it.
    pub(crate) fn to_text(&self) -> String {
        let one = |HeldImage { tokens, saved, sight }: &HeldImage| {
            let mutual = u8::from(*sight == Sight::Mutual);
            format!("{} {} {saved} {mutual}", tokens.start, tokens.end)
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// What [`Self::to_text`] gave for a sequence of `tokens` tokens; `None` for any other text.
    pub(crate) fn parse(text: &str, tokens: usize) -> Option<Self> {
        let mut images: Vec<HeldImage> = Vec::new();
        for image in text.split(", ").filter(|image| !image.is_empty()) {
            let numbers: Vec<usize> =
                image.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            let [start, end, saved, mutual @ (0 | 1)] = numbers[..] else { return None };
            let free = images.last().map_or(0, |image| image.tokens.end);
            if start < free || end <= start || end > tokens || saved >= end - start {
                return None;
            }
            let sight = if mutual == 1 { Sight::Mutual } else { Sight::Causal };
            images.push(HeldImage { tokens: start..end, saved, sight });
        }
        Some(Self(images))
    }
}

/// Appends time, height and width of `len` rows from token `position` on, behind images that save
/// `saved` positions; `images` are those among them, their starts counted from the first row.
pub(crate) fn coordinates<'a>(
    to: &mut Vec<[usize; 3]>,
    (position, len): (usize, usize),
    mut saved: usize,
    images: impl Iterator<Item = (usize, &'a ImageRows)>,
) {
    let first = to.len();
    for (start, image) in images {
        to.extend((to.len() - first..start).map(|row| [position + row - saved; 3]));
        let origin = position + start - image.part.start - saved;
        to.extend(image.part.clone().map(|row| image.positions.of(row, origin)));
        if image.part.end == image.all() {
            saved += image.positions.saved(image.all());
        }
    }
    to.extend((to.len() - first..len).map(|row| [position + row - saved; 3]));
}

#[cfg(test)]
mod tests {
    use mlx_ffi::Dtype;

    use super::*;

    fn image(part: Range<usize>, positions: ImagePositions, all: i32, sight: Sight) -> ImageRows {
        let embeddings = Array::zeros(&[all, 1], Dtype::Float32).unwrap();
        ImageRows { start: 0, part, embeddings, sight, positions }
    }

    const GRID: ImagePositions = ImagePositions::Grid { height: 2, width: 3 };

    #[test]
    fn text_goes_on_behind_the_longer_side() {
        let whole = image(0..6, GRID, 6, Sight::Causal);
        let mut all = Vec::new();
        coordinates(&mut all, (10, 12), 4, [(1, &whole), (8, &whole)].into_iter().take(1));
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
        // The same in three passes, of which one begins and one ends within the image.
        let mut parts = Vec::new();
        coordinates(
            &mut parts,
            (10, 3),
            4,
            [(1, &image(0..2, GRID, 6, Sight::Causal))].into_iter(),
        );
        coordinates(
            &mut parts,
            (13, 1),
            4,
            [(0, &image(2..3, GRID, 6, Sight::Causal))].into_iter(),
        );
        let rest = image(3..6, GRID, 6, Sight::Causal);
        coordinates(&mut parts, (14, 8), 4, [(0, &rest)].into_iter());
        assert_eq!(parts, expected);
    }

    #[test]
    fn held_images_are_trimmed_and_written_down() {
        let mut held = HeldImages::default();
        held.push(&image(0..6, GRID, 6, Sight::Causal), 4);
        held.push(&image(0..2, GRID, 6, Sight::Causal), 20);
        assert_eq!(held.saved(), 3, "a part is not held");
        held.push(&image(2..6, GRID, 6, Sight::Causal), 22);
        held.push(&image(0..6, ImagePositions::Line, 6, Sight::Mutual), 30);
        assert_eq!(held.saved(), 6);
        assert_eq!(HeldImages::parse(&held.to_text(), 36).as_ref(), Some(&held));
        assert_eq!(HeldImages::parse("", 0), Some(HeldImages::default()));
        for text in ["4 10 3 0", "4 6 2 0", "1 2 0 0, 1 3 0 0", "1 2 0", "1 2 0 2", "a 2 0 0"] {
            assert_eq!(HeldImages::parse(text, 9), None, "{text}");
        }
        assert!(held.check_trim(33).unwrap_err().to_string().contains("an image at 30..36"));
        assert!([7, 30, 36].iter().all(|tokens| held.check_trim(*tokens).is_ok()));
        held.trim(25);
        assert_eq!(held.saved(), 3);
        held.trim(4);
        assert_eq!(held, HeldImages::default());
    }

    #[test]
    fn rows_that_an_image_does_not_have_are_refused() {
        let refused = |image: ImageRows| image.check().unwrap_err().to_string();
        assert!(
            refused(image(2..7, GRID, 6, Sight::Causal)).contains("rows 2..7 of an image of 6")
        );
        assert!(refused(image(2..2, GRID, 6, Sight::Causal)).contains("rows 2..2"));
        assert!(refused(image(0..3, GRID, 6, Sight::Mutual)).contains("see each other"));
        assert!(
            refused(image(0..5, GRID, 5, Sight::Causal)).contains("an image of 5 rows on Grid")
        );
        assert!(image(1..3, GRID, 6, Sight::Causal).check().is_ok());
    }
}
