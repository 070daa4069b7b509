//! Invariants without a reference: chunks, batches and forks change nothing but rounding.

use crate::support::{Golden, Setup, on_engine, relative_difference};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{Engine, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::{ComputeDtype, KernelSet, Precision, SequenceCache, SequenceRun};

/// Tolerance for another order of summation: fp32 rounding over six layers.
const ROUNDING: f32 = 2e-4;

fn tokens(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from((i * 7919 + seed * 131) % 4096).unwrap()).collect()
}

fn engines() -> impl Iterator<Item = (String, Engine)> {
    [KernelSet::Host, KernelSet::Mlx].into_iter().map(|kernels| {
        (
            format!("{kernels:?}"),
            Setup { kernels, ..Setup::default() }.engine(&ModelSource::BuiltIn),
        )
    })
}

fn all_logits(engine: &Engine, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut cache = engine.new_cache().unwrap();
    let mut logits = Vec::new();
    for tokens in tokens.chunks(chunk) {
        let run = SequenceRun { tokens, cache: &mut cache };
        logits.extend(engine.forward(&mut [run], LogitRows::All).unwrap());
    }
    logits
}

#[test]
fn chunks_of_7_equal_one_of_512() {
    on_engine(|| {
        for (kernels, engine) in engines() {
            let tokens = tokens(300, 1);
            let whole = all_logits(&engine, &tokens, 512);
            for chunk in [7, 1, 256] {
                let difference = relative_difference(&all_logits(&engine, &tokens, chunk), &whole);
                assert!(difference < ROUNDING, "{kernels}: chunk {chunk}: {difference}");
            }
        }
    });
}

#[test]
fn batched_equals_single() {
    on_engine(|| {
        for (kernels, engine) in engines() {
            let prompts = [tokens(5, 1), tokens(270, 2), tokens(1, 3)];
            let singles: Vec<Vec<f32>> = prompts
                .iter()
                .map(|p| {
                    engine.prefill(p, &mut engine.new_cache().unwrap(), &mut NoProgress).unwrap()
                })
                .collect();
            let mut caches: Vec<_> = prompts.iter().map(|_| engine.new_cache().unwrap()).collect();
            let mut runs: Vec<_> = prompts
                .iter()
                .zip(&mut caches)
                .map(|(tokens, cache)| SequenceRun { tokens, cache })
                .collect();
            let batch = engine.forward(&mut runs, LogitRows::Last).unwrap();
            for (i, (row, single)) in batch.chunks_exact(engine.vocab()).zip(&singles).enumerate() {
                let difference = relative_difference(row, single);
                assert!(difference < ROUNDING, "{kernels}: sequence {i}: {difference}");
            }
        }
    });
}

#[test]
fn a_fork_is_independent() {
    on_engine(|| {
        for (kernels, engine) in engines() {
            let mut cache = engine.new_cache().unwrap();
            engine.prefill(&tokens(260, 4), &mut cache, &mut NoProgress).unwrap();
            let mut fork = cache.fork();
            let decode = |cache: &mut SequenceCache, token| {
                let run = SequenceRun { tokens: &[token], cache };
                engine.forward(&mut [run], LogitRows::Last).unwrap()
            };
            let first = decode(&mut cache, 17);
            decode(&mut fork, 99);
            decode(&mut fork, 100);
            cache.trim(260).unwrap();
            let again = decode(&mut cache, 17);
            let difference = relative_difference(&again, &first);
            assert!(
                difference < ROUNDING,
                "{kernels}: the fork changed the original: {difference}"
            );
        }
    });
}

#[test]
fn every_mode_is_chunk_invariant() {
    on_engine(|| {
        for kv_mode in KvMode::ALL {
            let engine = Setup { kv_mode, ..Setup::default() }.engine(&ModelSource::BuiltIn);
            check_chunks(&kv_mode.to_string(), &engine, &tokens(300, 5), kv_mode);
        }
    });
}

/// With windows shorter than the prompt; MLX's CPU backend is slow even on a small model.
#[test]
fn every_mode_of_the_mlx_set_is_chunk_invariant_and_the_hosts() {
    on_engine(|| {
        let golden = Golden::load("mistral-sliding", &mlxcel_testing::golden::VARIANTS[0]);
        let tokens: Vec<u32> = tokens(300, 5).into_iter().map(|token| token % 512).collect();
        for kv_mode in KvMode::ALL {
            let engine = |kernels| golden.engine(&Setup { kernels, kv_mode, ..Setup::default() });
            let mlx =
                check_chunks(&format!("{kv_mode}, mlx"), &engine(KernelSet::Mlx), &tokens, kv_mode);
            let host = all_logits(&engine(KernelSet::Host), &tokens, 512);
            let difference = relative_difference(&mlx, &host);
            assert!(difference < rounding(kv_mode), "{kv_mode}: the sets differ by {difference}");
        }
    });
}

