//! How a picture is spread over square tiles (Llama 3.2 Vision): which arrangement of them it gets,
//! and its size on that.

/// Most tiles of a picture that any model has.
pub(crate) const MAX_TILES: usize = 64;

/// Rows and columns of up to `most` tiles; the encoder numbers these arrangements from 1 on.
pub(crate) fn arrangements(most: usize) -> Vec<[usize; 2]> {
    let rows = |rows: usize| (1..=most / rows).map(move |columns| [rows, columns]);
    (1..=most).flat_map(rows).collect()
}

/// Where a picture of `width` × `height` pixels goes, on tiles of `side` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fitted {
    /// Width and height of all tiles together.
    pub(super) canvas: (u32, u32),
    /// Those of the picture in its upper left corner.
    pub(super) picture: (u32, u32),
}

/// Spreads a picture over up to `most` tiles: on the arrangement that enlarges it least, or, where all
/// shrink it, shrinks it least; of several on the one with the fewest tiles. On it the picture is as
/// large as fits, but not enlarged beyond a tile's side.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pixels of a picture that was decoded, on a few tiles"
)]
pub(super) fn fit((width, height): (u32, u32), side: u32, most: usize) -> Fitted {
    let pixels = |tiles: usize| side.saturating_mul(u32::try_from(tiles).unwrap_or(u32::MAX));
    let scale = |[rows, columns]: [usize; 2]| {
        let [high, wide] = [(rows, height), (columns, width)]
            .map(|(tiles, own)| f64::from(pixels(tiles)) / f64::from(own));
        if wide > high { high } else { wide }
    };
    let all = arrangements(most);
    let scales = || all.iter().map(|arrangement| scale(*arrangement));
    let least = scales().filter(|scale| *scale >= 1.0).fold(f64::INFINITY, f64::min);
    let best = if least.is_finite() { least } else { scales().fold(0.0, f64::max) };
    let fitting = all.iter().filter(|arrangement| scale(**arrangement).total_cmp(&best).is_eq());
    let [rows, columns] = fitting.min_by_key(|[rows, columns]| rows * columns).unwrap_or(&[1, 1]);
    let canvas = (pixels(*columns), pixels(*rows));
    let target = (width.clamp(side, canvas.0), height.clamp(side, canvas.1));
    let wide = f64::from(target.0) / f64::from(width);
    let high = f64::from(target.1) / f64::from(height);
    // No side vanishes.
    let scaled = |own: u32, by: f64| ((f64::from(own) * by).floor() as u32).max(1);
    let picture = match wide < high {
        true => (target.0, scaled(height, wide).min(target.1)),
        false => (scaled(width, high).min(target.0), target.1),
    };
    Fitted { canvas, picture }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrangements_are_in_the_order_of_their_numbers() {
        let four = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]];
        assert_eq!(arrangements(4), four);
        assert_eq!(arrangements(1), [[1, 1]]);
    }

    /// The figures are transformers' (`get_optimal_tiled_canvas`, `get_image_size_fit_to_canvas`).
    #[test]
    fn pictures_get_the_canvas_that_transformers_gives_them() {
        for (picture, canvas, size) in CASES {
            assert_eq!(fit(picture, 560, 4), Fitted { canvas, picture: size }, "{picture:?}");
        }
    }

    type Size = (u32, u32);

    const CASES: [(Size, Size, Size); 9] = [
        ((560, 560), (560, 560), (560, 560)),
        ((1, 1), (560, 560), (560, 560)),
        ((300, 200), (560, 560), (560, 373)),
        ((561, 560), (1120, 560), (561, 560)),
        ((1120, 1120), (1120, 1120), (1120, 1120)),
        ((4000, 3000), (1120, 1120), (1120, 840)),
        ((3000, 200), (2240, 560), (2240, 149)),
        ((100, 1000), (560, 1120), (100, 1000)),
        ((3, 2000), (560, 2240), (3, 2000)),
    ];
}
