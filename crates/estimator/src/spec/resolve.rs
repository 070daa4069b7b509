//! From a family description and a configuration to the layers of one model.

use super::layer::{
    AttentionShape, CompressedShape, CrossShape, DenseShape, ExpertsShape, FeedForward,
    GatedDeltaShape, IndexerShape, LatentShape, LayerSpec, Mamba2Shape, MambaShape, Mixer,
    RecurrentShape, ShortConvShape,
};
use super::state::LayerState;
use super::{Architecture, Widths};
use crate::error::EstimatorError;
use crate::family::eval::Scope;
use crate::family::{LayerPart, Section, SectionPlace};
use crate::tensors;

/// Resolves every layer of a model.
pub(super) fn layers(
    scope: &Scope<'_>,
    max_context_tokens: Option<u64>,
) -> Result<Vec<LayerSpec>, EstimatorError> {
    let sections: Vec<_> = scope
        .family
        .sections
        .iter()
        .filter(|section| section.place == SectionPlace::Layer && section.has_layer_parts())
        .collect();
    let count = tensors::layers(scope)?;
    (0..count).map(|index| layer(&scope.at_layer(index), &sections, max_context_tokens)).collect()
}

fn layer(
    scope: &Scope<'_>,
    sections: &[&Section],
    max_context_tokens: Option<u64>,
) -> Result<LayerSpec, EstimatorError> {
    let mut layer = LayerSpec::default();
    for section in sections {
        if !tensors::admitted(scope, section.guard.as_ref())? {
            continue;
        }
        for part in &section.mixers {
            if tensors::admitted(scope, part.guard.as_ref())? {
                layer.mixers.push(mixer(&Arguments { scope, part }, max_context_tokens)?);
            }
        }
        for part in &section.mlps {
            if tensors::admitted(scope, part.guard.as_ref())? {
                layer.feed_forward.push(feed_forward(&Arguments { scope, part })?);
            }
        }
    }
    Ok(layer)
}

/// The arguments of a `mixer` or `mlp` statement at one layer.
struct Arguments<'a> {
    scope: &'a Scope<'a>,
    part: &'a LayerPart,
}

impl Arguments<'_> {
    /// The argument at `position`, which must have a value.
    fn size(&self, position: usize) -> Result<u64, EstimatorError> {
        match self.part.arguments.get(position) {
            Some(expr) => self.scope.size(expr),
            None => Err(self.internal("needs more sizes")),
        }
    }

    /// The argument at `position` where it is given, has a value, and that is not 0.
    fn optional(&self, position: usize) -> Result<Option<u64>, EstimatorError> {
        let Some(expr) = self.part.arguments.get(position) else { return Ok(None) };
        Ok(self.scope.optional(expr)?.filter(|size| *size > 0))
    }

    /// The argument at `position` if it has a value, 0 included.
    fn optional_or_zero(&self, position: usize) -> Result<Option<u64>, EstimatorError> {
        match self.part.arguments.get(position) {
            Some(expr) => self.scope.optional(expr),
            None => Ok(None),
        }
    }

    /// A defect of the description that its parser excludes.
    fn internal(&self, reason: &str) -> EstimatorError {
        self.scope.internal(format!("`{}` {reason}", self.part.kind))
    }
}

fn mixer(given: &Arguments<'_>, max_context_tokens: Option<u64>) -> Result<Mixer, EstimatorError> {
    match given.part.kind {
        "attention" => Ok(Mixer::Attention(attention(given, max_context_tokens)?)),
        "shared_attention" => {
            let own = attention(given, max_context_tokens)?;
            Ok(Mixer::Attention(AttentionShape { shares_cache: true, ..own }))
        }
        "latent" => Ok(Mixer::Latent(LatentShape {
            query_heads: given.size(0)?,
            query_rank: given.optional(1)?,
            kv_rank: given.size(2)?,
            nope_dim: given.size(3)?,
            rope_dim: given.size(4)?,
            value_dim: given.size(5)?,
        })),
        "cross_attention" => Ok(Mixer::Cross(CrossShape {
            query_heads: given.size(0)?,
            kv_heads: given.size(1)?,
            key_dim: given.size(2)?,
            value_dim: given.size(3)?,
            image_tokens: given.size(4)?,
        })),
        "indexer" => {
            Ok(Mixer::Indexer(IndexerShape { heads: given.size(0)?, key_dim: given.size(1)? }))
        }
        "compressed" => Ok(Mixer::Compressed(CompressedShape {
            dim: given.size(0)?,
            ratio_tokens: given.size(1)?,
        })),
        "mamba" | "mamba2" | "gated_delta" | "short_conv" | "recurrent" => recurrence(given),
        "unknown" => Ok(Mixer::Unknown),
        _ => Err(given.internal("is no mixer")),
    }
}

fn attention(
    given: &Arguments<'_>,
    max_context_tokens: Option<u64>,
) -> Result<AttentionShape, EstimatorError> {
    let window = given.optional(4)?;
    Ok(AttentionShape {
        query_heads: given.size(0)?,
        kv_heads: given.size(1)?,
        key_dim: given.size(2)?,
        value_dim: given.size(3)?,
        window,
        cached_window: window
            .filter(|window| max_context_tokens.is_none_or(|longest| *window < longest)),
        shares_cache: false,
    })
}

