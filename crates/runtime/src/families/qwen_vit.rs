//! Qwen 2.5 VL's image encoder: patches of images of any size, layers of attention within windows,
//! some of them among all patches, and a merger that makes one row of a square of patches.
//!
//! Patches are computed in the order of the windows, those of a square adjacent; the rows are put in
//! reading order at the end.

use mlxcel_core::layers::{Linear, Norm};
use mlxcel_core::{Activation, Array, ImageAttention, ImagePositions, Map, Ops, Rope};
use serde::Deserialize;

use super::ImageEncoder;
use super::config::{activation, positive};
use super::mlp::{Mlp, PlainMlp};
use crate::loading::{Bias, Frames, NormKind, NormRule, Patches, Weights};
use crate::vision::{EncodedImage, ImageError, PatchShape, Pixels};
use crate::{ConfigProblem, Error, Result};

/// The norms of the class, which its configuration does not mention.
const NORM: NormRule = NormRule { kind: NormKind::Rms, eps: 1e-6 };

/// The base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// `vision_config`; the defaults are the class's.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct QwenVitConfig {
    depth: usize,
    hidden_size: usize,
    intermediate_size: usize,
    out_hidden_size: usize,
    num_heads: usize,
    #[serde(alias = "in_chans")]
    in_channels: usize,
    patch_size: usize,
    temporal_patch_size: usize,
    spatial_merge_size: usize,
    window_size: usize,
    fullatt_block_indexes: Vec<usize>,
    hidden_act: String,
}

impl Default for QwenVitConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            hidden_size: 3584,
            intermediate_size: 3420,
            out_hidden_size: 3584,
            num_heads: 16,
            in_channels: 3,
            patch_size: 14,
            temporal_patch_size: 2,
            spatial_merge_size: 2,
            window_size: 112,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            hidden_act: "silu".to_owned(),
        }
    }
}

impl QwenVitConfig {
    fn check(&self, hidden: usize) -> Result<()> {
        positive(&[
            ("vision_config.depth", self.depth),
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.patch_size", self.patch_size),
            ("vision_config.temporal_patch_size", self.temporal_patch_size),
            ("vision_config.spatial_merge_size", self.spatial_merge_size),
        ])?;
        if self.in_channels != 3 {
            let key = "vision_config.in_channels";
            return Err(Error::unsupported_value(key, self.in_channels, "3"));
        }
        if self.out_hidden_size != hidden {
            let problem = ConfigProblem::Contradicts {
                found: self.out_hidden_size.to_string(),
                other: "hidden_size",
                stated: hidden.to_string(),
            };
            return Err(Error::invalid_config("vision_config.out_hidden_size", problem));
        }
        if !self.hidden_size.is_multiple_of(4 * self.num_heads) {
            let expected = format!("a multiple of 4 × num_heads ({})", self.num_heads);
            let key = "vision_config.hidden_size";
            return Err(Error::invalid_value(key, self.hidden_size, expected));
        }
        if self.window() == 0 {
            let expected = format!(
                "spatial_merge_size ({}) × patch_size ({}) or more",
                self.spatial_merge_size, self.patch_size
            );
            let key = "vision_config.window_size";
            return Err(Error::invalid_value(key, self.window_size, expected));
        }
        if let Some(layer) = self.fullatt_block_indexes.iter().find(|layer| **layer >= self.depth) {
            let problem = ConfigProblem::NoSuchLayer { layer: *layer, layers: self.depth };
            return Err(Error::invalid_config("vision_config.fullatt_block_indexes", problem));
        }
        Ok(())
    }

    /// Squares along a side of a window.
    fn window(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }
}

/// Attention within segments of patches.
struct QwenVisionAttention {
    qkv: [Linear; 3],
    proj: Linear,
    heads: usize,
}

/// One layer.
struct QwenVisionBlock {
    norm1: Norm,
    attn: QwenVisionAttention,
    norm2: Norm,
    mlp: Mlp,
    /// True if it attends among all patches.
    full: bool,
}

/// The encoder and its merger.
pub(super) struct QwenVisionTower {
    patch_embed: Linear,
    patches: PatchShape,
    rope: Rope,
    blocks: Vec<QwenVisionBlock>,
    ln_q: Norm,
    merger: PlainMlp,
    /// Patches along a side of a square that becomes a row.
    merge: usize,
    /// Squares along a side of a window.
    window: usize,
}

