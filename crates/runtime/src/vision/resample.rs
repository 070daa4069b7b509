//! Resizing as Pillow does it, level for level: the processors that models were trained with use it.
//!
//! Two passes, along rows first, each with weights of 22 bits after the point and rounded to bytes. A
//! filter widens with the factor by which a picture shrinks. (Pillow 13 begins along columns for some
//! sizes; older ones do not.)

use image::{RgbImage, imageops};

/// Bits after the point of a weight.
const PRECISION: u32 = 22;

/// How the values between pixels are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
}

impl Filter {
    /// By Pillow's number.
    pub(super) fn numbered(number: u32) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic].get(number as usize).copied()
    }

    /// How far it reaches, in pixels of the larger picture's grid.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Nearest => f64::from(x <= 0.5),
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let angle = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { angle.sin() / angle }
}

/// `picture` with `width` × `height` pixels.
pub(super) fn resize(picture: &RgbImage, (width, height): (u32, u32), filter: Filter) -> RgbImage {
    if filter == Filter::Nearest {
        return imageops::resize(picture, width, height, imageops::FilterType::Nearest);
    }
    let wide = match picture.width() == width {
        true => picture.clone(),
        false => rows(picture, width, filter),
    };
    match wide.height() == height {
        true => wide,
        false => columns(&wide, height, filter),
    }
}

/// Where the pixels that make one lie, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pixels of a picture, and weights of about one"
)]
fn taps(from: u32, to: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    let widened = scale.max(1.0);
    let support = filter.support() * widened;
    let one = |at: u32| {
        let centre = (f64::from(at) + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as u32;
        let end = ((centre + support + 0.5) as u32).min(from);
        let weights = (first..end).map(|x| filter.at((f64::from(x) - centre + 0.5) / widened));
        let weights: Vec<f64> = weights.collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight / sum * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Taps { first: first as usize, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(one).collect()
}

/// A byte from the sum of weighted bytes.
fn byte(sum: i32) -> u8 {
    u8::try_from((sum >> PRECISION).clamp(0, 255)).unwrap_or(u8::MAX)
}

const HALF: i32 = 1 << (PRECISION - 1);

fn rows(picture: &RgbImage, width: u32, filter: Filter) -> RgbImage {
    let taps = taps(picture.width(), width, filter);
    let mut to = RgbImage::new(width, picture.height());
    let line = picture.width() as usize * 3;
    let lines = picture.as_raw().chunks_exact(line.max(1));
    for (from, to) in lines.zip(to.chunks_exact_mut(width as usize * 3)) {
        for (pixel, Taps { first, weights }) in to.chunks_exact_mut(3).zip(&taps) {
            let mut sums = [HALF; 3];
            for (from, weight) in from[first * 3..].chunks_exact(3).zip(weights) {
                sums.iter_mut().zip(from).for_each(|(sum, x)| *sum += i32::from(*x) * weight);
            }
            pixel.iter_mut().zip(sums).for_each(|(to, sum)| *to = byte(sum));
        }
    }
    to
}

fn columns(picture: &RgbImage, height: u32, filter: Filter) -> RgbImage {
    let line = picture.width() as usize * 3;
    let mut to = RgbImage::new(picture.width(), height);
    let mut sums = vec![HALF; line];
    let taps = taps(picture.height(), height, filter);
    for (to, Taps { first, weights }) in to.chunks_exact_mut(line.max(1)).zip(&taps) {
        sums.fill(HALF);
        let lines = picture.as_raw()[first * line..].chunks_exact(line.max(1));
        for (from, weight) in lines.zip(weights) {
            sums.iter_mut().zip(from).for_each(|(sum, x)| *sum += i32::from(*x) * weight);
        }
        to.iter_mut().zip(&sums).for_each(|(to, sum)| *to = byte(*sum));
    }
    to
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const FILTERS: [Filter; 4] =
        [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic];

    /// `tests/vision.rs` compares whole pictures with Pillow's; here a row that Pillow resized.
    #[test]
    fn a_row_is_pillows() {
        let picture =
            RgbImage::from_fn(6, 1, |x, _| Rgb([[0, 255, 255, 10, 200, 30][x as usize]; 3]));
        let row = |width, filter| -> Vec<u8> {
            resize(&picture, (width, 1), filter).pixels().map(|pixel| pixel.0[0]).collect()
        };
        assert_eq!(row(4, Filter::Bicubic), [90, 246, 91, 96]);
        assert_eq!(row(9, Filter::Bicubic), [0, 120, 255, 255, 121, 21, 184, 121, 19]);
        assert_eq!(row(4, Filter::Bilinear), [96, 228, 101, 94]);
        assert_eq!(row(4, Filter::Lanczos), [92, 247, 90, 101]);
        assert_eq!(row(4, Filter::Nearest), [0, 255, 10, 30]);
    }

    #[test]
    fn a_plain_picture_stays_plain_at_any_size() {
        let picture = RgbImage::from_pixel(7, 3, Rgb([1, 128, 255]));
        for filter in FILTERS {
            for (width, height) in [(1, 1), (7, 3), (3, 7), (20, 1), (64, 64)] {
                let resized = resize(&picture, (width, height), filter);
                assert_eq!(resized, RgbImage::from_pixel(width, height, Rgb([1, 128, 255])));
            }
        }
    }
}
