//! The image encoder of a vision model, as far as its memory is concerned.

use crate::config::Fields;
use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::registry::SelectedFamilies;
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
    /// Outputs of intermediate layers that are held until the end of the encoder.
    pub held_outputs: u64,
    /// Patches that are merged into a token, if images keep their size; `None` if all have one size.
    pub patches_per_token: Option<u64>,
}

/// Default number of patches, without an image size and a number of positions: 1024 × 1024 by 16.
const USUAL_PATCHES: u64 = 4096;

impl VisionSpec {
    pub(crate) fn read(
        fields: &Fields,
        chosen: &SelectedFamilies,
    ) -> Result<Option<Self>, EstimatorError> {
        let family = chosen.wrapper.as_ref().unwrap_or(&chosen.text);
        let scope = Scope::new(fields, family).over(&chosen.text);
        if !fields.has_vision() && scope.named("VISION")?.is_none() {
            return Ok(None);
        }
        let side = first_size(&scope, &["v.image_size"])
            .checked_div(first_size(&scope, &["v.patch_size"]))
            .unwrap_or(0);
        let patches =
            match (side.saturating_mul(side), first_size(&scope, &["v.num_position_embeddings"])) {
                (0, 0) => USUAL_PATCHES,
                (0, positions) => positions,
                (patches, _) => patches,
            };
        let patches = scope.named("VISION_PATCHES")?.unwrap_or(patches);
        let merged = first_size(&scope, &["v.spatial_merge_size"]);
        let patches_per_token = (side == 0 && merged > 0).then(|| merged.saturating_mul(merged));
        let hidden =
            first_size(&scope, &["v.embed_dim", "v.hidden_size", "v.vt_hidden_size", "v.width"]);
        let inner = first_size(&scope, &["v.intermediate_size", "v.vt_intermediate_size"]);
        Ok(Some(Self {
            hidden,
            inner: if inner == 0 { hidden.saturating_mul(4) } else { inner },
            heads: first_size(
                &scope,
                &[
                    "v.num_attention_heads",
                    "v.num_heads",
                    "v.attention_heads",
                    "v.vt_num_attention_heads",
                ],
            ),
            held_outputs: scope.named("VISION_HELD_OUTPUTS")?.unwrap_or(0),
            patches,
            patches_per_token,
        }))
    }

    /// Peak memory of encoding an image that becomes `tokens` tokens, in bytes.
    ///
    /// Host kernels compute in fp32 and hold no scores: the pixels, and of one layer the stream, its
    /// norms and sums, queries and keys with their rotation, values, their copies in blocks and the
    /// feed-forward part, beside the outputs of earlier layers that are held. MLX's kernels compute in
    /// 16 bits; none of an encoder is known to be fused, so one layer's scores are added.
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
        let activations = wide.saturating_add(self.held_outputs).saturating_mul(self.hidden);
        let per_patch = activations.saturating_add(inner.saturating_mul(self.inner));
        per_patch.saturating_add(scores).saturating_mul(patches).saturating_mul(bytes)
    }
}

/// The first of these sizes that has a value; 0 if none has.
fn first_size(scope: &Scope<'_>, names: &[&str]) -> u64 {
    names.iter().find_map(|name| scope.named(name).ok().flatten()).unwrap_or(0)
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
        assert_eq!((vision.heads, vision.patches, vision.held_outputs), (16, 4 * 1608, 5));
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