/// Returns the logits of one pass, after checking them against passes of 7 tokens.
fn check_chunks(what: &str, engine: &Engine, tokens: &[u32], kv_mode: KvMode) -> Vec<f32> {
    let whole = all_logits(engine, tokens, 512);
    let difference = relative_difference(&all_logits(engine, tokens, 7), &whole);
    assert!(difference < rounding(kv_mode), "{what}: {difference}");
    whole
}

/// Quantised caches round equal values; only sums before the rounding differ, so that a code may flip
/// for a value near a rounding boundary.
fn rounding(kv_mode: KvMode) -> f32 {
    if kv_mode == KvMode::Fp16 { ROUNDING } else { 0.05 }
}

/// A prompt continues from any prefix of another one's cache with bit-identical results, in families
/// with all kinds of layers.
#[test]
fn prefill_is_bit_identical_for_any_chunks() {
    let setup = Setup {
        dtype: ComputeDtype::Checkpoint,
        precision: Precision::Int16,
        prefill_chunk: 64,
        ..Setup::default()
    };
    on_engine(move || {
        let families = ["llama", "mistral-sliding", "gemma2-sliding", "gemma3_text", "phi", "gpt2"];
        let experts =
            ["mixtral", "qwen3_moe", "olmoe", "gpt_oss-mxfp4", "deepseek_v2", "deepseek_v3"];
        for name in families.into_iter().chain(experts) {
            for variant in
                mlxcel_testing::golden::VARIANTS.iter().filter(|variant| variant.name != "f32")
            {
                let golden = Golden::load(name, variant);
                let what = format!("{name} {}", variant.name);
                check_cuts(&what, &golden.engine(&setup), &golden.tokens);
            }
        }
        for kv_mode in KvMode::ALL {
            let engine = Setup { kv_mode, ..setup.clone() }.engine(&ModelSource::BuiltIn);
            check_cuts(&kv_mode.to_string(), &engine, &tokens(300, 7));
        }
    });
}

fn check_cuts(what: &str, engine: &Engine, tokens: &[u32]) {
    let read = |tokens: &[u32], cache: &mut SequenceCache| {
        engine.prefill(tokens, cache, &mut NoProgress).unwrap()
    };
    let decode = |cache: &mut SequenceCache| {
        engine.forward(&mut [SequenceRun { tokens: &[17], cache }], LogitRows::Last).unwrap()
    };
    let mut whole = engine.new_cache().unwrap();
    let expected = read(tokens, &mut whole);
    let next = decode(&mut whole);
    for cut in [9, 129, 256, tokens.len() - 1] {
        let other: Vec<u32> = tokens[..cut].iter().copied().chain(3..24).collect();
        let mut cache = engine.new_cache().unwrap();
        read(&other, &mut cache);
        // A window or a sealed block limits trimming; the prefix ends there.
        if cache.trim(cut).is_err() {
            cache = engine.new_cache().unwrap();
            read(&other[..cut], &mut cache);
        }
        let found = read(&tokens[cut..], &mut cache);
        assert!(found == expected, "{what}: cut at {cut}");
        assert!(decode(&mut cache) == next, "{what}: what follows, cut at {cut}");
    }
}

#[test]
fn mapped_and_read_weights_compute_equal_logits() {
    on_engine(|| {
        let folder = tempfile::tempdir().unwrap();
        for variant in &mlxcel_testing::golden::VARIANTS {
            mlxcel_testing::golden::checkpoint("qwen2", variant, folder.path()).unwrap();
            let source = ModelSource::Folder(folder.path().to_owned());
            let tokens: Vec<u32> = tokens(20, 4).iter().map(|token| token % 256).collect();
            for kernels in [KernelSet::Host, KernelSet::Mlx] {
                let [mapped, read] = [Residence::Mapped, Residence::Read].map(|weights| {
                    let setup = Setup { kernels, weights, ..Setup::default() };
                    all_logits(&setup.engine(&source), &tokens, 512)
                });
                assert!(mapped == read, "{} {kernels:?}", variant.name);
            }
        }
    });
}
