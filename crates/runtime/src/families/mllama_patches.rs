//! Patch embeddings of Llama 3.2 Vision's image encoder: the patches of a picture's tiles, each tile
//! preceded by a class token, and their position embeddings.
//!
//! The position of a patch within its tile, and of the tile among the others, is learned for each
//! arrangement of tiles. Rows of all possible tiles are made, empty ones with pixels of 0.

use mlxcel_core::layers::{Embedding, Linear, Norm};
use mlxcel_core::{Array, Map, Ops};

use super::mllama::gate;
use super::mllama_vit::{MllamaVitConfig, OUTER};
use crate::Result;
use crate::loading::{Frames, Patches, Weights};
use crate::vision::{ImageError, PatchShape, Pixels, arrangements};

/// A vector per tile, or per row of each, for each arrangement of tiles, and the factor on it.
pub(super) struct TileEmbedding {
    embedding: Embedding,
    gate: f32,
}

/// Arrangement of a picture's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrangement {
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    /// Index in the tables.
    pub(super) number: i32,
}

/// Parameters that make rows of pixels.
pub(super) struct Embeddings {
    image_size: usize,
    /// Number of tiles, empty ones included.
    pub(super) tiles: usize,
    /// Rows of a tile: its patches and its own token.
    pub(super) rows: usize,
    patch_embedding: Linear,
    patches: PatchShape,
    class_embedding: Array,
    /// Positions within a tile; their factor is 1 minus the gate of `tile_positions`.
    positions: Array,
    tile_positions: TileEmbedding,
    before: TileEmbedding,
    layernorm_pre: Norm,
}

impl TileEmbedding {
    /// Reads `gate` and the table `name`, whose rows have `width` elements for each tile.
    pub(super) fn load(w: &Weights, c: &MllamaVitConfig, name: &str, width: usize) -> Result<Self> {
        let arranged = arrangements(c.max_num_tiles).len() + 1;
        let embedding = w.embedding(name, arranged, c.max_num_tiles * width)?;
        Ok(Self { embedding, gate: gate(w, "gate")? })
    }

    /// Embedding of arrangement `number`, in `rows` rows.
    pub(super) fn rows(&self, ops: &Ops, number: i32, rows: usize) -> Result<Array> {
        let row = ops.embed(&[number], &self.embedding)?;
        Ok(ops.split_rows(&ops.map(&row, Map::Scale(self.gate))?, rows)?)
    }
}

impl Arrangement {
    /// Number of tiles with picture content.
    pub(super) fn visible_tiles(self) -> usize {
        self.tiles[0] * self.tiles[1]
    }
}

impl Embeddings {
    pub(super) fn load(w: &Weights, c: &MllamaVitConfig) -> Result<Self> {
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

    /// Arrangement of the tiles of `pixels`.
    pub(super) fn arrangement(&self, pixels: &Pixels) -> Result<Arrangement> {
        let side = self.image_size;
        let tiles = [pixels.height / side, pixels.width / side];
        let whole = [pixels.height, pixels.width] == tiles.map(|tiles| tiles * side);
        let number = arrangements(self.tiles).iter().position(|known| *known == tiles && whole);
        match number.and_then(|number| i32::try_from(number + 1).ok()) {
            Some(number) => Ok(Arrangement { tiles, number }),
            None => {
                let width = pixels.width;
                let height = pixels.height;
                let expected = format!("up to {} tiles of {side}²", self.tiles);
                Err(ImageError::PixelSize { width, height, expected }.into())
            }
        }
    }

    /// The rows of all tiles, tile by tile, `[tiles · rows, hidden]`.
    pub(super) fn rows_of(&self, ops: &Ops, pixels: &Pixels, at: Arrangement) -> Result<Array> {
        let patches = self.rows - 1;
        let x = self.patches_of(ops, pixels, at)?;
        let before = self.before.rows(ops, at.number, self.tiles)?;
        let x = ops.add(&x, &ops.rows(&before, &repeated(self.tiles, patches))?)?;
        let x = ops.concatenate_rows(&[&self.class_embedding, &x])?;
        // The class token, row 0, ahead of the patches of each tile.
        let mut order = Vec::with_capacity(self.tiles * self.rows);
        for tile in 0..self.tiles {
            order.push(0);
            order.extend(1 + tile * patches..1 + (tile + 1) * patches);
        }
        let x = ops.rows(&x, &order)?;
        let within: Vec<usize> = (0..self.tiles).flat_map(|_| 0..self.rows).collect();
        let share = Map::Scale(1.0 - self.tile_positions.gate);
        let x = ops.add(&x, &ops.map(&ops.rows(&self.positions, &within)?, share)?)?;
        let positions = self.tile_positions.rows(ops, at.number, self.tiles * self.rows)?;
        Ok(ops.norm(&ops.add(&x, &positions)?, &self.layernorm_pre)?)
    }

    /// The patches of all tiles, tile by tile.
    fn patches_of(&self, ops: &Ops, pixels: &Pixels, at: Arrangement) -> Result<Array> {
        let along = self.image_size / self.patches.size;
        let [_, columns] = at.tiles;
        let patches = along * along;
        let places = (0..at.visible_tiles() * patches).map(|i| {
            let tile = i / patches;
            let patch = i % patches;
            let down = tile / columns;
            let right = tile % columns;
            (down * along + patch / along, right * along + patch % along)
        });
        let mut values = pixels.patches(self.patches, places);
        values.resize(self.tiles * patches * self.patches.values(), 0.0);
        let x = ops.activations(&values, &self.patch_embedding.weight)?;
        Ok(ops.linear(&x, &self.patch_embedding)?)
    }
}

/// The numbers 0 to `count` − 1, each repeated `times` times.
pub(super) fn repeated(count: usize, times: usize) -> Vec<usize> {
    (0..count * times).map(|i| i / times).collect()
}
