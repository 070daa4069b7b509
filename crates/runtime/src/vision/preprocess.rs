//! From a picture to an encoder's input, as `preprocessor_config.json` says: resized, scaled and
//! normalised.

use image::{RgbImage, imageops};
use serde::Deserialize;

use super::resample::{Filter, resize};
use super::tiles::{Fitted, fit};
use super::{ImageError, ImageInput};
use crate::Result;
use crate::text::TextFiles;

const FILE: &str = "preprocessor_config.json";

/// A picture may be so many times as long as it is wide, or as wide as it is long.
const MOST_STRETCHED: u64 = 200;

/// The part of the file that concerns pixels.
#[derive(Debug, Deserialize)]
struct Config {
    do_resize: Option<bool>,
    size: Option<Size>,
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    patch_size: Option<usize>,
    merge_size: Option<usize>,
    resample: Option<u32>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f32>,
    do_normalize: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    do_pan_and_scan: Option<bool>,
    do_pad: Option<bool>,
    max_image_tiles: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
struct Size {
    height: Option<usize>,
    width: Option<usize>,
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
}

/// What a class takes where the file does not say.
struct Defaults {
    resample: u32,
    mean: [f32; 3],
    deviation: [f32; 3],
}

/// Gemma 3's.
const PLAIN: Defaults = Defaults { resample: 2, mean: [0.0; 3], deviation: [1.0; 3] };

/// Llama 3.2 Vision's.
const HALVES: Defaults = Defaults { resample: 2, mean: [0.5; 3], deviation: [0.5; 3] };

/// Qwen 2 VL's.
const CLIP: Defaults = Defaults {
    resample: 3,
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    deviation: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// The size that a picture gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sizing {
    /// This one.
    Square { side: u32 },
    /// About its own, in whole squares of `unit` pixels, with no fewer and no more pixels in all.
    Bounded { unit: u32, min_pixels: u64, max_pixels: u64 },
    /// What fits on up to `most` tiles, which are black where the picture ends.
    Tiles { side: u32, most: usize },
}

/// Pictures to pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    sizing: Sizing,
    filter: Filter,
    rescale: f32,
    mean: [f32; 3],
    deviation: [f32; 3],
}

/// What an encoder takes: three planes of `height` × `width` values, red first.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Pixels of a row.
    pub width: usize,
    /// Pixels of a column.
    pub height: usize,
    /// `[3, height, width]`.
    pub values: Vec<f32>,
}

impl Preprocessor {
    /// Reads the file for an encoder that takes `input`.
    ///
    /// # Errors
    /// A missing file, and preparations that are not supported or do not lead to that input.
    pub fn load(files: &TextFiles<'_>, input: ImageInput) -> Result<Self> {
        let missing = || ImageError::NoPreprocessor { file: files.label(FILE) };
        let config: Config = files.json(FILE)?.ok_or_else(missing)?;
        Ok(Self::new(&config, input)?)
    }