fn recurrence(given: &Arguments<'_>) -> Result<Mixer, EstimatorError> {
    Ok(match given.part.kind {
        "mamba" => Mixer::Mamba(MambaShape {
            inner: given.size(0)?,
            state_dim: given.size(1)?,
            conv_kernel: given.size(2)?,
            step_rank: given.size(3)?,
        }),
        "mamba2" => Mixer::Mamba2(Mamba2Shape {
            inner: given.size(0)?,
            heads: given.size(1)?,
            groups: given.size(2)?,
            state_dim: given.size(3)?,
            conv_kernel: given.size(4)?,
            state_elem_bytes: given.size(5)?,
        }),
        "gated_delta" => Mixer::GatedDelta(GatedDeltaShape {
            key_heads: given.size(0)?,
            value_heads: given.size(1)?,
            key_dim: given.size(2)?,
            value_dim: given.size(3)?,
            conv_kernel: given.size(4)?,
        }),
        "short_conv" => Mixer::ShortConv(ShortConvShape {
            channels: given.size(0)?,
            conv_kernel: given.size(1)?,
        }),
        _ => Mixer::Recurrent(RecurrentShape {
            conv_elems: given.size(0)?,
            state_elems: given.size(1)?,
            state_elem_bytes: given.size(2)?,
        }),
    })
}

fn feed_forward(given: &Arguments<'_>) -> Result<FeedForward, EstimatorError> {
    match given.part.kind {
        "gated" => Ok(FeedForward::Dense(DenseShape { width: given.size(0)?, gated: true })),
        "plain" => Ok(FeedForward::Dense(DenseShape { width: given.size(0)?, gated: false })),
        "experts" => Ok(FeedForward::Experts(experts(given)?)),
        "plain_experts" => {
            Ok(FeedForward::Experts(ExpertsShape { gated: false, ..experts(given)? }))
        }
        _ => Err(given.internal("is no feed-forward part")),
    }
}

fn experts(given: &Arguments<'_>) -> Result<ExpertsShape, EstimatorError> {
    Ok(ExpertsShape {
        count: given.size(0)?,
        active: given.optional_or_zero(1)?,
        width: given.size(2)?,
        shared_width: given.optional(3)?.unwrap_or(0),
        gated: true,
    })
}

/// Classifies a model by the state that its layers cache.
pub(super) fn architecture(layers: &[LayerSpec]) -> Architecture {
    let mut recurrent = false;
    let mut latent = false;
    let mut attends = false;
    let mut windowed = false;
    for state in layers.iter().flat_map(LayerSpec::states) {
        match state {
            LayerState::Unknown => return Architecture::Unknown,
            LayerState::Recurrent(_) => recurrent = true,
            LayerState::Latent { .. } => latent = true,
            LayerState::Attention { window, .. } => {
                attends = true;
                windowed |= window.is_some();
            }
            LayerState::Indexer { .. }
            | LayerState::Compressed { .. }
            | LayerState::Cross { .. } => {}
        }
    }
    match (recurrent, latent || attends) {
        (true, true) => Architecture::Hybrid,
        (true, false) => Architecture::Ssm,
        (false, true) if latent => Architecture::Mla,
        (false, true) if windowed => Architecture::SlidingWindow,
        (false, true) => Architecture::Standard,
        (false, false) => Architecture::Unknown,
    }
}

/// Widest steps of any layer.
///
/// The feed-forward step is counted by the usual field names instead of by [`LayerSpec`]: the
/// calibration of the peak was measured so. It leaves out shared experts that are stated as a
/// number of experts, and fields under other names.
pub(super) fn widths(scope: &Scope<'_>, layers: &[LayerSpec]) -> Result<Widths, EstimatorError> {
    let mixers: Vec<_> = layers.iter().flat_map(|layer| &layer.mixers).collect();
    let states: Vec<_> = layers.iter().flat_map(LayerSpec::states).collect();
    let head_dim = states.iter().filter_map(LayerState::score_dim).max();
    let query_heads = mixers.iter().filter_map(|mixer| mixer.query_heads()).max().unwrap_or(0);
    let kv_heads = states.iter().filter_map(LayerState::kv_heads).min().unwrap_or(1);
    let first = scope.at_layer(0);
    let dense = named_size(&first, "intermediate_size");
    let active_experts = named_size(&first, "num_experts_per_tok");
    let expert = match named_size(&first, "moe_intermediate_size") {
        0 => dense,
        own => own,
    };
    let shared = named_size(&first, "shared_expert_intermediate_size");
    let experts = active_experts.saturating_mul(expert).saturating_add(shared);
    Ok(Widths {
        hidden: scope.named("hidden_size")?.unwrap_or(0),
        vocabulary: scope.named("vocab_size")?.unwrap_or(0),
        query_heads: if head_dim.is_some() { query_heads } else { 0 },
        group: query_heads.checked_div(kv_heads).unwrap_or(0),
        head_dim: head_dim.unwrap_or(0),
        inner: dense.max(experts),
        recurrent: mixers.iter().filter_map(|mixer| mixer.recurrent_width()).max().unwrap_or(0),
        active_experts,
    })
}

/// The size of this name; 0 where it is absent or no size.
fn named_size(scope: &Scope<'_>, name: &str) -> u64 {
    scope.named(name).ok().flatten().unwrap_or(0)
}
