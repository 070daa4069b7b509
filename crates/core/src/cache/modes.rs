//! From a mode's name to the formats that a layer's cache stores.

use mlxcel_estimator::{CacheType, KvMode, KvStorage};
use mlxcel_kernels::kv::{BlockLayout, KV_BLOCK_TOKENS, KvFormat, ValueStore};
use mlxcel_kernels::turbo::{ScaleRule, Side};

use crate::attention::LayerLayout;
use crate::{Error, Result};

/// The scale of Turbo values. By KL divergence on the demo model it beats the renormalised one by
/// 1 % and the plain norm by 5 to 20 % (`docs/turbo-kv-cache.md`).
const VALUE_SCALE: ScaleRule = ScaleRule::Unbiased;

/// How a layer's keys and values are stored: host blocks as their layout says, the MLX set's arrays
/// in the same formats, floats in the type of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerFormat {
    /// Blocks that are being filled.
    pub(super) open: BlockLayout,
    /// What the values of a full block are re-coded to (`turbo4-delegated`).
    pub(super) sealed: Option<KvFormat>,
}

impl LayerFormat {
    /// The formats of `mode`, or why it cannot run on this layer.
    pub(super) fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        let mode = storage.mode;
        let refuse =
            |error: mlxcel_kernels::KernelError| Error::KvMode { mode, reason: error.to_string() };
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
            .map_err(refuse)?
            .with_value_scale(VALUE_SCALE);
        if let Some(sealed) = sealed {
            open.with_value_format(sealed).map_err(refuse)?;
        }
        Ok(Self { open, sealed })
    }

    /// How keys are stored.
    pub(super) fn keys(&self) -> KvSide {
        let (format, dim) = (self.open.key(), self.open.key_dim());
        KvSide { side: Side::Key, format, dim, rule: ScaleRule::Unbiased }
    }

    /// How values of their own are stored in `format`.
    pub(super) fn values(&self, format: KvFormat) -> KvSide {
        let (dim, rule) = (self.open.value_dim(), self.open.value_scale());
        KvSide { side: Side::Value, format, dim, rule }
    }
}

/// How one side of a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvSide {
    pub(super) side: Side,
    pub(super) format: KvFormat,
    /// Coordinates of a row.
    pub(super) dim: usize,
    /// Of a Turbo format.
    pub(super) rule: ScaleRule,
}

/// Why a place that a query at it could not see back from is no place to trim to.
pub(super) fn dropped_by_window(tokens: usize, first: usize) -> Error {
    let what =
        format!("cannot trim to {tokens} tokens: the sliding window has dropped the first {first}");
    Error::Cache { what }
}

/// Why a place in a sealed block is no place to trim to.
pub(super) fn sealed_block(tokens: usize) -> Error {
    let start = tokens - tokens % KV_BLOCK_TOKENS;
    let what = format!(
        "cannot trim to {tokens} tokens: the block from {start} on is sealed; trim to {start}"
    );
    Error::Cache { what }
}

/// Why images whose rows see each other cannot run where blocks are sealed.
pub(crate) fn sealed_image() -> Error {
    let reason = "an image would see sealed values of its own; use another mode".into();
    Error::KvMode { mode: KvMode::Turbo4Delegated, reason }
}

/// The kernels, which depend on nobody, state the block size again.
const _: () = assert!(
    KV_BLOCK_TOKENS as u64 == mlxcel_estimator::KV_BLOCK_TOKENS,
    "kernels and estimator disagree on the size of a block"
);

/// Bytes of one block of a layer by the estimator's formula, keys, values and scales.
pub(super) fn block_bytes(layout: &LayerLayout, storage: KvStorage) -> Result<u64> {
    let mode = storage.mode;
    let side = |cache: CacheType, dim: usize| {
        mlxcel_estimator::block_bytes(cache, layout.kv_heads as u64, dim as u64)
            .map_err(|error| Error::KvMode { mode, reason: error.to_string() })
    };
    let keys = side(storage.keys(), layout.key_dim)?;
    if layout.latent {
        return Ok(keys.total());
    }
    Ok(keys.plus(side(storage.values(), layout.value_dim)?).total())
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
