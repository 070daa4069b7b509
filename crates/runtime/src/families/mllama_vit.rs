//! Llama 3.2 Vision's image encoder: the rows of a picture's tiles (`mllama_patches`) in two stacks of
//! layers, the second of which has gates; then a projection of its output and of some earlier
//! layers' to the decoder's width.
//!
//! All tiles are always computed, each padded with rows of zeros to a multiple of eight. Rows with
//! picture content attend to all rows, the others only to those: this is the reference's mask. Rows
//! lie in the order [the picture's tiles, empty tiles, padding].

use mlxcel_core::layers::{Linear, Norm};
use mlxcel_core::{Activation, Array, ImageAttention, ImagePositions, Map, Ops};
use serde::Deserialize;

use super::ImageEncoder;
use super::config::{activation, positive};
use super::mllama::gate;
use super::mllama_patches::{Embeddings, TileEmbedding, repeated};
use super::mlp::PlainMlp;
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::vision::{EncodedImage, MAX_TILES, Pixels, arrangements};
use crate::{ConfigProblem, Error, Result};

/// The first and the last norm have PyTorch's epsilon, not that of the configuration.
pub(super) const OUTER: NormRule = NormRule { kind: NormKind::Layer, eps: 1e-5 };

/// Largest side of a tile.
const MAX_SIDE: usize = 1 << 14;

/// `vision_config`; the defaults are the class's.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct MllamaVitConfig {
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_global_layers: usize,
    #[serde(alias = "num_attention_heads")]
    attention_heads: usize,
    num_channels: usize,
    pub(super) image_size: usize,
    pub(super) patch_size: usize,
    pub(super) max_num_tiles: usize,
    vision_output_dim: usize,
    intermediate_layers_indices: Vec<usize>,
    supported_aspect_ratios: Option<Vec<[usize; 2]>>,
    norm_eps: f32,
    hidden_act: String,
}

impl Default for MllamaVitConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_global_layers: 8,
            attention_heads: 16,
            num_channels: 3,
            image_size: 448,
            patch_size: 14,
            max_num_tiles: 4,
            vision_output_dim: 7680,
            intermediate_layers_indices: vec![3, 7, 15, 23, 30],
            supported_aspect_ratios: None,
            norm_eps: 1e-5,
            hidden_act: "gelu".to_owned(),
        }
    }
}

impl MllamaVitConfig {
    fn check(&self) -> Result<()> {
        positive(&[
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.attention_heads", self.attention_heads),
            ("vision_config.patch_size", self.patch_size),
        ])?;
        let hidden = self.hidden_size;
        let heads = self.attention_heads;
        let side = self.image_size;
        let patch = self.patch_size;
        let tiles = self.max_num_tiles;
        let kept = &self.intermediate_layers_indices;
        let layers = self.num_hidden_layers;
        if self.num_channels != 3 {
            let key = "vision_config.num_channels";
            return Err(Error::unsupported_value(key, self.num_channels, "3"));
        }
        if !(1..=MAX_TILES).contains(&tiles) {
            let expected = format!("1 to {MAX_TILES}");
            return Err(Error::invalid_value("vision_config.max_num_tiles", tiles, expected));
        }
        if !(1..=MAX_SIDE).contains(&side) || !side.is_multiple_of(patch) {
            let expected = format!("1 to {MAX_SIDE} in whole patches of {patch}");
            return Err(Error::invalid_value("vision_config.image_size", side, expected));
        }
        if !hidden.is_multiple_of(heads) {
            let of = "vision_config.attention_heads";
            let problem = ConfigProblem::NotAMultiple { found: hidden, of, divisor: heads };
            return Err(Error::invalid_config("vision_config.hidden_size", problem));
        }
        if let Some(layer) = kept.iter().copied().find(|layer| *layer >= layers) {
            let key = "vision_config.intermediate_layers_indices";
            let problem = ConfigProblem::NoSuchLayer { layer, layers };
            return Err(Error::invalid_config(key, problem));
        }
        self.check_outputs()
    }

