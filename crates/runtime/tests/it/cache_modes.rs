//! Quality of each cache mode, compared with a reference simulation.
use std::path::Path;

use crate::support::{Setup, on_engine};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::eval::comparison::{Comparison, ModeScore};
use mlxcel_runtime::{ComputeDtype, KernelSet, Processor};

/// Mean KL divergence from fp16 in nats, of a float simulation of the same quantisers on the same
/// text; the tests score its first twelve windows.
const SIMULATION: [(KvMode, f64); 5] = [
    (KvMode::Int8, 9.7e-5),
    (KvMode::Fp16Turbo4, 2.2e-3),
    (KvMode::Int8Turbo4, 2.3e-3),
    (KvMode::Fp16Turbo3, 8.6e-3),
    (KvMode::Turbo4, 1.06e-2),
];

#[test]
#[ignore = "needs ../shared"]
fn shared_quality_agrees_with_the_simulation() {
    on_engine(|| {
        let scores = scores(KernelSet::Host, ComputeDtype::Checkpoint, 12);
        for (score, (mode, expected)) in scores[1..].iter().zip(SIMULATION) {
            let kl = score.mean_kl.unwrap();
            assert!(kl < 1.15 * expected, "{mode}: {kl:.2e}, simulated {expected:.2e}");
            // A much lower value would mean that the mode did not run.
            assert!(kl > 0.5 * expected, "{mode}: {kl:.2e}, simulated {expected:.2e}");
            assert!(score.perplexity_change.unwrap().abs() < 0.02, "{score:?}");
        }
        let bytes: Vec<u64> = scores.iter().map(|score| score.bytes_per_token).collect();
        assert_eq!(bytes, [3072, 1584, 1944, 1200, 1848, 816]);
    });
}

/// Equal codes, summed in another order. In fp32, since the rounding of bf16 costs more than int8; two
/// windows, since MLX's CPU backend is slow.
#[test]
#[ignore = "needs ../shared"]
fn shared_quality_is_equal_with_both_kernel_sets() {
    on_engine(|| {
        let [host, mlx] =
            [KernelSet::Host, KernelSet::Mlx].map(|set| scores(set, ComputeDtype::Fp32, 2));
        for ((host, mlx), (mode, _)) in host[1..].iter().zip(&mlx[1..]).zip(SIMULATION) {
            let [host, mlx] = [host, mlx].map(|score| score.mean_kl.unwrap());
            assert!((mlx / host - 1.0).abs() < 0.02, "{mode}: host {host:.3e}, mlx {mlx:.3e}");
        }
    });
}

/// Scores `windows` windows of the text in fp16 and all simulated modes.
fn scores(kernels: KernelSet, dtype: ComputeDtype, windows: usize) -> Vec<ModeScore> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let source = ModelSource::Folder(shared.join("demo-model/bf16"));
    let text = std::fs::read_to_string(shared.join("corpus/fairy-tales-heldout.txt")).unwrap();
    let tokens = Processor::load(&source).unwrap();
    let tokens = tokens.tokenizer().encode_verbatim(&text).unwrap();
    let engine = Setup { kernels, dtype, ..Setup::default() }.engine(&source);
    let modes = SIMULATION.map(|(mode, _)| mode);
    let mut comparison = Comparison::new(&engine, &modes).unwrap();
    tokens.chunks(512).take(windows).for_each(|window| comparison.add(window).unwrap());
    assert_eq!(comparison.tokens(), windows * 511);
    comparison.scores().unwrap()
}
