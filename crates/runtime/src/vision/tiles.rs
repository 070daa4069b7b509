//! Tiling of images (Llama 3.2 Vision): choice of the tile arrangement, and size of the image on it.

use image::RgbImage;

/// Largest number of tiles per image in any model.
pub(crate) const MAX_TILES: usize = 64;

/// Arrangements, as rows and columns, of up to `max_tiles` tiles. The encoder numbers them from 1 in
/// this order.
pub(crate) fn arrangements(max_tiles: usize) -> Vec<[usize; 2]> {
    (1..=max_tiles)
        .flat_map(|rows| (1..=max_tiles / rows).map(move |columns| [rows, columns]))
        .collect()
}

/// Size of an image in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageSize {
    pub(super) width: u32,
    pub(super) height: u32,
}

impl ImageSize {
    pub(super) fn of(image: &RgbImage) -> Self {
        Self { width: image.width(), height: image.height() }
    }

    /// Number of pixels.
    pub(super) fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Factor by which this size must be scaled to fit into `outer`, touching at least one side.
    fn scale_to_fit(self, outer: Self) -> f64 {
        let horizontal = f64::from(outer.width) / f64::from(self.width);
        let vertical = f64::from(outer.height) / f64::from(self.height);
        horizontal.min(vertical)
    }
}

/// An image on a canvas of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TiledImage {
    /// Size of all tiles together.
    pub(super) canvas: ImageSize,
    /// Size of the resized image, in the upper left corner of the canvas.
    pub(super) image: ImageSize,
}

impl TiledImage {
    /// Places `image` on up to `max_tiles` tiles of `side` pixels: on the arrangement that enlarges it
    /// least or, if all shrink it, shrinks it least; among equals on the one with the fewest tiles.
    /// The image becomes as large as the canvas allows, but is not enlarged beyond one tile.
    pub(super) fn fit(image: ImageSize, side: u32, max_tiles: usize) -> Self {
        let canvas = best_canvas(image, side, max_tiles);
        let target = ImageSize {
            width: image.width.clamp(side, canvas.width),
            height: image.height.clamp(side, canvas.height),
        };
        let horizontal = f64::from(target.width) / f64::from(image.width);
        let vertical = f64::from(target.height) / f64::from(image.height);
        let image = match horizontal < vertical {
            true => ImageSize {
                width: target.width,
                height: scale_side(image.height, horizontal).min(target.height),
            },
            false => ImageSize {
                width: scale_side(image.width, vertical).min(target.width),
                height: target.height,
            },
        };
        Self { canvas, image }
    }
}

fn best_canvas(image: ImageSize, side: u32, max_tiles: usize) -> ImageSize {
    let canvases: Vec<ImageSize> = arrangements(max_tiles)
        .into_iter()
        .map(|[rows, columns]| ImageSize {
            width: tile_pixels(columns, side),
            height: tile_pixels(rows, side),
        })
        .collect();
    let scales: Vec<f64> = canvases.iter().map(|canvas| image.scale_to_fit(*canvas)).collect();
    let enlarging = scales.iter().copied().filter(|scale| *scale >= 1.0);
    let smallest_enlarging = enlarging.fold(f64::INFINITY, f64::min);
    let best = match smallest_enlarging.is_finite() {
        true => smallest_enlarging,
        false => scales.iter().copied().fold(0.0, f64::max),
    };
    let equal = canvases.iter().zip(&scales).filter(|(_, scale)| scale.total_cmp(&best).is_eq());
    let fewest_tiles = equal.map(|(canvas, _)| *canvas).min_by_key(|canvas| canvas.pixels());
    fewest_tiles.unwrap_or(ImageSize { width: side, height: side })
}

/// Pixels of `tiles` tiles in a row or column.
fn tile_pixels(tiles: usize, side: u32) -> u32 {
    side.saturating_mul(u32::try_from(tiles).unwrap_or(u32::MAX))
}

/// Scales a side, to at least one pixel.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pixels of a decoded image, on a few tiles"
)]
fn scale_side(side: u32, factor: f64) -> u32 {
    ((f64::from(side) * factor).floor() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrangements_are_in_numbered_order() {
        let four = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]];
        assert_eq!(arrangements(4), four);
        assert_eq!(arrangements(1), [[1, 1]]);
    }

    /// Expected values from transformers (`get_optimal_tiled_canvas`, `get_image_size_fit_to_canvas`).
    #[test]
    fn canvases_agree_with_transformers() {
        for case in CASES {
            let [image, canvas, resized] = case.map(|(width, height)| ImageSize { width, height });
            let expected = TiledImage { canvas, image: resized };
            assert_eq!(TiledImage::fit(image, 560, 4), expected, "{image:?}");
        }
    }

    /// Width and height of the image, its canvas and the resized image.
    const CASES: [[(u32, u32); 3]; 9] = [
        [(560, 560), (560, 560), (560, 560)],
        [(1, 1), (560, 560), (560, 560)],
        [(300, 200), (560, 560), (560, 373)],
        [(561, 560), (1120, 560), (561, 560)],
        [(1120, 1120), (1120, 1120), (1120, 1120)],
        [(4000, 3000), (1120, 1120), (1120, 840)],
        [(3000, 200), (2240, 560), (2240, 149)],
        [(100, 1000), (560, 1120), (100, 1000)],
        [(3, 2000), (560, 2240), (3, 2000)],
    ];
}