/// Order and places of the patches of a picture.
struct PatchOrder {
    /// Row and column of each patch, in the order of computation.
    places: Vec<(usize, usize)>,
    /// Patches of each window, in that order.
    windows: Vec<usize>,
    /// Index of each square, in reading order, in the order of computation.
    reading: Vec<usize>,
}

impl PatchOrder {
    /// The order of `height` × `width` squares of `merge` × `merge` patches, in windows of `window` × `window`.
    fn new(height: usize, width: usize, merge: usize, window: usize) -> Self {
        let mut squares = Vec::with_capacity(height * width);
        let mut windows = Vec::new();
        for top in (0..height).step_by(window) {
            for left in (0..width).step_by(window) {
                let bottom = (top + window).min(height);
                let right = (left + window).min(width);
                let rows = (top..bottom).flat_map(|row| (left..right).map(move |col| (row, col)));
                let before = squares.len();
                squares.extend(rows);
                windows.push((squares.len() - before) * merge * merge);
            }
        }
        let mut reading = vec![0; squares.len()];
        for (at, (row, col)) in squares.iter().enumerate() {
            reading[row * width + col] = at;
        }
        let mut places = Vec::with_capacity(squares.len() * merge * merge);
        for (row, col) in squares {
            let top = row * merge;
            let left = col * merge;
            places.extend((0..merge * merge).map(|i| (top + i / merge, left + i % merge)));
        }
        Self { places, windows, reading }
    }

    /// Row and column of each patch, for the rotary embedding.
    fn coordinates(&self) -> Vec<i32> {
        let places = self.places.iter().flat_map(|(row, col)| [*row, *col]);
        places.map(|n| i32::try_from(n).unwrap_or(i32::MAX)).collect()
    }
}

impl QwenVisionBlock {
    fn load(w: &Weights, c: &QwenVitConfig, layer: usize, activation: Activation) -> Result<Self> {
        let hidden = c.hidden_size;
        let inner = c.intermediate_size;
        let attn = w.at("attn");
        let mlp = w.at("mlp");
        Ok(Self {
            norm1: w.norm("norm1", hidden, NORM)?,
            attn: QwenVisionAttention {
                qkv: attn.fused_linear("qkv", hidden, [hidden; 3], Bias::Required)?,
                proj: attn.linear("proj", hidden, hidden, Bias::Required)?,
                heads: c.num_heads,
            },
            norm2: w.norm("norm2", hidden, NORM)?,
            mlp: Mlp {
                gate_proj: mlp.linear("gate_proj", hidden, inner, Bias::Required)?,
                up_proj: mlp.linear("up_proj", hidden, inner, Bias::Required)?,
                down_proj: mlp.linear("down_proj", inner, hidden, Bias::Required)?,
                activation,
            },
            full: c.fullatt_block_indexes.contains(&layer),
        })
    }

    /// `coordinates` are row and column of each patch, `windows` the numbers of patches per window.
    fn forward(
        &self,
        ops: &Ops,
        x: &Array,
        rope: &Rope,
        coordinates: &[i32],
        windows: &[usize],
    ) -> Result<Array> {
        let all = [windows.iter().sum()];
        let segments = if self.full { &all } else { windows };
        let QwenVisionAttention { qkv: [q, k, v], proj, heads } = &self.attn;
        let [q, k, v] = ops.linears(&ops.norm(x, &self.norm1)?, [q, k, v])?;
        let q = ops.rope_on_grid(&q, *heads, rope, coordinates)?;
        let k = ops.rope_on_grid(&k, *heads, rope, coordinates)?;
        let attended = ops.encoder_attention([&q, &k, &v], *heads, segments)?;
        let x = ops.add(x, &ops.linear(&attended, proj)?)?;
        let Mlp { gate_proj, up_proj, down_proj, activation } = &self.mlp;
        let inner = ops.glu(&ops.norm(&x, &self.norm2)?, gate_proj, up_proj, *activation)?;
        Ok(ops.add(&x, &ops.linear(&inner, down_proj)?)?)
    }
}

