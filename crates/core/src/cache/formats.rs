//! Formats in which a layer's cache is stored, by mode.

use mlxcel_estimator::{CacheType, KvMode, KvStorage};
use mlxcel_kernels::kv::{BlockLayout, KV_BLOCK_TOKENS, KvFormat, ValueStore};
use mlxcel_kernels::turbo::{ScaleRule, Side};

use crate::attention::LayerLayout;
use crate::error::TrimLimit;
use crate::{Error, Result};

/// The scale of Turbo values. By KL divergence on the demo model it beats the renormalised one by
/// 1 % and the plain norm by 5 to 20 % (`docs/turbo-kv-cache.md`).
const VALUE_SCALE: ScaleRule = ScaleRule::Unbiased;

/// Storage format of a layer's keys and values: host blocks as their layout says, the MLX set's
/// arrays in the same formats, floats in the type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerFormat {
    /// Blocks that are being filled.
    pub(super) open: BlockLayout,
    /// Format to which the values of a full block are re-coded (`turbo4-delegated`).
    pub(super) sealed: Option<KvFormat>,
}

impl LayerFormat {
    /// Formats of the storage's mode. Fails with the reason when it cannot run on this layer.
    pub(super) fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        let mode = storage.mode;
        let key = format(storage.keys(), mode)?;
        let (open_value, sealed) = match storage.values() {
            CacheType::Turbo4Delegated => (storage.plain(), Some(KvFormat::Turbo4)),
            other => (other, None),
        };
        let value = match layout.latent {
            true if mode.is_turbo() => {
                let reason = "a latent cache (MLA) takes no turbo mode; use int8 or fp16";
                return Err(Error::KvMode { mode, reason: reason.into() });
            }
            true => ValueStore::KeyPrefix,
            false => ValueStore::Own(format(open_value, mode)?),
        };
        let open = BlockLayout::new(layout.kv_heads, layout.key_dim, layout.value_dim, key, value)
            .map_err(|error| refused(mode, &error))?
            .with_value_scale(VALUE_SCALE);
        if let Some(sealed) = sealed {
            open.with_value_format(sealed).map_err(|error| refused(mode, &error))?;
        }
        Ok(Self { open, sealed })
    }

    /// Storage of keys.
    pub(super) fn keys(&self) -> KvSide {
        let format = self.open.key();
        let dim = self.open.key_dim();
        KvSide { side: Side::Key, format, dim, rule: ScaleRule::Unbiased }
    }

    /// Storage in `format` of values that are not part of their keys.
    pub(super) fn values(&self, format: KvFormat) -> KvSide {
        let dim = self.open.value_dim();
        let rule = self.open.value_scale();
        KvSide { side: Side::Value, format, dim, rule }
    }
}

/// Storage format of one side of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvSide {
    pub(super) side: Side,
    pub(super) format: KvFormat,
    /// Coordinates of a row.
    pub(super) dim: usize,
    /// Of a Turbo format.
    pub(super) rule: ScaleRule,
}

/// The error of a trim to a place that a sliding window has dropped.
pub(super) fn dropped_by_window(tokens: usize, first: usize) -> Error {
    Error::Trim { to: tokens, limit: TrimLimit::Window { first } }
}

/// The error of a trim into a sealed block.
pub(super) fn sealed_block(tokens: usize) -> Error {
    let start = tokens - tokens % KV_BLOCK_TOKENS;
    Error::Trim { to: tokens, limit: TrimLimit::SealedBlock { start } }
}

/// The error of an image whose rows attend to each other where blocks are sealed.
pub(crate) fn sealed_image() -> Error {
    let reason = "an image would attend to sealed values of its own; use another mode".into();
    Error::KvMode { mode: KvMode::Turbo4Delegated, reason }
}

/// The kernels, which depend on no other crate, define the block size again.
const _: () = assert!(
    KV_BLOCK_TOKENS as u64 == mlxcel_estimator::KV_BLOCK_TOKENS,
    "kernels and estimator disagree on the size of a block"
);

/// Bytes of one block of a layer by the estimator's formula, keys, values and scales.
pub(super) fn block_bytes(layout: &LayerLayout, storage: KvStorage) -> Result<u64> {
    let mode = storage.mode;
    let heads = layout.kv_heads as u64;
    let keys = mlxcel_estimator::block_bytes(storage.keys(), heads, layout.key_dim as u64)
        .map_err(|error| refused(mode, &error))?;
    if layout.latent {
        return Ok(keys.total());
    }
    let values = mlxcel_estimator::block_bytes(storage.values(), heads, layout.value_dim as u64)
        .map_err(|error| refused(mode, &error))?;
    Ok(keys.plus(values).total())
}

/// The error of a mode that cannot hold a layer's vectors.
fn refused(mode: KvMode, error: &dyn std::error::Error) -> Error {
    Error::KvMode { mode, reason: error.to_string() }
}

fn format(kind: CacheType, mode: KvMode) -> Result<KvFormat> {
    Ok(match kind {
        CacheType::Fp16 => KvFormat::F16,
        CacheType::Fp32 => KvFormat::F32,
        CacheType::Int8 => KvFormat::Int8,
        CacheType::Turbo4 => KvFormat::Turbo4,
        CacheType::Turbo3 => KvFormat::Turbo3,
        other => {
            return Err(Error::KvMode {
                mode,
                reason: format!("a cache cannot store {}", other.name()),
            });
        }
    })
}