    fn new(config: &Config, input: ImageInput) -> std::result::Result<Self, ImageError> {
        let wrong = |what: String| Err(ImageError::Preprocessor { what });
        if config.do_pan_and_scan == Some(true) {
            return wrong("do_pan_and_scan is not supported".to_owned());
        }
        let (sizing, defaults) = match input {
            ImageInput::Square { side, .. } => (config.square(side)?, PLAIN),
            ImageInput::Grid { unit } => (config.bounded(unit)?, CLIP),
            ImageInput::Tiles { side, most, .. } => (config.tiles(side, most)?, HALVES),
        };
        let number = config.resample.unwrap_or(defaults.resample);
        let Some(filter) = Filter::numbered(number) else {
            return wrong(format!("resample {number} is not supported (supported: 0 to 3)"));
        };
        let rescale = match config.do_rescale {
            Some(false) => 1.0,
            _ => config.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        let (mean, deviation) = match config.do_normalize {
            Some(false) => ([0.0; 3], [1.0; 3]),
            _ => (
                config.image_mean.unwrap_or(defaults.mean),
                config.image_std.unwrap_or(defaults.deviation),
            ),
        };
        if deviation.iter().any(|it| !(*it > 0.0 && it.is_finite())) {
            return wrong(format!("image_std is {deviation:?}"));
        }
        Ok(Self { sizing, filter, rescale, mean, deviation })
    }

    /// Width and height that `picture` is given, with the tiles that it lies on.
    ///
    /// # Errors
    /// A picture that is 200 times as long as it is wide, for an encoder that keeps its shape.
    pub fn size(&self, picture: &RgbImage) -> std::result::Result<(u32, u32), ImageError> {
        match self.sizing {
            Sizing::Square { side } => Ok((side, side)),
            Sizing::Bounded { unit, min_pixels, max_pixels } => {
                bounded(picture.dimensions(), unit, min_pixels..=max_pixels)
            }
            Sizing::Tiles { side, most } => Ok(fit(picture.dimensions(), side, most).canvas),
        }
    }

    /// `picture` resized, and on black tiles where it gets any.
    fn resized(&self, picture: &RgbImage) -> std::result::Result<RgbImage, ImageError> {
        let Sizing::Tiles { side, most } = self.sizing else {
            return Ok(resize(picture, self.size(picture)?, self.filter));
        };
        let Fitted { canvas: (width, height), picture: size } =
            fit(picture.dimensions(), side, most);
        let mut canvas = RgbImage::new(width, height);
        imageops::replace(&mut canvas, &resize(picture, size, self.filter), 0, 0);
        Ok(canvas)
    }

    /// The pixels of `picture`.
    ///
    /// # Errors
    /// As [`Self::size`].
    pub fn pixels(&self, picture: &RgbImage) -> std::result::Result<Pixels, ImageError> {
        let resized = self.resized(picture)?;
        let (width, height) = resized.dimensions();
        let plane = |channel: usize| {
            let value = move |byte: u8| {
                (f32::from(byte) * self.rescale - self.mean[channel]) / self.deviation[channel]
            };
            resized.pixels().map(move |pixel| value(pixel.0[channel]))
        };
        let values = (0..3).flat_map(plane).collect();
        Ok(Pixels { width: width as usize, height: height as usize, values })
    }
}

impl Config {
    fn square(&self, side: usize) -> std::result::Result<Sizing, ImageError> {
        let stated = self.size.as_ref().filter(|_| self.do_resize.unwrap_or(true));
        let found = stated.map(|size| (size.height.unwrap_or(0), size.width.unwrap_or(0)));
        match u32::try_from(side) {
            Ok(wanted) if found == Some((side, side)) => Ok(Sizing::Square { side: wanted }),
            _ => {
                let what =
                    format!("images are resized to {found:?}, but the encoder takes {side}²");
                Err(ImageError::Preprocessor { what })
            }
        }
    }

    fn tiles(&self, side: usize, most: usize) -> std::result::Result<Sizing, ImageError> {
        let stated = self.max_image_tiles.unwrap_or(4);
        if stated != most {
            let what = format!("max_image_tiles is {stated}, but the encoder has {most}");
            return Err(ImageError::Preprocessor { what });
        }
        if self.do_pad == Some(false) {
            let what = "do_pad false is not supported by this encoder".to_owned();
            return Err(ImageError::Preprocessor { what });
        }
        match self.square(side)? {
            Sizing::Square { side } => Ok(Sizing::Tiles { side, most }),
            other => Ok(other),
        }
    }

