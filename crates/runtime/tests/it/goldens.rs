//! Parity with a pinned mlx-lm: logits of every family on random-weights checkpoints, with both kernel
//! sets, and invariants.
//!
//! `crates/testing/src/golden.rs` describes the goldens. Tolerances: cosine ≥ 0.9999 and the same
//! top-1 on ≥ 99 % of positions in fp32 (fp32 rounding alone leaves 1 − 1e-6 here), ≥ 0.999 in bf16,
//! where mlx-lm's own rounding of activations is what differs.

use std::ops::ControlFlow;

use crate::support::{Golden, Setup, argmax, cosine, on_engine};
use mlxcel_runtime::engine::{Engine, Generation, LogitRows, ModelSource, NoProgress, generate};
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::{ComputeDtype, KernelSet, Processor, SequenceRun};
use mlxcel_testing::golden::{VARIANTS, Variant};

const KERNELS: [KernelSet; 2] = [KernelSet::Host, KernelSet::Mlx];

/// Rows of a family's bf16 goldens that may lie below the floor of all others, and their own floor.
///
/// Two kinds of families amplify the rounding of bf16 activations in mlx-lm, on both sides of the
/// comparison: a router with random weights often has two experts that are nearly tied, and the
/// choice falls differently; a recurrent state accumulates rounding, in Mamba 1 in bf16 itself.
/// On these very rows mlx-lm in bf16 is as far from mlx-lm in fp32 as from us. No row is an
/// outlier in fp32 or 4 bits. The counts and cosines were the same to five digits with AVX-512,
/// AVX2 and portable kernels.
struct Bf16Outliers {
    family: &'static str,
    /// Largest number of such rows among those of one prompt, of 15, or of decoding, of 10.
    rows: usize,
    /// Smallest cosine of any row.
    floor: f64,
}

const BF16_OUTLIERS: [Bf16Outliers; 13] = [
    Bf16Outliers { family: "deepseek_v2", rows: 1, floor: 0.969 },
    Bf16Outliers { family: "deepseek_v3", rows: 2, floor: 0.74 },
    Bf16Outliers { family: "falcon_mamba", rows: 2, floor: 0.998 },
    Bf16Outliers { family: "gpt_oss", rows: 2, floor: 0.949 },
    Bf16Outliers { family: "gpt_oss-mxfp4", rows: 1, floor: 0.997 },
    Bf16Outliers { family: "granitemoehybrid", rows: 8, floor: 0.97 },
    Bf16Outliers { family: "granitemoehybrid-dense", rows: 2, floor: 0.997 },
    Bf16Outliers { family: "mamba", rows: 4, floor: 0.966 },
    Bf16Outliers { family: "mixtral", rows: 2, floor: 0.73 },
    Bf16Outliers { family: "qwen3_5", rows: 1, floor: 0.998 },
    Bf16Outliers { family: "qwen3_5_moe", rows: 1, floor: 0.966 },
    Bf16Outliers { family: "qwen3_moe", rows: 1, floor: 0.992 },
    Bf16Outliers { family: "qwen3_next", rows: 9, floor: 0.87 },
];

/// Checks one configuration in every variant and with both kernel sets.
fn check(name: &'static str) {
    on_engine(move || {
        for variant in &VARIANTS {
            let golden = Golden::load(name, variant);
            for kernels in KERNELS {
                let what = format!("{name} {} {kernels:?}", variant.name);
                check_variant(&what, &golden, variant, kernels);
            }
        }
    });
}

fn check_variant(what: &str, golden: &Golden, variant: &Variant, kernels: KernelSet) {
    let exact = variant.name != "bf16";
    let dtype = if exact { ComputeDtype::Fp32 } else { ComputeDtype::Checkpoint };
    let engine = golden.engine(&Setup { kernels, dtype, ..Setup::default() });
    let least = if exact { 0.9999 } else { 0.999 };
    let vocab = engine.vocab();

    let one = logits(&engine, &golden.tokens[..1], 1);
    assert_rows(what, "one", &one, &golden.one, vocab, least);
    let full = logits(&engine, &golden.tokens, golden.tokens.len());
    let stored: Vec<f32> =
        golden.positions.iter().flat_map(|&p| full[p * vocab..(p + 1) * vocab].to_vec()).collect();
    assert_rows(what, "full", &stored, &golden.full, vocab, least);
    if exact {
        let same =
            full.chunks_exact(vocab).zip(&golden.top1).filter(|(row, top)| argmax(row) == **top);
        let share = same.count() as f64 / golden.top1.len() as f64;
        assert!(share >= 0.99, "{what}: top-1 agrees on {share:.4} of the positions");
    }
    if variant.name == "f32" {
        check_batch(what, &engine, golden, least);
    }
    let decoded = golden.decode.len() / vocab;
    let split = golden.tokens.len() - decoded;
    let mut cache = engine.new_cache().unwrap();
    engine.prefill(&golden.tokens[..split], &mut cache, &mut NoProgress).unwrap();
    let mut rows = Vec::new();
    for token in &golden.tokens[split..] {
        let run = SequenceRun { tokens: std::slice::from_ref(token), cache: &mut cache };
        rows.extend(engine.forward(&mut [run], LogitRows::Last).unwrap());
    }
    assert_rows(what, "decode", &rows, &golden.decode, vocab, least);
}

