//! Image preprocessing according to `preprocessor_config.json`: resizing, rescaling, normalisation.

use image::{RgbImage, imageops};
use serde::Deserialize;

use super::resample::{ResampleFilter, resize};
use super::tiles::{ImageSize, TiledImage};
use super::{ImageError, ImageInput};
use crate::Result;
use crate::text::TextFiles;

const FILE: &str = "preprocessor_config.json";

/// Largest accepted ratio of an image's longer to its shorter side.
const MAX_ASPECT_RATIO: u64 = 200;

/// Keys of `preprocessor_config.json`.
#[derive(Debug, Deserialize)]
struct ProcessorConfig {
    do_resize: Option<bool>,
    size: Option<SizeConfig>,
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
struct SizeConfig {
    height: Option<usize>,
    width: Option<usize>,
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
}

/// Defaults of a processor class in transformers.
struct ProcessorDefaults {
    resample: u32,
    mean: [f32; 3],
    std: [f32; 3],
}

const GEMMA3: ProcessorDefaults = ProcessorDefaults { resample: 2, mean: [0.0; 3], std: [1.0; 3] };

const MLLAMA: ProcessorDefaults = ProcessorDefaults { resample: 2, mean: [0.5; 3], std: [0.5; 3] };

const QWEN2_VL: ProcessorDefaults = ProcessorDefaults {
    resample: 3,
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// Target size of a resized image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ResizeRule {
    /// A fixed square.
    Square { side: u32 },
    /// The nearest multiples of `unit` pixels, within bounds on the number of pixels.
    Bounded(PixelBounds),
    /// The largest size that fits on up to `max_tiles` tiles, padded with black.
    Tiles { side: u32, max_tiles: usize },
}

/// Bounds on the size of an image that keeps its aspect ratio.
#[derive(Clone, Copy, Debug, PartialEq)]
struct PixelBounds {
    /// Divisor of width and height.
    unit: u32,
    min_pixels: u64,
    max_pixels: u64,
}

/// Converts images to an encoder's input.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    resize: ResizeRule,
    filter: ResampleFilter,
    rescale: f32,
    mean: [f32; 3],
    std: [f32; 3],
}

/// Input of an encoder: the planes red, green and blue.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Pixels per row.
    pub width: usize,
    /// Pixels per column.
    pub height: usize,
    /// Normalised values, `[3, height, width]`.
    pub values: Vec<f32>,
}

impl ImageProcessor {
    /// Loads `preprocessor_config.json` for an encoder that takes `input`.
    ///
    /// # Errors
    /// A missing file, and settings that are not supported or contradict `input`.
    pub fn load(files: &TextFiles<'_>, input: ImageInput) -> Result<Self> {
        let config: ProcessorConfig = files
            .json(FILE)?
            .ok_or_else(|| ImageError::NoPreprocessorConfig { file: files.label(FILE) })?;
        Ok(Self::new(&config, input)?)
    }

