//! Image resizing that is bit-identical to Pillow's, which models' processors use.
//!
//! Two passes, horizontal first, with fixed-point weights of 22 fractional bits; each pass rounds to
//! bytes. When an image shrinks, the filter widens by the same factor. (Pillow 13 starts with the
//! vertical pass for some sizes; older versions do not.)

use image::{RgbImage, imageops};

use super::tiles::ImageSize;

/// Fractional bits of a weight.
const PRECISION: u32 = 22;

/// Interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResampleFilter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
}

impl ResampleFilter {
    /// Filter with Pillow's number `number`.
    pub(super) fn from_pillow(number: u32) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic].get(number as usize).copied()
    }

    /// Radius of the filter, in pixels of the larger image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Value of the filter at distance `x`.
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

/// Resizes `image` to `size`.
pub(super) fn resize(image: &RgbImage, size: ImageSize, filter: ResampleFilter) -> RgbImage {
    let ImageSize { width, height } = size;
    if filter == ResampleFilter::Nearest {
        return imageops::resize(image, width, height, imageops::FilterType::Nearest);
    }
    let wide = match image.width() == width {
        true => image.clone(),
        false => resize_rows(image, width, filter),
    };
    match wide.height() == height {
        true => wide,
        false => resize_columns(&wide, height, filter),
    }
}

/// Source pixels of one target pixel, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    /// Computes the taps of all `to` target pixels.
    fn all(from: u32, to: u32, filter: ResampleFilter) -> Vec<Self> {
        (0..to)
            .map(|target| Self::new(from, f64::from(from) / f64::from(to), target, filter))
            .collect()
    }

    /// Computes the taps of pixel `target`, which covers `scale` of the `from` source pixels.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "pixels of an image, and weights of about one"
    )]
    fn new(from: u32, scale: f64, target: u32, filter: ResampleFilter) -> Self {
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let centre = (f64::from(target) + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as u32;
        let end = ((centre + support + 0.5) as u32).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|source| filter.at((f64::from(source) - centre + 0.5) / widening))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed_point = weights.iter().map(|weight| {
            let scaled = weight / sum * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i32
        });
        Self { first: first as usize, weights: fixed_point.collect() }
    }
}

/// Converts a fixed-point sum to a byte.
fn byte(sum: i32) -> u8 {
    u8::try_from((sum >> PRECISION).clamp(0, 255)).unwrap_or(u8::MAX)
}

/// Initial value of a sum, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn resize_rows(image: &RgbImage, width: u32, filter: ResampleFilter) -> RgbImage {
    let taps = Taps::all(image.width(), width, filter);
    let mut resized = RgbImage::new(width, image.height());
    let row_bytes = image.width() as usize * 3;
    let rows = image.as_raw().chunks_exact(row_bytes.max(1));
    for (from, to) in rows.zip(resized.chunks_exact_mut(width as usize * 3)) {
        for (pixel, Taps { first, weights }) in to.chunks_exact_mut(3).zip(&taps) {
            let mut sums = [HALF; 3];
            for (from, weight) in from[first * 3..].chunks_exact(3).zip(weights) {
                sums.iter_mut().zip(from).for_each(|(sum, x)| *sum += i32::from(*x) * weight);
            }
            pixel.iter_mut().zip(sums).for_each(|(to, sum)| *to = byte(sum));
        }
    }
    resized
}

fn resize_columns(image: &RgbImage, height: u32, filter: ResampleFilter) -> RgbImage {
    let row_bytes = image.width() as usize * 3;
    let mut resized = RgbImage::new(image.width(), height);
    let mut sums = vec![HALF; row_bytes];
    let taps = Taps::all(image.height(), height, filter);
    for (to, Taps { first, weights }) in resized.chunks_exact_mut(row_bytes.max(1)).zip(&taps) {
        sums.fill(HALF);
        let rows = image.as_raw()[first * row_bytes..].chunks_exact(row_bytes.max(1));
        for (from, weight) in rows.zip(weights) {
            sums.iter_mut().zip(from).for_each(|(sum, x)| *sum += i32::from(*x) * weight);
        }
        to.iter_mut().zip(&sums).for_each(|(to, sum)| *to = byte(*sum));
    }
    resized
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const FILTERS: [ResampleFilter; 4] = [
        ResampleFilter::Nearest,
        ResampleFilter::Lanczos,
        ResampleFilter::Bilinear,
        ResampleFilter::Bicubic,
    ];

    /// A row that Pillow resized; `tests/it/vision.rs` compares whole images.
    #[test]
    fn a_row_agrees_with_pillow() {
        let image =
            RgbImage::from_fn(6, 1, |x, _| Rgb([[0, 255, 255, 10, 200, 30][x as usize]; 3]));
        let row = |width, filter| -> Vec<u8> {
            resize(&image, ImageSize { width, height: 1 }, filter)
                .pixels()
                .map(|pixel| pixel.0[0])
                .collect()
        };
        assert_eq!(row(4, ResampleFilter::Bicubic), [90, 246, 91, 96]);
        assert_eq!(row(9, ResampleFilter::Bicubic), [0, 120, 255, 255, 121, 21, 184, 121, 19]);
        assert_eq!(row(4, ResampleFilter::Bilinear), [96, 228, 101, 94]);
        assert_eq!(row(4, ResampleFilter::Lanczos), [92, 247, 90, 101]);
        assert_eq!(row(4, ResampleFilter::Nearest), [0, 255, 10, 30]);
    }

    #[test]
    fn a_uniform_image_stays_uniform() {
        let image = RgbImage::from_pixel(7, 3, Rgb([1, 128, 255]));
        for filter in FILTERS {
            for (width, height) in [(1, 1), (7, 3), (3, 7), (20, 1), (64, 64)] {
                let resized = resize(&image, ImageSize { width, height }, filter);
                assert_eq!(resized, RgbImage::from_pixel(width, height, Rgb([1, 128, 255])));
            }
        }
    }
}