    /// The pixels are bounded by `min_pixels` and `max_pixels` or, in newer files, by two edges of
    /// `size`, which mean the same.
    fn bounded(&self, unit: usize) -> std::result::Result<Sizing, ImageError> {
        let wrong = |what: String| Err(ImageError::Preprocessor { what });
        if self.do_resize == Some(false) {
            return wrong("do_resize false is not supported by this encoder".to_owned());
        }
        let stated = self.patch_size.unwrap_or(14).saturating_mul(self.merge_size.unwrap_or(2));
        if stated != unit {
            return wrong(format!(
                "patch_size · merge_size is {stated}, but the encoder makes a row of {unit}² pixels"
            ));
        }
        let size = self.size.as_ref();
        let least = self.min_pixels.or(size.and_then(|size| size.shortest_edge));
        let most = self.max_pixels.or(size.and_then(|size| size.longest_edge));
        let (min_pixels, max_pixels) = (least.unwrap_or(56 * 56), most.unwrap_or(28 * 28 * 1280));
        let square = (unit as u64).saturating_mul(unit as u64);
        match u32::try_from(unit) {
            Ok(unit) if square <= max_pixels && min_pixels <= max_pixels => {
                Ok(Sizing::Bounded { unit, min_pixels, max_pixels })
            }
            _ => {
                wrong(format!("images of {min_pixels} to {max_pixels} pixels in units of {unit}²"))
            }
        }
    }
}

/// The size in whole squares of `unit` pixels that is nearest to a picture's own or, where that has
/// too few or too many pixels, of its shape within the bounds (Qwen's `smart_resize`).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "pixels of a picture that was decoded, within bounds"
)]
fn bounded(
    (width, height): (u32, u32),
    unit: u32,
    pixels: std::ops::RangeInclusive<u64>,
) -> std::result::Result<(u32, u32), ImageError> {
    let [short, long] = [width.min(height), width.max(height)].map(u64::from);
    if short * MOST_STRETCHED < long {
        let picture = format!("{width} × {height} pixels");
        return Err(ImageError::Stretched { picture, most: MOST_STRETCHED });
    }
    let units = |side: u32, factor: f64, round: fn(f64) -> f64| {
        (round(f64::from(side) * factor / f64::from(unit)) as u32).saturating_mul(unit)
    };
    let nearest = [width, height].map(|side| units(side, 1.0, f64::round_ties_even));
    let (found, own) =
        (u64::from(nearest[0]) * u64::from(nearest[1]), f64::from(width) * f64::from(height));
    let [width, height] = if found > *pixels.end() {
        let factor = (own / *pixels.end() as f64).sqrt().recip();
        [width, height].map(|side| units(side, factor, f64::floor).max(unit))
    } else if found < *pixels.start() {
        let factor = (*pixels.start() as f64 / own).sqrt();
        [width, height].map(|side| units(side, factor, f64::ceil))
    } else {
        nearest
    };
    Ok((width, height))
}

/// Squares of pixels as an encoder's first matrix takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    /// Pixels along a side.
    pub size: usize,
    /// Frames of a film; an image is the same in all.
    pub frames: usize,
    /// Whether a pixel's channels lie together, rather than planes.
    pub channels_last: bool,
}

impl PatchShape {
    /// Values of a patch.
    #[must_use]
    pub fn values(&self) -> usize {
        3 * self.frames * self.size * self.size
    }

    /// Channel, row and column of value `i` of a patch: they lie as `[3, frames, size, size]` or, with
    /// channels last, `[frames, size, size, 3]`.
    fn place(&self, i: usize) -> (usize, usize, usize) {
        let square = self.size * self.size;
        let (channel, at) = match self.channels_last {
            true => (i % 3, i / 3 % square),
            false => (i / (self.frames * square), i % square),
        };
        (channel, at / self.size, at % self.size)
    }
}

