//! `gemma3_text` and the language model of `gemma3`: Gemma 2's layers with norms over each query
//! and key head, and five windowed layers to one global, each kind with its own rotary base.
//! `gemma3` has an image encoder, whose tokens attend to each other in both directions in every layer,
//! as in transformers.

use mlxcel_core::{Rope, RopeScaling};
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, RopeConfig, RopeDefaults};
use super::dense::{Attention, Model, ProjectionBias};
use super::gemma2::{block, embed_scale, norm, score_scale};
use super::siglip::{self, SiglipTower};
use super::with_encoder::WithEncoder;
use crate::Result;
use crate::loading::{Bias, Weights};

/// The class's defaults for global layers.
const GLOBAL: RopeDefaults = RopeDefaults { theta: 1_000_000.0, traditional: false, partial: 1.0 };

#[derive(Debug, Deserialize)]
pub(super) struct Gemma3Config {
    query_pre_attn_scalar: Option<f32>,
    rope_local_base_freq: Option<f64>,
    vision_config: Option<siglip::SiglipConfig>,
    #[serde(default = "tokens_per_image")]
    mm_tokens_per_image: usize,
}

fn tokens_per_image() -> usize {
    256
}

impl Gemma3Config {
    /// The rotary embedding of windowed layers, then of global ones.
    fn ropes(&self, rope: &RopeConfig, head_dim: usize) -> Result<[Rope; 2]> {
        let local = match rope.of_layer_type("sliding_attention") {
            Some(stated) => stated.build(head_dim)?,
            None => {
                let base = self.rope_local_base_freq.unwrap_or(10_000.0);
                Rope::new(head_dim, base, false, &RopeScaling::None)?
            }
        };
        let stated = rope.of_layer_type("full_attention");
        Ok([local, stated.as_ref().unwrap_or(rope).build_or(head_dim, GLOBAL)?])
    }
}

fn attention(
    w: &Weights,
    d: &DecoderConfig,
    c: &Gemma3Config,
    heads: HeadShape,
) -> Result<Attention> {
    let bias = ProjectionBias::all(Bias::None);
    let [local, global] = c.ropes(&d.rope, heads.head_dim)?;
    let rope = if heads.window.is_some() { local } else { global };
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, Some(rope))?;
    let spec = plain.spec.with_scale(score_scale(c.query_pre_attn_scalar)?);
    let q_norm = w.rms_norm("q_norm", heads.head_dim, norm(d))?;
    let k_norm = w.rms_norm("k_norm", heads.head_dim, norm(d))?;
    Ok(Attention { qk_norm: Some((q_norm, k_norm)), spec, ..plain })
}

/// `√hidden` in bfloat16, as the reference implementations have it in every precision.
fn rounded_scale(c: &DecoderConfig) -> f32 {
    half::bf16::from_f32(embed_scale(c)).to_f32()
}

/// The decoder, with the encoder where the configuration and the files have one.
pub(super) fn load_with_images(
    w: &Weights,
    d: &DecoderConfig,
    c: &Gemma3Config,
) -> Result<WithEncoder<SiglipTower>> {
    let complete = w.has("vision_tower.vision_model.post_layernorm.weight");
    let encoder = match c.vision_config.as_ref().filter(|_| complete) {
        Some(vision) => {
            let hidden = d.sizes.hidden_size;
            Some(SiglipTower::load(w, vision, c.mm_tokens_per_image, hidden)?)
        }
        None => None,
    };
    Ok(WithEncoder { language_model: load(w, d, c)?, encoder })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Gemma3Config) -> Result<Model> {
    let text = w.at("language_model");
    let w = if text.has("model.embed_tokens.weight") { &text } else { w };
    Ok(Model {
        embed_scale: Some(rounded_scale(d)),
        ..Model::load(w, &d.sizes, norm(d), |w, layer| {
            let attention = attention(&w.at("self_attn"), d, c, d.heads(layer)?)?;
            block(w, d, layer, attention)
        })?
    })
}