    fn new(config: &ProcessorConfig, input: ImageInput) -> std::result::Result<Self, ImageError> {
        if config.do_pan_and_scan == Some(true) {
            return Err(ImageError::unsupported("do_pan_and_scan", true, "false"));
        }
        let (resize, defaults) = match input {
            ImageInput::Square { side, .. } => {
                (ResizeRule::Square { side: config.square_side(side)? }, GEMMA3)
            }
            ImageInput::Grid { unit } => (config.bounded(unit)?, QWEN2_VL),
            ImageInput::Tiles { side, max_tiles, .. } => (config.tiles(side, max_tiles)?, MLLAMA),
        };
        let number = config.resample.unwrap_or(defaults.resample);
        let filter = ResampleFilter::from_pillow(number)
            .ok_or_else(|| ImageError::unsupported("resample", number, "0 to 3"))?;
        let rescale = match config.do_rescale {
            Some(false) => 1.0,
            _ => config.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        let mut mean = [0.0; 3];
        let mut std = [1.0; 3];
        if config.do_normalize != Some(false) {
            mean = config.image_mean.unwrap_or(defaults.mean);
            std = config.image_std.unwrap_or(defaults.std);
        }
        if std.iter().any(|deviation| !(*deviation > 0.0 && deviation.is_finite())) {
            let expected = "positive numbers".to_owned();
            return Err(ImageError::invalid("image_std", format!("{std:?}"), expected));
        }
        Ok(Self { resize, filter, rescale, mean, std })
    }

    /// Size of `image` after preprocessing, padding included.
    ///
    /// # Errors
    /// An aspect ratio above 200, for an encoder that keeps the aspect ratio.
    pub(super) fn size(&self, image: &RgbImage) -> std::result::Result<ImageSize, ImageError> {
        match self.resize {
            ResizeRule::Square { side } => Ok(ImageSize { width: side, height: side }),
            ResizeRule::Bounded(bounds) => bounds.apply(ImageSize::of(image)),
            ResizeRule::Tiles { side, max_tiles } => {
                Ok(TiledImage::fit(ImageSize::of(image), side, max_tiles).canvas)
            }
        }
    }

    /// Resizes `image`, and pads it with black to whole tiles.
    fn resized(&self, image: &RgbImage) -> std::result::Result<RgbImage, ImageError> {
        let ResizeRule::Tiles { side, max_tiles } = self.resize else {
            return Ok(resize(image, self.size(image)?, self.filter));
        };
        let tiled = TiledImage::fit(ImageSize::of(image), side, max_tiles);
        let mut canvas = RgbImage::new(tiled.canvas.width, tiled.canvas.height);
        imageops::replace(&mut canvas, &resize(image, tiled.image, self.filter), 0, 0);
        Ok(canvas)
    }

    /// Preprocesses `image`.
    ///
    /// # Errors
    /// The errors of [`Self::size`].
    pub fn pixels(&self, image: &RgbImage) -> std::result::Result<Pixels, ImageError> {
        let resized = self.resized(image)?;
        let mut values = Vec::with_capacity(resized.as_raw().len());
        for channel in 0..3 {
            let mean = self.mean[channel];
            let std = self.std[channel];
            values.extend(
                resized
                    .pixels()
                    .map(|pixel| (f32::from(pixel.0[channel]) * self.rescale - mean) / std),
            );
        }
        let width = resized.width() as usize;
        Ok(Pixels { width, height: resized.height() as usize, values })
    }
}

impl ProcessorConfig {
    /// Checks that images are resized to squares of `side` pixels.
    fn square_side(&self, side: usize) -> std::result::Result<u32, ImageError> {
        if self.do_resize == Some(false) {
            return Err(ImageError::unsupported("do_resize", false, "true"));
        }
        let size = self.size.as_ref();
        let found = size.map(|size| [size.height.unwrap_or(0), size.width.unwrap_or(0)]);
        match u32::try_from(side) {
            Ok(pixels) if found == Some([side; 2]) => Ok(pixels),
            _ => {
                let found = found
                    .map_or("missing".to_owned(), |[height, width]| format!("{width} × {height}"));
                let expected = format!("the encoder's {side} × {side}");
                Err(ImageError::invalid("size", found, expected))
            }
        }
    }

    fn tiles(&self, side: usize, max_tiles: usize) -> std::result::Result<ResizeRule, ImageError> {
        let found = self.max_image_tiles.unwrap_or(4);
        if found != max_tiles {
            let expected = format!("the encoder's {max_tiles}");
            return Err(ImageError::invalid("max_image_tiles", found, expected));
        }
        if self.do_pad == Some(false) {
            return Err(ImageError::unsupported("do_pad", false, "true"));
        }
        Ok(ResizeRule::Tiles { side: self.square_side(side)?, max_tiles })
    }

    /// Reads the bounds `min_pixels` and `max_pixels`, which newer files call `shortest_edge` and
    /// `longest_edge` of `size`.
    fn bounded(&self, unit: usize) -> std::result::Result<ResizeRule, ImageError> {
        if self.do_resize == Some(false) {
            return Err(ImageError::unsupported("do_resize", false, "true"));
        }
        let found = self.patch_size.unwrap_or(14).saturating_mul(self.merge_size.unwrap_or(2));
        if found != unit {
            let expected = format!("the encoder's {unit}");
            return Err(ImageError::invalid("patch_size · merge_size", found, expected));
        }
        let size = self.size.as_ref();
        let min_pixels = self.min_pixels.or(size.and_then(|size| size.shortest_edge));
        let min_pixels = min_pixels.unwrap_or(56 * 56);
        let max_pixels = self.max_pixels.or(size.and_then(|size| size.longest_edge));
        let max_pixels = max_pixels.unwrap_or(28 * 28 * 1280);
        let unit_pixels = (unit as u64).saturating_mul(unit as u64);
        match u32::try_from(unit) {
            Ok(unit) if max_pixels >= unit_pixels.max(min_pixels) => {
                Ok(ResizeRule::Bounded(PixelBounds { unit, min_pixels, max_pixels }))
            }
            _ => {
                let expected = format!("at least {}", unit_pixels.max(min_pixels));
                Err(ImageError::invalid("max_pixels", max_pixels, expected))
            }
        }
    }
}

impl PixelBounds {
    /// Rounds `image` to multiples of the unit, after scaling it into the bounds if it has too few or
    /// too many pixels (`smart_resize` of Qwen).
    #[expect(clippy::cast_precision_loss, reason = "pixels of a decoded image, within bounds")]
    fn apply(self, image: ImageSize) -> std::result::Result<ImageSize, ImageError> {
        let ImageSize { width, height } = image;
        let shorter = u64::from(width.min(height));
        let longer = u64::from(width.max(height));
        if shorter * MAX_ASPECT_RATIO < longer {
            return Err(ImageError::AspectRatio { width, height, max_ratio: MAX_ASPECT_RATIO });
        }
        let nearest = ImageSize {
            width: self.round(f64::from(width), f64::round_ties_even),
            height: self.round(f64::from(height), f64::round_ties_even),
        };
        let pixels = f64::from(width) * f64::from(height);
        if nearest.pixels() > self.max_pixels {
            let factor = (pixels / self.max_pixels as f64).sqrt().recip();
            return Ok(ImageSize {
                width: self.round(f64::from(width) * factor, f64::floor).max(self.unit),
                height: self.round(f64::from(height) * factor, f64::floor).max(self.unit),
            });
        }
        if nearest.pixels() < self.min_pixels {
            let factor = (self.min_pixels as f64 / pixels).sqrt();
            return Ok(ImageSize {
                width: self.round(f64::from(width) * factor, f64::ceil),
                height: self.round(f64::from(height) * factor, f64::ceil),
            });
        }
        Ok(nearest)
    }

