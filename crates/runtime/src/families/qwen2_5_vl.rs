//! `qwen2_5_vl`: Qwen 2.5 with an image encoder (`qwen_vit`). Rows of an image have positions on a
//! grid: about a third each of a head's frequencies rotates by time, height and width (M-RoPE).

use serde::Deserialize;

use super::config::DecoderConfig;
use super::qwen_vit::{self, QwenVisionTower};
use super::qwen2;
use super::with_encoder::WithEncoder;
use crate::loading::Weights;
use crate::{Error, Result};

/// Configuration beyond that of a decoder.
#[derive(Debug, Deserialize)]
pub(super) struct Qwen25VlConfig {
    vision_config: Option<qwen_vit::QwenVitConfig>,
}

/// Paths of the decoder, the head and the encoder: as published, as mlx-vlm converts them, as
/// transformers 5 writes them.
const PLACES: [[&str; 3]; 3] = [
    ["model", "", "visual"],
    ["language_model.model", "language_model", "vision_tower"],
    ["model.language_model", "", "model.visual"],
];

/// The decoder, with the encoder where the configuration and the files have one.
pub(super) fn load(
    w: &Weights,
    d: &DecoderConfig,
    c: &Qwen25VlConfig,
) -> Result<WithEncoder<QwenVisionTower>> {
    let at = |name: &str| if name.is_empty() { w.root() } else { w.at(name) };
    let holds = |places: &&[&str; 3]| at(places[0]).has("norm.weight");
    let [model, head, visual] = PLACES.iter().find(holds).unwrap_or(&PLACES[0]).map(at);
    let sections = d.rope.sections();
    let sections = sections.ok_or_else(|| Error::missing_key("rope_scaling.mrope_section"))?;
    let rope = d.rope.build(d.head_dim()?)?;
    if sections.len() != 3 {
        return Err(Error::wrong_length("rope_scaling.mrope_section", sections.len(), 3));
    }
    let rope = rope.with_sections(&sections)?;
    let complete = visual.has("merger.ln_q.weight");
    let hidden = d.sizes.hidden_size;
    let vision = c.vision_config.as_ref().filter(|_| complete);
    Ok(WithEncoder {
        encoder: vision.map(|c| QwenVisionTower::load(&visual, c, hidden)).transpose()?,
        language_model: qwen2::load_at([&model, &head], d, &rope)?,
    })
}