    /// Checks the projected layers and the arrangements of tiles.
    fn check_outputs(&self) -> Result<()> {
        let kept = self.intermediate_layers_indices.len();
        let stated = self.vision_output_dim;
        let width = self.hidden_size * (1 + kept);
        if kept == 0 {
            let key = "vision_config.intermediate_layers_indices";
            return Err(Error::invalid_value(key, "[]", "one layer or more"));
        }
        if stated != width {
            let expected = format!("{width} for the output and {kept} earlier ones");
            return Err(Error::invalid_value("vision_config.vision_output_dim", stated, expected));
        }
        let tiles = self.max_num_tiles;
        let known = arrangements(self.max_num_tiles);
        match &self.supported_aspect_ratios {
            Some(stated) if *stated != known => Err(Error::invalid_value(
                "vision_config.supported_aspect_ratios",
                format!("{stated:?}"),
                format!("{known:?} for {tiles} tiles"),
            )),
            _ => Ok(()),
        }
    }
}

/// Attention among all rows.
struct MllamaVisionAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: usize,
}

/// One layer, and the gates of its parts, where it has any.
struct MllamaVisionBlock {
    input_layernorm: Norm,
    self_attn: MllamaVisionAttention,
    post_attention_layernorm: Norm,
    mlp: PlainMlp,
    gates: Option<[f32; 2]>,
}

/// The encoder, and the projector to the decoder's width.
pub(super) struct MllamaVisionTower {
    embeddings: Embeddings,
    transformer: Vec<MllamaVisionBlock>,
    /// Layers whose output is projected, besides the last.
    projected: Vec<usize>,
    layernorm_post: Norm,
    after: TileEmbedding,
    global_transformer: Vec<MllamaVisionBlock>,
    multi_modal_projector: Linear,
}

impl MllamaVisionAttention {
    fn load(w: &Weights, c: &MllamaVitConfig) -> Result<Self> {
        let hidden = c.hidden_size;
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, hidden, Bias::None)?,
            k_proj: w.linear("k_proj", hidden, hidden, Bias::None)?,
            v_proj: w.linear("v_proj", hidden, hidden, Bias::None)?,
            o_proj: w.linear("o_proj", hidden, hidden, Bias::None)?,
            heads: c.attention_heads,
        })
    }

    /// Attention of rows of which the first `real` have picture content.
    fn forward(&self, ops: &Ops, x: &Array, real: usize) -> Result<Array> {
        let [q, k, v] = ops.linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        let attended = ops.padded_encoder_attention([&q, &k, &v], self.heads, real)?;
        Ok(ops.linear(&attended, &self.o_proj)?)
    }
}

impl MllamaVisionBlock {
    fn load(w: &Weights, c: &MllamaVitConfig, activation: Activation, gated: bool) -> Result<Self> {
        let hidden = c.hidden_size;
        let inner = c.intermediate_size;
        let norm = NormRule { kind: NormKind::Layer, eps: c.norm_eps };
        let mlp = w.at("mlp");
        let gates = [gated.then(|| gate(w, "gate_attn")), gated.then(|| gate(w, "gate_ffn"))];
        let [attention, feed_forward] = gates.map(Option::transpose);
        Ok(Self {
            input_layernorm: w.norm("input_layernorm", hidden, norm)?,
            self_attn: MllamaVisionAttention::load(&w.at("self_attn"), c)?,
            post_attention_layernorm: w.norm("post_attention_layernorm", hidden, norm)?,
            mlp: PlainMlp {
                input: mlp.linear("fc1", hidden, inner, Bias::Required)?,
                output: mlp.linear("fc2", inner, hidden, Bias::Required)?,
                activation,
            },
            gates: attention?.zip(feed_forward?).map(Into::into),
        })
    }