    /// Rounds a side to a multiple of the unit.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a side of a decoded image, within bounds"
    )]
    fn round(self, side: f64, round: fn(f64) -> f64) -> u32 {
        (round(side / f64::from(self.unit)) as u32).saturating_mul(self.unit)
    }
}

/// Layout of a patch in the input of an encoder's first matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    /// Side length in pixels.
    pub size: usize,
    /// Video frames per patch; an image is repeated for each.
    pub frames: usize,
    /// `true` for `[frames, size, size, 3]`, `false` for `[3, frames, size, size]`.
    pub channels_last: bool,
}

impl PatchShape {
    /// Number of values per patch.
    #[must_use]
    pub fn values(&self) -> usize {
        3 * self.frames * self.size * self.size
    }

    /// Channel, row and column of value `i` of a patch.
    fn coordinates(&self, i: usize) -> [usize; 3] {
        let square = self.size * self.size;
        let (channel, pixel) = match self.channels_last {
            true => (i % 3, i / 3 % square),
            false => (i / (self.frames * square), i % square),
        };
        [channel, pixel / self.size, pixel % self.size]
    }
}

impl Pixels {
    /// Values of the patches at `places`, which are rows and columns of patches, one after the other.
    pub(crate) fn patches(
        &self,
        shape: PatchShape,
        places: impl Iterator<Item = (usize, usize)>,
    ) -> Vec<f32> {
        let mut values = Vec::new();
        for (row, column) in places {
            values.extend((0..shape.values()).map(|i| {
                let [channel, y, x] = shape.coordinates(i);
                let y = row * shape.size + y;
                let x = column * shape.size + x;
                self.values[(channel * self.height + y) * self.width + x]
            }));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use serde_json::json;

    use super::*;

    fn config(value: serde_json::Value) -> ProcessorConfig {
        serde_json::from_value(value).unwrap()
    }

    const TWO: ImageInput = ImageInput::Square { side: 2, tokens: 1 };

    #[test]
    fn pixels_are_scaled_and_normalised_by_channel() {
        let config = config(json!({"size": {"height": 2, "width": 2}, "resample": 2,
            "rescale_factor": 0.01, "image_mean": [0.5, 0.0, 1.0], "image_std": [0.5, 1.0, 2.0]}));
        let processor = ImageProcessor::new(&config, TWO).unwrap();
        let image = RgbImage::from_pixel(2, 2, Rgb([100, 200, 0]));
        let pixels = processor.pixels(&image).unwrap();
        let expected = [[1.0; 4], [2.0; 4], [-0.5; 4]].concat();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(pixels.values.iter().zip(&expected).all(close), "{pixels:?}");
        let wide = RgbImage::from_pixel(9, 4, Rgb([100, 200, 0]));
        assert_eq!(processor.pixels(&wide).unwrap(), pixels);
    }

    #[test]
    fn an_image_is_padded_to_black_tiles() {
        let config = config(json!({"size": {"height": 4, "width": 4}, "do_normalize": false,
            "rescale_factor": 0.01}));
        let tiles = ImageInput::Tiles { side: 4, max_tiles: 2, rows: 2 };
        let config = ProcessorConfig { max_image_tiles: Some(2), ..config };
        let processor = ImageProcessor::new(&config, tiles).unwrap();
        let image = RgbImage::from_pixel(6, 3, Rgb([100, 200, 0]));
        let pixels = processor.pixels(&image).unwrap();
        assert_eq!((pixels.width, pixels.height), (8, 4));
        let black = |values: &[f32]| values.iter().filter(|value| **value == 0.0).count();
        let planes: Vec<usize> = pixels.values.chunks(32).map(black).collect();
        // The image covers 6 × 3 of 8 × 4 pixels and has no blue.
        assert_eq!(planes, [14, 14, 32]);
        let image = RgbImage::from_pixel(8, 1, Rgb([100, 200, 0]));
        assert_eq!(black(&processor.pixels(&image).unwrap().values[..32]), 24);
    }

    #[test]
    fn patches_have_channels_first_or_last() {
        let values: Vec<f32> = (0..3 * 24).map(|i| i as f32).collect();
        let pixels = Pixels { width: 4, height: 6, values };
        let shape = |frames, channels_last| PatchShape { size: 2, frames, channels_last };
        let first = pixels.patches(shape(1, false), [(0, 0), (2, 1)].into_iter());
        assert_eq!(first[..12], [0., 1., 4., 5., 24., 25., 28., 29., 48., 49., 52., 53.]);
        assert_eq!((first.len(), first[12]), (24, 18.0));
        let last = pixels.patches(shape(1, true), [(0, 0)].into_iter());
        assert_eq!(last[..6], [0., 24., 48., 1., 25., 49.]);
        // With two frames, each channel or each pixel occurs twice.
        let frames = pixels.patches(shape(2, false), [(0, 0)].into_iter());
        assert_eq!(frames[..10], [0., 1., 4., 5., 0., 1., 4., 5., 24., 25.]);
        let frames = pixels.patches(shape(2, true), [(0, 0)].into_iter());
        assert_eq!(frames, [&last[..], &last[..]].concat());
    }

    #[test]
    fn bounded_sizes_are_multiples_of_the_unit() {
        let bounds = PixelBounds { unit: 28, min_pixels: 3136, max_pixels: 1_003_520 };
        let size = |width, height| {
            let size = bounds.apply(ImageSize { width, height }).unwrap();
            (size.width, size.height)
        };
        assert_eq!(size(100, 60), (112, 56));
        assert_eq!(size(42, 70), (56, 56), "ties round to the even multiple");
        assert_eq!(size(9, 30), (56, 112), "too small");
        assert_eq!(size(4000, 3000), (1148, 840), "too large");
        assert_eq!(size(1, 200), (28, 812));
        let error = bounds.apply(ImageSize { width: 10, height: 2001 }).unwrap_err().to_string();
        assert!(error.contains("10 × 2001 pixels") && error.contains("above 200"), "{error}");
        let one_unit = PixelBounds { unit: 28, min_pixels: 0, max_pixels: 784 };
        let smallest = one_unit.apply(ImageSize { width: 7000, height: 7000 }).unwrap();
        assert_eq!(smallest, ImageSize { width: 28, height: 28 });
    }

    #[test]
    fn unsupported_settings_are_rejected() {
        let refused = |value: serde_json::Value, input| {
            ImageProcessor::new(&config(value), input).unwrap_err().to_string()
        };
        let square = |value| refused(value, ImageInput::Square { side: 8, tokens: 1 });
        let size = json!({"height": 8, "width": 8});
        assert!(square(json!({"size": size, "do_pan_and_scan": true})).contains("do_pan_and_scan"));
        assert!(square(json!({"size": size, "resample": 9})).contains("resample is 9"));
        assert!(square(json!({"size": size, "image_std": [1.0, 0.0, 1.0]})).contains("image_std"));
        assert!(square(json!({"size": {"height": 8, "width": 9}})).contains("encoder's 8 × 8"));
        assert!(square(json!({"size": size, "do_resize": false})).contains("do_resize is false"));
        let tiles = |value| refused(value, ImageInput::Tiles { side: 8, max_tiles: 4, rows: 4 });
        assert!(tiles(json!({"size": size, "max_image_tiles": 2})).contains("the encoder's 4"));
        assert!(tiles(json!({"size": size, "do_pad": false})).contains("do_pad is false"));
        assert!(tiles(json!({"max_image_tiles": 4})).contains("size is missing"));
        let grid = |value| refused(value, ImageInput::Grid { unit: 28 });
        assert!(grid(json!({"do_resize": false})).contains("do_resize is false"));
        assert!(grid(json!({"patch_size": 16})).contains("is 32, the encoder's 28"));
        assert!(grid(json!({"max_pixels": 100})).contains("max_pixels is 100, at least 3136"));
        assert!(
            grid(json!({"min_pixels": 9, "max_pixels": 8}))
                .contains("max_pixels is 8, at least 784")
        );
    }
}
