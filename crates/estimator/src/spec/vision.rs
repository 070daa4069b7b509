//! The image encoder of a vision model, as far as its own memory is concerned.

use crate::config::Fields;
use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::registry::Chosen;

/// Sizes of an image encoder; zero where the configuration does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VisionSpec {
    /// Elements of its residual stream.
    pub hidden: u64,
    /// Elements of its feed-forward step.
    pub inner: u64,
    /// Attention heads.
    pub heads: u64,
    /// Patches of one image of the configured size.
    pub patches: u64,
}

/// Patches where neither an image size nor a number of positions is given: 1024 × 1024 by 16.
const USUAL_PATCHES: u64 = 4096;

impl VisionSpec {
    pub(crate) fn read(fields: &Fields, chosen: &Chosen) -> Result<Option<Self>, EstimatorError> {
        let family = chosen.wrapper.as_ref().unwrap_or(&chosen.text);
        let scope = Scope::new(fields, family).over(&chosen.text);
        if !fields.has_vision() && scope.named("VISION")?.is_none() {
            return Ok(None);
        }
        let first = |names: &[&str]| {
            names.iter().find_map(|name| scope.named(name).ok().flatten()).unwrap_or(0)
        };
        let side = first(&["v.image_size"]).checked_div(first(&["v.patch_size"])).unwrap_or(0);
        let patches = match (side.saturating_mul(side), first(&["v.num_position_embeddings"])) {
            (0, 0) => USUAL_PATCHES,
            (0, positions) => positions,
            (patches, _) => patches,
        };
        let hidden = first(&["v.embed_dim", "v.hidden_size", "v.vt_hidden_size", "v.width"]);
        let inner = first(&["v.intermediate_size", "v.vt_intermediate_size"]);
        Ok(Some(Self {
            hidden,
            inner: if inner == 0 { hidden.saturating_mul(4) } else { inner },
            heads: first(&["v.num_attention_heads", "v.num_heads", "v.vt_num_attention_heads"]),
            patches,
        }))
    }

    /// What the encoder needs for one image at once, in bytes: its activations and, since no
    /// kernel of the encoders is known to be fused, one layer's scores. 16-bit elements.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        const HALF: u64 = 2;
        let per_patch = self.hidden.saturating_mul(4).saturating_add(self.inner.saturating_mul(2));
        let scores = self.heads.saturating_mul(self.patches);
        per_patch.saturating_add(scores).saturating_mul(self.patches).saturating_mul(HALF)
    }
}

#[cfg(test)]
mod tests {
    use crate::ModelSpec;

    #[test]
    fn an_encoder_described_or_fixed() {
        let clip = r#"{"model_type": "llava", "text_config": {"model_type": "llama"},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024,
              "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336,
              "patch_size": 14, "num_hidden_layers": 24}}"#;
        let vision = ModelSpec::from_config(clip).unwrap().vision.unwrap();
        assert_eq!((vision.hidden, vision.patches), (1024, 576));
        assert_eq!(vision.image_bytes(), (4 * 1024 + 2 * 4096 + 16 * 576) * 576 * 2);
    }
}