impl Pixels {
    /// The patches at `places`, rows and columns of patches, one after the other.
    pub(crate) fn patches(
        &self,
        shape: PatchShape,
        places: impl Iterator<Item = (usize, usize)>,
    ) -> Vec<f32> {
        let values = |(row, column): (usize, usize)| {
            (0..shape.values()).map(move |i| {
                let (channel, y, x) = shape.place(i);
                let (y, x) = (row * shape.size + y, column * shape.size + x);
                self.values[(channel * self.height + y) * self.width + x]
            })
        };
        places.flat_map(values).collect()
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use serde_json::json;

    use super::*;

    fn config(value: serde_json::Value) -> Config {
        serde_json::from_value(value).unwrap()
    }

    const TWO: ImageInput = ImageInput::Square { side: 2, tokens: 1 };

    #[test]
    fn pixels_are_scaled_and_normalised_by_channel() {
        let config = config(json!({"size": {"height": 2, "width": 2}, "resample": 2,
            "rescale_factor": 0.01, "image_mean": [0.5, 0.0, 1.0], "image_std": [0.5, 1.0, 2.0]}));
        let preprocessor = Preprocessor::new(&config, TWO).unwrap();
        let picture = RgbImage::from_pixel(2, 2, Rgb([100, 200, 0]));
        let pixels = preprocessor.pixels(&picture).unwrap();
        let expected = [[1.0; 4], [2.0; 4], [-0.5; 4]].concat();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(pixels.values.iter().zip(&expected).all(close), "{pixels:?}");
        let wide = RgbImage::from_pixel(9, 4, Rgb([100, 200, 0]));
        assert_eq!(preprocessor.pixels(&wide).unwrap(), pixels);
    }

    #[test]
    fn a_picture_lies_on_black_tiles() {
        let config = config(json!({"size": {"height": 4, "width": 4}, "do_normalize": false,
            "rescale_factor": 0.01}));
        let tiles = ImageInput::Tiles { side: 4, most: 2, rows: 2 };
        let config = Config { max_image_tiles: Some(2), ..config };
        let preprocessor = Preprocessor::new(&config, tiles).unwrap();
        let picture = RgbImage::from_pixel(6, 3, Rgb([100, 200, 0]));
        let pixels = preprocessor.pixels(&picture).unwrap();
        assert_eq!((pixels.width, pixels.height), (8, 4));
        let black = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
        let planes: Vec<usize> = pixels.values.chunks(32).map(black).collect();
        // 6 × 3 of 8 × 4 pixels show it; it has no blue.
        assert_eq!(planes, [14, 14, 32]);
        let picture = RgbImage::from_pixel(8, 1, Rgb([100, 200, 0]));
        assert_eq!(black(&preprocessor.pixels(&picture).unwrap().values[..32]), 24);
    }

    #[test]
    fn patches_are_squares_in_either_order() {
        let values: Vec<f32> = (0..3 * 24).map(|i| i as f32).collect();
        let pixels = Pixels { width: 4, height: 6, values };
        let shape = |frames, channels_last| PatchShape { size: 2, frames, channels_last };
        let first = pixels.patches(shape(1, false), [(0, 0), (2, 1)].into_iter());
        assert_eq!(first[..12], [0., 1., 4., 5., 24., 25., 28., 29., 48., 49., 52., 53.]);
        assert_eq!((first.len(), first[12]), (24, 18.0));
        let last = pixels.patches(shape(1, true), [(0, 0)].into_iter());
        assert_eq!(last[..6], [0., 24., 48., 1., 25., 49.]);
        // Two frames: each channel, or each pixel of all, twice.
        let film = pixels.patches(shape(2, false), [(0, 0)].into_iter());
        assert_eq!(film[..10], [0., 1., 4., 5., 0., 1., 4., 5., 24., 25.]);
        let film = pixels.patches(shape(2, true), [(0, 0)].into_iter());
        assert_eq!(film, [&last[..], &last[..]].concat());
    }

    #[test]
    fn sizes_are_whole_squares_within_bounds() {
        let size = |width, height| bounded((width, height), 28, 3136..=1_003_520).unwrap();
        assert_eq!(size(100, 60), (112, 56));
        assert_eq!(size(42, 70), (56, 56), "ties go to the even number of squares");
        assert_eq!(size(9, 30), (56, 112), "too small");
        assert_eq!(size(4000, 3000), (1148, 840), "too large");
        assert_eq!(size(1, 200), (28, 812));
        let error = bounded((10, 2001), 28, 3136..=1_003_520).unwrap_err().to_string();
        assert!(error.contains("10 × 2001 pixels") && error.contains("200 times"), "{error}");
        let most = bounded((7000, 7000), 28, 0..=784).unwrap();
        assert_eq!(most, (28, 28));
    }

    #[test]
    fn preparations_that_are_not_known_are_refused() {
        let refused = |value: serde_json::Value, input| {
            Preprocessor::new(&config(value), input).unwrap_err().to_string()
        };
        let square = |value| refused(value, ImageInput::Square { side: 8, tokens: 1 });
        let size = json!({"height": 8, "width": 8});
        assert!(square(json!({"size": size, "do_pan_and_scan": true})).contains("do_pan_and_scan"));
        assert!(square(json!({"size": size, "resample": 9})).contains("resample 9"));
        assert!(square(json!({"size": size, "image_std": [1.0, 0.0, 1.0]})).contains("image_std"));
        assert!(square(json!({"size": {"height": 8, "width": 9}})).contains("takes 8²"));
        assert!(square(json!({"size": size, "do_resize": false})).contains("takes 8²"));
        let tiles = |value| refused(value, ImageInput::Tiles { side: 8, most: 4, rows: 4 });
        assert!(tiles(json!({"size": size, "max_image_tiles": 2})).contains("the encoder has 4"));
        assert!(tiles(json!({"size": size, "do_pad": false})).contains("do_pad false"));
        assert!(tiles(json!({"max_image_tiles": 4})).contains("takes 8²"));
        let grid = |value| refused(value, ImageInput::Grid { unit: 28 });
        assert!(grid(json!({"do_resize": false})).contains("do_resize false"));
        assert!(grid(json!({"patch_size": 16})).contains("is 32, but the encoder"));
        assert!(grid(json!({"max_pixels": 100})).contains("3136 to 100 pixels"));
        assert!(grid(json!({"min_pixels": 9, "max_pixels": 8})).contains("9 to 8 pixels"));
    }
}
