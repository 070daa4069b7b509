//! From pixels to rows for Llama 3.2 Vision's image encoder: the patches of a picture's tiles, each
//! tile behind a token of its own, and what tells them where they are.
//!
//! Where a patch is within its tile, and where the tile among the others, is learned for each
//! arrangement of tiles. All tiles there can be are made, empty ones with pixels of 0.

use mlxcel_core::layers::{Embedding, Linear, Norm};
use mlxcel_core::{Array, Map, Ops};

use super::mllama::gate;
use super::mllama_vit::{Config, OUTER};
use crate::Result;
use crate::loading::{Frames, Patches, Weights};
use crate::vision::{ImageError, PatchShape, Pixels, arrangements};

/// A vector per tile, or per row of each, for each arrangement of tiles, and how much of it is added.
pub(super) struct TileEmbedding {
    embedding: Embedding,
    gate: f32,
}

/// How the tiles of a picture are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrangement {
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    /// As the tables number it.
    pub(super) number: i32,
}

/// What makes rows of pixels.
pub(super) struct Embeddings {
    image_size: usize,
    /// Tiles that are made.
    pub(super) tiles: usize,
    /// Rows of a tile: its patches and its own token.
    pub(super) rows: usize,
    patch_embedding: Linear,
    patches: PatchShape,
    class_embedding: Array,
    /// Of a tile's rows; they are added as far as `tile_positions` is not.
    positions: Array,
    tile_positions: TileEmbedding,
    before: TileEmbedding,
    layernorm_pre: Norm,
}

impl TileEmbedding {
    /// Reads `gate` and the table `name`, whose rows have `width` elements for each tile.
    pub(super) fn load(w: &Weights, c: &Config, name: &str, width: usize) -> Result<Self> {
        let arranged = arrangements(c.max_num_tiles).len() + 1;
        let embedding = w.embedding(name, arranged, c.max_num_tiles * width)?;
        Ok(Self { embedding, gate: gate(w, "gate")? })
    }

    /// Of arrangement `number`, in `rows` rows.
    pub(super) fn of(&self, ops: &Ops, number: i32, rows: usize) -> Result<Array> {
        let number = Array::from_slice(&[number], &[1]).map_err(mlxcel_core::Error::from)?;
        let row = ops.embed(&number, &self.embedding)?;
        Ok(ops.parted_rows(&ops.map(&row, Map::Scale(self.gate))?, rows)?)
    }
}

impl Arrangement {
    /// Tiles that show something of the picture.
    pub(super) fn shown(self) -> usize {
        self.tiles[0] * self.tiles[1]
    }
}

impl Embeddings {
    pub(super) fn load(w: &Weights, c: &Config) -> Result<Self> {
        let own = c.hidden_size;
        let rows = (c.image_size / c.patch_size).pow(2) + 1;
        let Patches { weight, shape } =
            w.patches("patch_embedding", own, c.patch_size, Frames::One)?;
        let positions = w.at("gated_positional_embedding");
        let before = w.at("pre_tile_positional_embedding");
        Ok(Self {
            image_size: c.image_size,
            tiles: c.max_num_tiles,
            rows,
            patch_embedding: Linear { weight, bias: None },
            patches: shape,
            class_embedding: w.float_vector("class_embedding", own)?,
            positions: positions.float_matrix("embedding", rows, own)?,
            tile_positions: TileEmbedding::load(&positions, c, "tile_embedding", rows * own)?,
            before: TileEmbedding::load(&before, c, "embedding", own)?,
            layernorm_pre: w.norm("layernorm_pre", own, OUTER)?,
        })
    }

    /// How the tiles of `pixels` are arranged.
    pub(super) fn arrangement(&self, pixels: &Pixels) -> Result<Arrangement> {
        let side = self.image_size;
        let tiles = [pixels.height / side, pixels.width / side];
        let whole = [pixels.height, pixels.width] == tiles.map(|tiles| tiles * side);
        let number = arrangements(self.tiles).iter().position(|known| *known == tiles && whole);
        match number.and_then(|number| i32::try_from(number + 1).ok()) {
            Some(number) => Ok(Arrangement { tiles, number }),
            None => {
                let (width, height) = (pixels.width, pixels.height);
                let expected = format!("up to {} tiles of {side}²", self.tiles);
                Err(ImageError::PixelSize { width, height, expected }.into())
            }
        }
    }

    /// The rows of all tiles, tile by tile, `[tiles · rows, hidden]`.
    pub(super) fn rows_of(&self, ops: &Ops, pixels: &Pixels, at: Arrangement) -> Result<Array> {
        let patches = self.rows - 1;
        let x = self.patches_of(ops, pixels, at)?;
        let before = self.before.of(ops, at.number, self.tiles)?;
        let x = ops.add(&x, &ops.rows(&before, &repeated(self.tiles, patches))?)?;
        let x = ops.stacked_rows(&[&self.class_embedding, &x])?;
        let tile = |tile| [0].into_iter().chain(1 + tile * patches..1 + (tile + 1) * patches);
        let x = ops.rows(&x, &(0..self.tiles).flat_map(tile).collect::<Vec<_>>())?;
        let within: Vec<usize> = (0..self.tiles).flat_map(|_| 0..self.rows).collect();
        let share = Map::Scale(1.0 - self.tile_positions.gate);
        let x = ops.add(&x, &ops.map(&ops.rows(&self.positions, &within)?, share)?)?;
        let positions = self.tile_positions.of(ops, at.number, self.tiles * self.rows)?;
        Ok(ops.norm(&ops.add(&x, &positions)?, &self.layernorm_pre)?)
    }

    /// The patches of all tiles, tile by tile.
    fn patches_of(&self, ops: &Ops, pixels: &Pixels, at: Arrangement) -> Result<Array> {
        let (along, [_, columns]) = (self.image_size / self.patches.size, at.tiles);
        let patches = along * along;
        let places = (0..at.shown() * patches).map(|i| {
            let (tile, patch) = (i / patches, i % patches);
            let (down, right) = (tile / columns, tile % columns);
            (down * along + patch / along, right * along + patch % along)
        });
        let mut values = pixels.patches(self.patches, places);
        values.resize(self.tiles * patches * self.patches.values(), 0.0);
        let x = ops.activations(&values, &self.patch_embedding.weight)?;
        Ok(ops.linear(&x, &self.patch_embedding)?)
    }
}

/// `count` numbers from 0 on, each so many `times`.
pub(super) fn repeated(count: usize, times: usize) -> Vec<usize> {
    (0..count * times).map(|i| i / times).collect()
}
