//! What each cache mode costs in quality, against the reference simulation.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::eval::compare::Comparison;
use mlxcel_runtime::{ComputeDtype, KernelSet, ModelText};
use support::{Setup, on_engine};

/// Mean KL divergence from fp16 in nats: a float simulation of the same quantisers on the same
/// text, of which the first twelve windows are scored here.
const SIMULATION: [(KvMode, f64); 5] = [
    (KvMode::Int8, 9.7e-5),
    (KvMode::Fp16Turbo4, 2.2e-3),
    (KvMode::Int8Turbo4, 2.3e-3),
    (KvMode::Fp16Turbo3, 8.6e-3),
    (KvMode::Turbo4, 1.06e-2),
];

#[test]
#[ignore = "needs ../shared"]
fn shared_modes_cost_what_the_simulation_says() {
    on_engine(|| check(KernelSet::Host, 12, 0.15));
}

/// Two windows, since MLX's CPU backend is slow: their KL lies further from that of forty.
#[test]
#[ignore = "needs ../shared"]
fn shared_modes_cost_the_same_with_the_mlx_set() {
    on_engine(|| check(KernelSet::Mlx, 2, 0.3));
}

/// Scores `windows` windows of the text in every mode; `more` is by how much of the simulated KL
/// theirs may exceed it.
fn check(kernels: KernelSet, windows: usize, more: f64) {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let source = ModelSource::Folder(shared.join("demo-model/bf16"));
    let text = std::fs::read_to_string(shared.join("corpus/fairy-tales-heldout.txt")).unwrap();
    let tokens = ModelText::load(&source).unwrap();
    let tokens = tokens.tokenizer().encode_verbatim(&text).unwrap();
    // MLX's activations in bf16 would round away what int8 costs.
    let dtype = match kernels {
        KernelSet::Host => ComputeDtype::Checkpoint,
        KernelSet::Mlx => ComputeDtype::Fp32,
    };
    let engine = Setup { kernels, dtype, ..Setup::default() }.engine(&source);
    let modes = SIMULATION.map(|(mode, _)| mode);
    let mut comparison = Comparison::new(&engine, &modes).unwrap();
    tokens.chunks(512).take(windows).for_each(|window| comparison.add(window).unwrap());
    let scores = comparison.scores().unwrap();
    assert_eq!(comparison.tokens(), windows * 511);
    for (score, (mode, expected)) in scores[1..].iter().zip(SIMULATION) {
        let kl = score.mean_kl.unwrap();
        println!("{kernels:?} {mode}: {kl:.3e}");
        assert!(kl < (1.0 + more) * expected, "{mode}: {kl:.2e}, simulated {expected:.2e}");
        // Far below would mean that the mode did not run.
        assert!(kl > 0.5 * expected, "{mode}: {kl:.2e}, simulated {expected:.2e}");
        assert!(score.perplexity_change.unwrap().abs() < 0.02, "{score:?}");
    }
    let bytes: Vec<u64> = scores.iter().map(|score| score.bytes_per_token).collect();
    assert_eq!(bytes, [3072, 1584, 1944, 1200, 1848, 816]);
}
