//! From a picture to an encoder's input, as `preprocessor_config.json` says: resized, scaled and
//! normalised.

use image::RgbImage;
use image::imageops::{FilterType, resize};
use serde::Deserialize;

use super::ImageError;
use crate::Result;
use crate::text::TextFiles;

const FILE: &str = "preprocessor_config.json";

/// The part of the file that concerns pixels.
#[derive(Debug, Deserialize)]
struct Config {
    do_resize: Option<bool>,
    size: Option<Size>,
    resample: Option<u32>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f32>,
    do_normalize: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    do_pan_and_scan: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Size {
    height: u32,
    width: u32,
}

/// Pictures to pixels of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessor {
    side: u32,
    filter: FilterType,
    rescale: f32,
    mean: [f32; 3],
    deviation: [f32; 3],
}

/// What an encoder takes: three planes of `side` × `side` values, red first.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Pixels of a row and of a column.
    pub side: usize,
    /// `[3, side, side]`.
    pub values: Vec<f32>,
}

impl Preprocessor {
    /// Reads the file for an encoder of `side` × `side` pixels.
    ///
    /// # Errors
    /// A missing file, and preparations that are not supported or do not lead to that size.
    pub fn load(files: &TextFiles<'_>, side: usize) -> Result<Self> {
        let missing = || ImageError::NoPreprocessor { file: files.label(FILE) };
        let config: Config = files.json(FILE)?.ok_or_else(missing)?;
        Ok(Self::new(&config, side)?)
    }

    fn new(config: &Config, side: usize) -> std::result::Result<Self, ImageError> {
        let wrong = |what: String| Err(ImageError::Preprocessor { what });
        if config.do_pan_and_scan == Some(true) {
            return wrong("do_pan_and_scan is not supported".to_owned());
        }
        let stated = config.size.as_ref().filter(|_| config.do_resize.unwrap_or(true));
        let found = stated.map(|size| (size.height as usize, size.width as usize));
        if found != Some((side, side)) {
            return wrong(format!(
                "images are resized to {found:?}, but the encoder takes {side}²"
            ));
        }
        // Pillow's numbers.
        let filter = match config.resample.unwrap_or(2) {
            0 => FilterType::Nearest,
            1 => FilterType::Lanczos3,
            2 => FilterType::Triangle,
            3 => FilterType::CatmullRom,
            other => {
                return wrong(format!("resample {other} is not supported (supported: 0 to 3)"));
            }
        };
        let rescale = match config.do_rescale {
            Some(false) => 1.0,
            _ => config.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        let normal = config.do_normalize.unwrap_or(true);
        let mean = config.image_mean.filter(|_| normal).unwrap_or([0.0; 3]);
        let deviation = config.image_std.filter(|_| normal).unwrap_or([1.0; 3]);
        if deviation.iter().any(|it| !(*it > 0.0 && it.is_finite())) {
            return wrong(format!("image_std is {deviation:?}"));
        }
        let side = u32::try_from(side).unwrap_or(u32::MAX);
        Ok(Self { side, filter, rescale, mean, deviation })
    }

    /// The pixels of `picture`.
    #[must_use]
    pub fn pixels(&self, picture: &RgbImage) -> Pixels {
        let resized;
        let picture = if picture.dimensions() == (self.side, self.side) {
            picture
        } else {
            resized = resize(picture, self.side, self.side, self.filter);
            &resized
        };
        let plane = |channel: usize| {
            let value = move |byte: u8| {
                (f32::from(byte) * self.rescale - self.mean[channel]) / self.deviation[channel]
            };
            picture.pixels().map(move |pixel| value(pixel.0[channel]))
        };
        Pixels { side: self.side as usize, values: (0..3).flat_map(plane).collect() }
    }
}

impl Pixels {
    /// The squares of `patch` × `patch` pixels, row by row, each as `[3, patch, patch]` or, with
    /// channels last, `[patch, patch, 3]`. Pixels beyond the last whole square are left out.
    pub(crate) fn patches(&self, patch: usize, channels_last: bool) -> Vec<f32> {
        let count = self.side / patch;
        let mut values = Vec::with_capacity(count * count * patch * patch * 3);
        for square in 0..count * count {
            let (top, left) = (square / count * patch, square % count * patch);
            for i in 0..patch * patch * 3 {
                let (channel, at) = match channels_last {
                    true => (i % 3, i / 3),
                    false => (i / (patch * patch), i % (patch * patch)),
                };
                let (row, column) = (top + at / patch, left + at % patch);
                values.push(self.values[(channel * self.side + row) * self.side + column]);
            }
        }
        values
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

    #[test]
    fn pixels_are_scaled_and_normalised_by_channel() {
        let config = config(json!({"size": {"height": 2, "width": 2}, "resample": 2,
            "rescale_factor": 0.01, "image_mean": [0.5, 0.0, 1.0], "image_std": [0.5, 1.0, 2.0]}));
        let preprocessor = Preprocessor::new(&config, 2).unwrap();
        let picture = RgbImage::from_pixel(2, 2, Rgb([100, 200, 0]));
        let pixels = preprocessor.pixels(&picture);
        let expected = [[1.0; 4], [2.0; 4], [-0.5; 4]].concat();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(pixels.values.iter().zip(&expected).all(close), "{pixels:?}");
        assert_eq!(preprocessor.pixels(&RgbImage::from_pixel(9, 4, Rgb([100, 200, 0]))), pixels);
    }

    #[test]
    fn patches_are_squares_in_either_order() {
        let values: Vec<f32> = (0..3 * 16).map(|i| i as f32).collect();
        let pixels = Pixels { side: 4, values };
        let first = pixels.patches(2, false);
        assert_eq!(first[..12], [0., 1., 4., 5., 16., 17., 20., 21., 32., 33., 36., 37.]);
        let last = pixels.patches(2, true);
        assert_eq!(last[..6], [0., 16., 32., 1., 17., 33.]);
        assert_eq!((first.len(), first[12]), (48, 2.0));
    }

    #[test]
    fn preparations_that_are_not_known_are_refused() {
        let refused = |value: serde_json::Value| {
            Preprocessor::new(&config(value), 8).unwrap_err().to_string()
        };
        let size = json!({"height": 8, "width": 8});
        assert!(
            refused(json!({"size": size, "do_pan_and_scan": true})).contains("do_pan_and_scan")
        );
        assert!(refused(json!({"size": size, "resample": 9})).contains("resample 9"));
        assert!(refused(json!({"size": size, "image_std": [1.0, 0.0, 1.0]})).contains("image_std"));
        assert!(refused(json!({"size": {"height": 8, "width": 9}})).contains("takes 8²"));
        assert!(refused(json!({"size": size, "do_resize": false})).contains("takes 8²"));
    }
}
