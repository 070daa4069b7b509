//! The image encoder of a vision model, as far as its own memory is concerned.

use crate::config::Fields;
use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::registry::Chosen;
use crate::machine::KernelSet;

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
    /// Outputs of layers that are kept until the last one's.
    pub kept: u64,
    /// Patches that make a token, where pictures keep their size; `None` where all have one size.
    pub patches_per_token: Option<u64>,
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
        let patches = scope.named("VISION_PATCHES")?.unwrap_or(patches);
        let merged = first(&["v.spatial_merge_size"]);
        let patches_per_token = (side == 0 && merged > 0).then(|| merged.saturating_mul(merged));
        let hidden = first(&["v.embed_dim", "v.hidden_size", "v.vt_hidden_size", "v.width"]);
        let inner = first(&["v.intermediate_size", "v.vt_intermediate_size"]);
        Ok(Some(Self {
            hidden,
            inner: if inner == 0 { hidden.saturating_mul(4) } else { inner },
            heads: first(&[
                "v.num_attention_heads",
                "v.num_heads",
                "v.attention_heads",
                "v.vt_num_attention_heads",
            ]),
            kept: scope.named("VISION_KEPT")?.unwrap_or(0),
            patches,
            patches_per_token,
        }))
    }

    /// What the encoder needs at once for an image that becomes `tokens` tokens, in bytes.
    ///
    /// Host kernels compute in fp32 and keep no scores: the pixels, and of a layer the stream, its norms
    /// and sums, queries and keys with their rotation, values, their copies in blocks, the feed-forward
    /// part, and the outputs of earlier layers that are kept. MLX's kernels compute in 16 bits;
    /// none of the encoders' is known to be fused, so that one layer's scores come on top.
    #[must_use]
    pub fn image_bytes(&self, tokens: u64, kernels: KernelSet) -> u64 {
        const HALF: u64 = 2;
        const SINGLE: u64 = 4;
        let patches = match self.patches_per_token {
            Some(patches) => patches.saturating_mul(tokens),
            None => self.patches,
        };
        let (wide, inner, bytes) = match kernels {
            KernelSet::Host => (14_u64, 3_u64, SINGLE),
            KernelSet::Mlx => (4, 2, HALF),
        };
        let scores = match kernels {
            KernelSet::Host => 0,
            KernelSet::Mlx => self.heads.saturating_mul(patches),
        };
        let activations = wide.saturating_add(self.kept).saturating_mul(self.hidden);
        let per_patch = activations.saturating_add(inner.saturating_mul(self.inner));
        per_patch.saturating_add(scores).saturating_mul(patches).saturating_mul(bytes)
    }
}

#[cfg(test)]
mod tests {
    use crate::ModelSpec;
    use crate::machine::KernelSet;

    #[test]
    fn an_encoder_described_or_fixed() {
        let clip = r#"{"model_type": "llava", "text_config": {"model_type": "llama"},
            "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024,
              "intermediate_size": 4096, "num_attention_heads": 16, "image_size": 336,
              "patch_size": 14, "num_hidden_layers": 24}}"#;
        let vision = ModelSpec::from_config(clip).unwrap().vision.unwrap();
        assert_eq!((vision.hidden, vision.patches, vision.patches_per_token), (1024, 576, None));
        let mlx = (4 * 1024 + 2 * 4096 + 16 * 576) * 576 * 2;
        assert_eq!(vision.image_bytes(576, KernelSet::Mlx), mlx);
        let host = (14 * 1024 + 3 * 4096) * 576 * 4;
        assert_eq!(vision.image_bytes(1, KernelSet::Host), host, "its size is fixed");
    }

    /// Tiles, in rows of whole eights, whatever the picture.
    #[test]
    fn tiles_are_all_computed() {
        let llama = r#"{"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"},
            "vision_config": {"image_size": 560, "attention_heads": 16}}"#;
        let vision = ModelSpec::from_config(llama).unwrap().vision.unwrap();
        assert_eq!((vision.heads, vision.patches, vision.kept), (16, 4 * 1608, 5));
        let host = ((14 + 5) * 1280 + 3 * 5120) * 4 * 1608 * 4;
        assert_eq!(vision.image_bytes(6404, KernelSet::Host), host);
    }

    #[test]
    fn pictures_that_keep_their_size() {
        let qwen = r#"{"model_type": "qwen2_5_vl", "vision_config": {"hidden_size": 1280,
            "intermediate_size": 3420, "num_heads": 16, "spatial_merge_size": 2}}"#;
        let vision = ModelSpec::from_config(qwen).unwrap().vision.unwrap();
        assert_eq!((vision.heads, vision.patches_per_token), (16, Some(4)));
        let host = |tokens| vision.image_bytes(tokens, KernelSet::Host);
        assert_eq!(host(300), (14 * 1280 + 3 * 3420) * 1200 * 4);
        assert_eq!(host(u64::MAX), u64::MAX);
    }
}
