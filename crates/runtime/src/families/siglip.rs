//! SigLIP's image encoder and Gemma 3's projector: patches, layers of attention among all of them,
//! means over squares, a norm and a projection to the decoder's width.

use mlxcel_core::layers::{Linear, Norm, RmsNorm};
use mlxcel_core::{Activation, Array, ImageAttention, ImagePositions, Ops};
use serde::Deserialize;

use super::ImageEncoder;
use super::config::{activation, positive};
use super::dense::PlainMlp;
use crate::loading::{Bias, Frames, NormKind, NormRule, Patches, Weights};
use crate::vision::{EncodedImage, ImageError, PatchShape, Pixels};
use crate::{ConfigProblem, Error, Result};

/// `vision_config`; the defaults are the class's.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SiglipConfig {
    #[serde(default = "hidden_size")]
    hidden_size: usize,
    #[serde(default = "intermediate_size")]
    intermediate_size: usize,
    #[serde(default = "twelve")]
    num_hidden_layers: usize,
    #[serde(default = "twelve")]
    num_attention_heads: usize,
    #[serde(default = "num_channels")]
    num_channels: usize,
    #[serde(default = "image_size")]
    image_size: usize,
    #[serde(default = "patch_size")]
    patch_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    #[serde(default = "hidden_act")]
    hidden_act: String,
}

fn hidden_size() -> usize {
    768
}

fn intermediate_size() -> usize {
    3072
}

fn twelve() -> usize {
    12
}

fn num_channels() -> usize {
    3
}

fn image_size() -> usize {
    224
}

fn patch_size() -> usize {
    16
}

fn eps() -> f32 {
    1e-6
}

fn hidden_act() -> String {
    "gelu_pytorch_tanh".to_owned()
}

impl SiglipConfig {
    fn norm(&self) -> NormRule {
        NormRule { kind: NormKind::Layer, eps: self.layer_norm_eps }
    }

    /// Patches along a side of the image, and along a side of each of the `tokens` pooled squares.
    fn grid(&self, tokens: usize) -> Result<(usize, usize)> {
        if self.num_channels != 3 {
            let key = "vision_config.num_channels";
            return Err(Error::unsupported_value(key, self.num_channels, "3"));
        }
        positive(&[
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.image_size", self.image_size),
            ("vision_config.patch_size", self.patch_size),
        ])?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let problem = ConfigProblem::NotAMultiple {
                found: self.hidden_size,
                of: "vision_config.num_attention_heads",
                divisor: self.num_attention_heads,
            };
            return Err(Error::invalid_config("vision_config.hidden_size", problem));
        }
        let side = self.image_size / self.patch_size;
        let small = tokens.isqrt();
        if small == 0 || small * small != tokens || !side.is_multiple_of(small) {
            let expected = format!("a square number that divides {side}² patches into squares");
            return Err(Error::invalid_value("mm_tokens_per_image", tokens, expected));
        }
        Ok((side, side / small))
    }
}

/// Attention among all patches.
struct SiglipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

/// One layer.
struct SiglipBlock {
    layer_norm1: Norm,
    self_attn: SiglipAttention,
    layer_norm2: Norm,
    mlp: PlainMlp,
}

/// The encoder, and the projector to the decoder's width.
pub(super) struct SiglipTower {
    image_size: usize,
    patch_embedding: Linear,
    patches: PatchShape,
    position_embedding: Array,
    layers: Vec<SiglipBlock>,
    post_layernorm: Norm,
    /// Patches along a side of a square that becomes a token.
    pool: usize,
    mm_soft_emb_norm: RmsNorm,
    mm_input_projection: Linear,
}

impl SiglipAttention {
    fn load(w: &Weights, c: &SiglipConfig) -> Result<Self> {
        let hidden = c.hidden_size;
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, hidden, Bias::Required)?,
            k_proj: w.linear("k_proj", hidden, hidden, Bias::Required)?,
            v_proj: w.linear("v_proj", hidden, hidden, Bias::Required)?,
            out_proj: w.linear("out_proj", hidden, hidden, Bias::Required)?,
            heads: c.num_attention_heads,
        })
    }

    /// Attention of `x`, `[patches, hidden]`.
    fn forward(&self, ops: &Ops, x: &Array, patches: usize) -> Result<Array> {
        let [q, k, v] = ops.linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        let attended = ops.encoder_attention([&q, &k, &v], self.heads, &[patches])?;
        Ok(ops.linear(&attended, &self.out_proj)?)
    }
}