/// Three prompts of different lengths in one pass equal their single runs.
fn check_batch(what: &str, engine: &Engine, golden: &Golden, least: f64) {
    let vocab = engine.vocab();
    let stored = [2, 7, golden.positions.len() - 1];
    let mut caches = stored.map(|_| engine.new_cache().unwrap());
    let mut runs: Vec<_> = stored
        .iter()
        .zip(&mut caches)
        .map(|(&row, cache)| SequenceRun {
            tokens: &golden.tokens[..=golden.positions[row]],
            cache,
        })
        .collect();
    let expected: Vec<f32> = stored
        .iter()
        .flat_map(|row| &golden.full[row * vocab..(row + 1) * vocab])
        .copied()
        .collect();
    let last = engine.forward(&mut runs, LogitRows::Last).unwrap();
    assert_rows(what, "batch", &last, &expected, vocab, least);
}

fn logits(engine: &Engine, tokens: &[u32], expected: usize) -> Vec<f32> {
    let mut cache = engine.new_cache().unwrap();
    let run = SequenceRun { tokens, cache: &mut cache };
    let logits = engine.forward(&mut [run], LogitRows::All).unwrap();
    assert_eq!(logits.len(), expected * engine.vocab());
    logits
}

fn assert_rows(what: &str, part: &str, ours: &[f32], theirs: &[f32], vocab: usize, least: f64) {
    assert_eq!(ours.len(), theirs.len(), "{what} {part}: number of logits");
    let rows = ours.chunks_exact(vocab).zip(theirs.chunks_exact(vocab));
    let cosines: Vec<f64> = rows.map(|(a, b)| cosine(a, b)).collect();
    let family = what.split(' ').next().unwrap();
    let outliers = BF16_OUTLIERS.iter().find(|known| known.family == family);
    let outliers = outliers.filter(|_| what.contains("bf16"));
    let floor = outliers.map_or(least, |outliers| outliers.floor);
    let most = outliers.map_or(0, |outliers| outliers.rows);
    let below = cosines.iter().filter(|cosine| **cosine < least).count();
    let lowest = cosines.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(
        below <= most && lowest >= floor,
        "{what} {part}: {below} rows below {least} (at most {most}), lowest {lowest} (floor \
         {floor}); cosines {cosines:?}"
    );
}

macro_rules! goldens {
    ($($test:ident = $name:literal;)*) => {
        $(#[test] fn $test() { check($name); })*

        #[test]
        fn every_configuration_is_checked() {
            let mut named = vec![$($name.to_owned()),*];
            named.sort();
            assert_eq!(named, mlxcel_testing::golden::configurations().unwrap());
        }
    };
}

goldens! {
    deepseek_v2 = "deepseek_v2";
    deepseek_v3 = "deepseek_v3";
    falcon_h1 = "falcon_h1";
    falcon_mamba = "falcon_mamba";
    gemma2 = "gemma2";
    gemma2_sliding = "gemma2-sliding";
    gemma3 = "gemma3";
    gemma3_text = "gemma3_text";
    gemma3_vision = "gemma3-vision";
    glm4 = "glm4";
    gpt2 = "gpt2";
    gpt_oss = "gpt_oss";
    gpt_oss_mxfp4 = "gpt_oss-mxfp4";
    granite = "granite";
    granitemoehybrid = "granitemoehybrid";
    granitemoehybrid_dense = "granitemoehybrid-dense";
    lfm2 = "lfm2";
    llama = "llama";
    llama_linear = "llama-linear";
    llama_llama3 = "llama-llama3";
    llama_longrope = "llama-longrope";
    mamba = "mamba";
    mamba2 = "mamba2";
    mistral = "mistral";
    mistral_sliding = "mistral-sliding";
    mixtral = "mixtral";
    mllama = "mllama";
    nemotron_h = "nemotron_h";
    olmo2 = "olmo2";
    olmoe = "olmoe";
    phi = "phi";
    phi3 = "phi3";
    phi3_longrope = "phi3-longrope";
    qwen2 = "qwen2";
    qwen2_5_vl = "qwen2_5_vl";
    qwen2_yarn = "qwen2-yarn";
    qwen3 = "qwen3";
    qwen3_5 = "qwen3_5";
    qwen3_5_moe = "qwen3_5_moe";
    qwen3_next = "qwen3_next";
    qwen3_yarn = "qwen3-yarn";
    qwen3_moe = "qwen3_moe";
    smollm3 = "smollm3";
    starcoder2 = "starcoder2";
    starcoder2_sliding = "starcoder2-sliding";
}

/// 200 greedy tokens of the built-in model in fp32, and their text, equal mlx-lm's.
#[test]
fn the_demo_model_generates_mlx_lms_text() {
    on_engine(|| {
        let golden =
            std::fs::read(mlxcel_testing::golden::path("demo").with_extension("json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let tokens =
            |key: &str| -> Vec<u32> { serde_json::from_value(golden[key].clone()).unwrap() };
        let text = Processor::load(&ModelSource::BuiltIn).unwrap();
        let prompt = text.tokenizer().encode_prompt(golden["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(prompt, tokens("prompt_tokens"));
        for kernels in KERNELS {
            let engine = Setup { kernels, ..Setup::default() }.engine(&ModelSource::BuiltIn);
            let request = Generation {
                prompt: &prompt,
                max_tokens: tokens("tokens").len(),
                sampling: SamplingParams::new(SamplingOptions::default()).unwrap(),
                stop: &[],
                ignore_eos: true,
            };
            let mut tale = String::new();
            let outcome =
                generate(&engine, text.tokenizer(), &request, &mut NoProgress, &mut |piece| {
                    tale.push_str(piece);
                    ControlFlow::Continue(())
                });
            assert_eq!(outcome.unwrap().tokens, tokens("tokens"), "{kernels:?}");
            assert_eq!(tale, golden["text"].as_str().unwrap(), "{kernels:?}");
        }
    });
}