    fn forward(&self, ops: &Ops, x: &Array, real: usize) -> Result<Array> {
        let normed = ops.norm(x, &self.input_layernorm)?;
        let mut attended = self.self_attn.forward(ops, &normed, real)?;
        if let Some([gate, _]) = self.gates {
            attended = ops.map(&attended, Map::Scale(gate))?;
        }
        let x = ops.add(x, &attended)?;
        let mut y = self.mlp.apply(ops, &ops.norm(&x, &self.post_attention_layernorm)?)?;
        if let Some([_, gate]) = self.gates {
            y = ops.map(&y, Map::Scale(gate))?;
        }
        Ok(ops.add(&x, &y)?)
    }
}

impl MllamaVisionTower {
    /// Reads the encoder and the projector, for a decoder of `hidden` elements.
    pub(super) fn load(
        [w, projector]: [&Weights; 2],
        c: &MllamaVitConfig,
        hidden: usize,
    ) -> Result<Self> {
        c.check()?;
        let own = c.hidden_size;
        let width = c.vision_output_dim;
        let activation = activation(&c.hidden_act)?;
        let local = w.layers("transformer.layers", c.num_hidden_layers, |w, _| {
            MllamaVisionBlock::load(w, c, activation, false)
        })?;
        let global = w.layers("global_transformer.layers", c.num_global_layers, |w, _| {
            MllamaVisionBlock::load(w, c, activation, true)
        })?;
        let after = w.at("post_tile_positional_embedding");
        Ok(Self {
            embeddings: Embeddings::load(w, c)?,
            transformer: local,
            projected: c.intermediate_layers_indices.clone(),
            layernorm_post: w.norm("layernorm_post", own, OUTER)?,
            after: TileEmbedding::load(&after, c, "embedding", own)?,
            global_transformer: global,
            multi_modal_projector: projector.linear(
                "multi_modal_projector",
                width,
                hidden,
                Bias::Required,
            )?,
        })
    }
}

impl ImageEncoder for MllamaVisionTower {
    fn encode(&self, ops: &Ops, pixels: &Pixels) -> Result<EncodedImage> {
        let at = self.embeddings.arrangement(pixels)?;
        let Embeddings { tiles, rows, .. } = self.embeddings;
        let visible = at.visible_tiles() * rows;
        let padding = rows.next_multiple_of(8) - rows;
        let all: Vec<usize> = (0..tiles * rows).collect();
        let x = self.embeddings.rows_of(ops, pixels, at)?;
        let mut x = ops.pad_rows(&x, tiles * padding)?;
        let mut outputs = Vec::new();
        for (index, layer) in self.transformer.iter().enumerate() {
            x = layer.forward(ops, &x, visible)?;
            ops.eval_layer(&x)?;
            if self.projected.contains(&index) {
                outputs.push((index, ops.rows(&x, &all)?));
            }
        }
        let of_rows = [repeated(tiles, rows), repeated(tiles, padding)].concat();
        let after = ops.rows(&self.after.rows(ops, at.number, tiles)?, &of_rows)?;
        x = ops.add(&ops.norm(&x, &self.layernorm_post)?, &after)?;
        for layer in &self.global_transformer {
            x = layer.forward(ops, &x, visible)?;
            ops.eval_layer(&x)?;
        }
        // In the order of the configuration, which may name a layer twice.
        let mut projected = Vec::with_capacity(self.projected.len());
        for wanted in &self.projected {
            projected.extend(outputs.iter().find(|(i, _)| i == wanted).map(|(_, x)| x.clone()));
        }
        let x = ops.append_interleaved(&ops.rows(&x, &all)?, &projected)?;
        let embeddings = ops.linear(&x, &self.multi_modal_projector)?;
        let attention = ImageAttention::Cross { visible };
        Ok(EncodedImage { embeddings, attention, positions: ImagePositions::Line })
    }
}