impl SiglipBlock {
    fn load(w: &Weights, c: &SiglipConfig, activation: Activation) -> Result<Self> {
        let hidden = c.hidden_size;
        let inner = c.intermediate_size;
        let mlp = w.at("mlp");
        Ok(Self {
            layer_norm1: w.norm("layer_norm1", hidden, c.norm())?,
            self_attn: SiglipAttention::load(&w.at("self_attn"), c)?,
            layer_norm2: w.norm("layer_norm2", hidden, c.norm())?,
            mlp: PlainMlp {
                input: mlp.linear("fc1", hidden, inner, Bias::Required)?,
                output: mlp.linear("fc2", inner, hidden, Bias::Required)?,
                activation,
            },
        })
    }

    fn forward(&self, ops: &Ops, x: &Array, patches: usize) -> Result<Array> {
        let normed = ops.norm(x, &self.layer_norm1)?;
        let x = ops.add(x, &self.self_attn.forward(ops, &normed, patches)?)?;
        let y = self.mlp.apply(ops, &ops.norm(&x, &self.layer_norm2)?)?;
        Ok(ops.add(&x, &y)?)
    }
}

impl SiglipTower {
    /// Reads `vision_tower` and `multi_modal_projector`, for `tokens` rows of `hidden` elements an
    /// image.
    pub(super) fn load(
        w: &Weights,
        c: &SiglipConfig,
        tokens: usize,
        hidden: usize,
    ) -> Result<Self> {
        let (side, pool) = c.grid(tokens)?;
        let tower = w.at("vision_tower.vision_model");
        let embeddings = tower.at("embeddings");
        let Patches { weight, shape } =
            embeddings.patches("patch_embedding", c.hidden_size, c.patch_size, Frames::One)?;
        let bias = embeddings.at("patch_embedding").float_vector("bias", c.hidden_size)?;
        let activation = activation(&c.hidden_act)?;
        let projector = w.at("multi_modal_projector");
        let norm = NormRule { kind: NormKind::RmsPlusOne, eps: c.layer_norm_eps };
        let position = embeddings.at("position_embedding");
        Ok(Self {
            image_size: c.image_size,
            patch_embedding: Linear { weight, bias: Some(bias) },
            patches: shape,
            position_embedding: position.float_matrix("weight", side * side, c.hidden_size)?,
            layers: tower.layers("encoder.layers", c.num_hidden_layers, |w, _| {
                SiglipBlock::load(w, c, activation)
            })?,
            post_layernorm: tower.norm("post_layernorm", c.hidden_size, c.norm())?,
            pool,
            mm_soft_emb_norm: projector.rms_norm("mm_soft_emb_norm", c.hidden_size, norm)?,
            mm_input_projection: projector.transposed(
                "mm_input_projection_weight",
                c.hidden_size,
                hidden,
            )?,
        })
    }
}

impl ImageEncoder for SiglipTower {
    fn encode(&self, ops: &Ops, pixels: &Pixels) -> Result<EncodedImage> {
        let width = pixels.width;
        let height = pixels.height;
        if [width, height] != [self.image_size; 2] {
            let expected = format!("{}²", self.image_size);
            return Err(ImageError::PixelSize { width, height, expected }.into());
        }
        let side = self.image_size / self.patches.size;
        let places = (0..side * side).map(|i| (i / side, i % side));
        let patches = pixels.patches(self.patches, places);
        let x = ops.activations(&patches, &self.patch_embedding.weight)?;
        let x = ops.linear(&x, &self.patch_embedding)?;
        let mut x = ops.add(&x, &self.position_embedding)?;
        for layer in &self.layers {
            x = layer.forward(ops, &x, side * side)?;
            ops.eval_layer(&x)?;
        }
        let x = ops.average_pool(&ops.norm(&x, &self.post_layernorm)?, self.pool)?;
        let x = ops.rms_norm(&x, &self.mm_soft_emb_norm)?;
        let embeddings = ops.linear(&x, &self.mm_input_projection)?;
        Ok(EncodedImage {
            embeddings,
            attention: ImageAttention::Bidirectional,
            positions: ImagePositions::Line,
        })
    }
}