impl QwenVisionTower {
    /// Reads the encoder at `w`, whose rows have `hidden` elements.
    pub(super) fn load(w: &Weights, c: &QwenVitConfig, hidden: usize) -> Result<Self> {
        c.check(hidden)?;
        let video = Frames::Video(c.temporal_patch_size);
        let Patches { weight, shape } =
            w.at("patch_embed").patches("proj", c.hidden_size, c.patch_size, video)?;
        let activation = activation(&c.hidden_act)?;
        let merger = w.at("merger");
        let merged = c.hidden_size * c.spatial_merge_size * c.spatial_merge_size;
        Ok(Self {
            patch_embed: Linear { weight, bias: None },
            patches: shape,
            rope: Rope::grid(c.hidden_size / c.num_heads, THETA)?,
            blocks: w.layers("blocks", c.depth, |w, layer| {
                QwenVisionBlock::load(w, c, layer, activation)
            })?,
            ln_q: merger.norm("ln_q", c.hidden_size, NORM)?,
            merger: PlainMlp {
                input: merger.linear("mlp.0", merged, merged, Bias::Required)?,
                output: merger.linear("mlp.2", merged, hidden, Bias::Required)?,
                activation: Activation::GeluErf,
            },
            merge: c.spatial_merge_size,
            window: c.window(),
        })
    }

    /// Height and width in squares that become rows.
    fn grid(&self, pixels: &Pixels) -> Result<(usize, usize)> {
        let unit = self.patches.size * self.merge;
        let width = pixels.width;
        let height = pixels.height;
        if [width, height].iter().all(|side| *side > 0 && side.is_multiple_of(unit)) {
            return Ok((height / unit, width / unit));
        }
        let expected = format!("multiples of {unit}");
        Err(ImageError::PixelSize { width, height, expected }.into())
    }
}

impl ImageEncoder for QwenVisionTower {
    fn encode(&self, ops: &Ops, pixels: &Pixels) -> Result<EncodedImage> {
        let (height, width) = self.grid(pixels)?;
        let layout = PatchOrder::new(height, width, self.merge, self.window);
        let patches = pixels.patches(self.patches, layout.places.iter().copied());
        let x = ops.activations(&patches, &self.patch_embed.weight)?;
        let mut x = ops.linear(&x, &self.patch_embed)?;
        let coordinates = layout.coordinates();
        for block in &self.blocks {
            x = block.forward(ops, &x, &self.rope, &coordinates, &layout.windows)?;
            ops.eval_layer(&x)?;
        }
        let x = ops.merge_rows(&ops.norm(&x, &self.ln_q)?, self.merge * self.merge)?;
        let PlainMlp { input, output, activation } = &self.merger;
        let inner = ops.map(&ops.linear(&x, input)?, Map::Activation(*activation))?;
        let embeddings = ops.rows(&ops.linear(&inner, output)?, &layout.reading)?;
        let positions = ImagePositions::Grid { height, width };
        Ok(EncodedImage { embeddings, attention: ImageAttention::Causal, positions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_computed_by_window_and_read_in_order() {
        let layout = PatchOrder::new(3, 5, 2, 2);
        assert_eq!(layout.windows, [16, 16, 8, 8, 8, 4]);
        assert_eq!(layout.places[..6], [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]);
        assert_eq!(layout.places[8], (2, 0));
        assert_eq!(layout.reading, [0, 1, 4, 5, 8, 2, 3, 6, 7, 9, 10, 11, 12, 13, 14]);
        let mut sorted = layout.places.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..6).flat_map(|r| (0..10).map(move |c| (r, c))).collect::<Vec<_>>());
        assert_eq!(layout.coordinates()[10..12], [0, 3]);
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused() {
        let config = |fields: serde_json::Value| -> QwenVitConfig {
            let mut all = serde_json::json!({"depth": 2, "hidden_size": 64, "num_heads": 2,
                "out_hidden_size": 128, "fullatt_block_indexes": [1]});
            all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            serde_json::from_value(all).unwrap()
        };
        assert!(config(serde_json::json!({})).check(128).is_ok());
        for (fields, expected) in [
            (serde_json::json!({"fullatt_block_indexes": [1, 2]}), "names layer 2 of 2"),
            (serde_json::json!({"out_hidden_size": 64}), "contradicts hidden_size (128)"),
            (serde_json::json!({"num_heads": 5}), "a multiple of 4 × num_heads (5)"),
            (
                serde_json::json!({"window_size": 27}),
                "spatial_merge_size (2) × patch_size (14) or more",
            ),
            (serde_json::json!({"in_chans": 4}), "in_channels is 4"),
            (serde_json::json!({"patch_size": 0}), "patch_size is 0"),
        ] {
            let error = config(fields).check(128).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
