//! Storage of keys and values, from the cache mode and the compute type.

use crate::kv::{CacheType, KvMode};

/// Type of activations (MLX's kernels) and of unquantised caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// The checkpoint's own type. MLX's kernels cache in it, host kernels always in half precision.
    #[default]
    Checkpoint,
    /// fp32 throughout, the cache included.
    Fp32,
}

impl ComputeDtype {
    /// Bytes of a float that is cached.
    #[must_use]
    pub fn float_bytes(self) -> u64 {
        match self {
            Self::Checkpoint => 2,
            Self::Fp32 => 4,
        }
    }
}

/// A cache mode, and the type of its unquantised sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KvStorage {
    /// Cache mode.
    pub mode: KvMode,
    /// Type that `fp16` stands for.
    pub dtype: ComputeDtype,
}

impl From<KvMode> for KvStorage {
    fn from(mode: KvMode) -> Self {
        Self { mode, dtype: ComputeDtype::default() }
    }
}

impl KvStorage {
    /// Storage of keys.
    #[must_use]
    pub fn keys(self) -> CacheType {
        self.computed(self.mode.keys())
    }

    /// Storage of values.
    #[must_use]
    pub fn values(self) -> CacheType {
        self.computed(self.mode.values())
    }

    /// Storage of unquantised vectors: the open blocks of a delegated mode, keys of images.
    #[must_use]
    pub fn plain(self) -> CacheType {
        self.computed(CacheType::Fp16)
    }

    fn computed(self, cache: CacheType) -> CacheType {
        match (cache, self.dtype) {
            (CacheType::Fp16, ComputeDtype::Fp32) => CacheType::Fp32,
            (cache, _) => cache,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp32_widens_what_is_not_quantised() {
        let fp32 = |mode| KvStorage { mode, dtype: ComputeDtype::Fp32 };
        let sides = |storage: KvStorage| (storage.keys().bits(), storage.values().bits());
        assert_eq!(sides(fp32(KvMode::Fp16)), (32, 32));
        assert_eq!(sides(fp32(KvMode::Fp16Turbo4)), (32, 4));
        assert_eq!(sides(fp32(KvMode::Int8)), (8, 8));
        assert_eq!(fp32(KvMode::Turbo4Delegated).plain().bits(), 32);
        assert_eq!(sides(KvMode::Turbo4Delegated.into()), (16, 4));
        for dtype in [ComputeDtype::Checkpoint, ComputeDtype::Fp32] {
            let plain = KvStorage { dtype, ..KvStorage::default() }.plain();
            assert_eq!(plain.bits(), 8 * dtype.float_bytes());
        }
    }
}
