//! Saved caches: a restored cache continues like the original; a mismatching one is rejected.
use std::path::Path;

use crate::support::{Golden, Setup, on_engine};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{Engine, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::loading::Fingerprint;
use mlxcel_runtime::{ComputeDtype, KernelSet, SequenceCache, SequenceRun, cache_file};

fn prompt(count: u32) -> Vec<u32> {
    (0..count).map(|i| i * 7919 % 512).collect()
}

fn next(engine: &Engine, cache: &mut SequenceCache) -> Vec<f32> {
    engine.forward(&mut [SequenceRun { tokens: &[17], cache }], LogitRows::Last).unwrap()
}

fn model() -> Fingerprint {
    Fingerprint::of(&ModelSource::BuiltIn).unwrap()
}

fn engine(kernels: KernelSet, kv_mode: KvMode) -> Engine {
    let setup = Setup { kernels, kv_mode, dtype: ComputeDtype::Checkpoint, ..Setup::default() };
    setup.engine(&ModelSource::BuiltIn)
}

fn saved(engine: &Engine, path: &Path) -> SequenceCache {
    let mut cache = engine.new_cache().unwrap();
    engine.prefill(&prompt(300), &mut cache, &mut NoProgress).unwrap();
    cache_file::save(model(), &cache, path).unwrap();
    cache
}

fn check_goes_on(engine: &Engine, path: &Path) {
    let mut cache = saved(engine, path);
    let what = format!("{:?} {}", engine.ops().kernels(), cache.mode());
    let mut loaded = cache_file::load(engine, model(), path).unwrap();
    assert_eq!(loaded.tokens(), 300);
    assert_eq!(loaded.allocated_bytes(), cache.allocated_bytes(), "{what}");
    assert!(next(engine, &mut loaded) == next(engine, &mut cache), "{what}");
}

#[test]
fn a_restored_cache_continues_like_the_original() {
    on_engine(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.safetensors");
        for mode in KvMode::ALL {
            check_goes_on(&engine(KernelSet::Host, mode), &path);
        }
        // MLX's CPU backend is slow: a smaller model.
        let golden = Golden::load("mistral-sliding", &mlxcel_testing::golden::VARIANTS[0]);
        for kv_mode in KvMode::ALL {
            let setup = Setup { kernels: KernelSet::Mlx, kv_mode, ..Setup::default() };
            check_goes_on(&golden.engine(&setup), &path);
        }
    });
}

#[test]
fn mismatching_files_are_rejected() {
    on_engine(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.safetensors");
        let int8 = engine(KernelSet::Host, KvMode::Int8);
        saved(&int8, &path);
        let refused = |engine: &Engine, model, why: &str| {
            let error = cache_file::load(engine, model, &path).err().unwrap().to_string();
            assert!(error.contains(why) && error.contains("cache.safetensors"), "{error}");
        };
        let fp16 = engine(KernelSet::Host, KvMode::Fp16);
        refused(&fp16, model(), "its mode is \"int8\", here \"fp16\" is needed");
        refused(&engine(KernelSet::Mlx, KvMode::Fp16), model(), "does not fit");
        refused(&engine(KernelSet::Mlx, KvMode::Int8), model(), "its layout is \"blocks");
        let whole = std::fs::read(&path).unwrap();
        let replace = |from: &str, to: &str| {
            let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut bytes = whole.clone();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            std::fs::write(&path, bytes).unwrap();
        };
        replace("mlxcel.kv-cache/1", "mlxcel.kv-cache/2");
        refused(&int8, model(), "its format is \"mlxcel.kv-cache/2\"");
        replace(&model().to_string(), "0123456789abcdef");
        refused(&int8, model(), "its model is \"0123456789abcdef\"");
        replace("\"300\"", "\"900\"");
        refused(&int8, model(), "layer 0 does not hold 900 tokens");
        for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            refused(&int8, model(), "");
        }
    });
}
