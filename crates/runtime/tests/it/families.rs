//! Every family with every KV cache mode: cache sizes equal the estimate, a mode is supported exactly if
//! the estimator says so, and none modifies a weight.

use crate::support::{cosine, on_engine};
use mlxcel_core::{Ops, Pass};
use mlxcel_estimator::{
    Backend, KvMode, Machine, ModelSpec, Phase, Workload, cache_bytes, estimate_dir,
};
use mlxcel_runtime::engine::{ModelSource, NoProgress};
use mlxcel_runtime::families::{self, LanguageModel};
use mlxcel_runtime::loading::{Checkpoint, Residence, WeightSource};
use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision, SequenceCache, SequenceRun};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Crosses a block, and the windows of all test configurations.
const PROMPT_TOKENS: usize = 300;

/// The windows of all test configurations, up to 128 tokens, have left the first block behind.
const TOKENS: usize = 400;

/// One configuration of every family, and those with special windows.
fn configurations() -> impl Iterator<Item = String> {
    let all = mlxcel_testing::golden::configurations().unwrap().into_iter();
    all.filter(|name| !name.contains('-') || name.ends_with("-sliding"))
}

/// A loaded checkpoint of a family.
struct Loaded {
    ops: Ops,
    checkpoint: Checkpoint,
    model: Box<dyn LanguageModel>,
    spec: ModelSpec,
    folder: TempDir,
}

impl Loaded {
    fn new(name: &str, kernels: KernelSet, variant: &str, dtype: ComputeDtype) -> Self {
        let folder = TempDir::new().unwrap();
        let variant =
            mlxcel_testing::golden::VARIANTS.iter().find(|known| known.name == variant).unwrap();
        mlxcel_testing::golden::checkpoint(name, variant, folder.path()).unwrap();
        Self::open(folder, kernels, dtype)
    }

    fn open(folder: TempDir, kernels: KernelSet, dtype: ComputeDtype) -> Self {
        let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let source = ModelSource::Folder(folder.path().into());
        let parsed = families::read_config(&source).unwrap();
        let checkpoint = Checkpoint::open(&source, parsed, Residence::Mapped, kernels).unwrap();
        let ops =
            Ops::new(&OpsConfig { kernels, threads: Some(2), precision: Precision::Exact, dtype })
                .unwrap();
        let model = model(&checkpoint, &ops);
        let spec = ModelSpec::from_config(&config).unwrap();
        Self { ops, checkpoint, model, spec, folder }
    }

    fn cache(&self, mode: KvMode) -> mlxcel_core::Result<SequenceCache> {
        let cache = SequenceCache::new(&self.ops, &self.model.cache_layout(), mode)?;
        Ok(cache.with_states(&self.model.state_layout()))
    }

    /// Estimated bytes of a sequence of `tokens`, prefilled in one chunk.
    fn estimate(&self, mode: KvMode, tokens: usize, phase: Phase) -> Result<usize, String> {
        let workload = Workload::uniform(tokens as u64, 1).with_kv_mode(mode);
        let workload = workload.with_dtype(self.ops.dtype());
        let layers = self.spec.layers.as_ref().unwrap();
        let bytes = cache_bytes(layers, &workload, phase).map_err(|error| error.to_string())?;
        Ok(usize::try_from(bytes.kv.total() + bytes.state_bytes).unwrap())
    }

    /// Logits of the last of `tokens`.
    fn forward(&self, tokens: &[u32], cache: &mut SequenceCache) -> Vec<f32> {
        let mut runs = [SequenceRun { tokens, cache }];
        let mut pass = Pass::new(&self.ops, &mut runs, Vec::new()).unwrap();
        let hidden = self.model.forward(&mut pass).unwrap();
        let hidden = self.ops.rows(&hidden, &[tokens.len() - 1]).unwrap();
        let logits = self.ops.to_f32(&self.model.logits(&self.ops, &hidden).unwrap()).unwrap();
        pass.commit();
        logits
    }

    /// Prefills twice and decodes a token; checks the cache size after the first and last pass.
    fn run(&self, what: &str, mode: KvMode, cache: &mut SequenceCache) -> Vec<f32> {
        let tokens: Vec<u32> =
            (0..TOKENS).map(|i| u32::try_from(i * 7919 % 511).unwrap()).collect();
        self.forward(&tokens[..PROMPT_TOKENS], cache);
        let expected = self.estimate(mode, PROMPT_TOKENS, Phase::Prefill).unwrap();
        assert_eq!(cache.allocated_bytes(), expected, "{what}: bytes after the prefill");
        self.forward(&tokens[PROMPT_TOKENS..TOKENS - 1], cache);
        let logits = self.forward(&tokens[TOKENS - 1..], cache);
        let expected = self.estimate(mode, TOKENS, Phase::Decode).unwrap();
        let found = cache.allocated_bytes();
        match (self.ops.kernels(), mode) {
            // A contiguous buffer is compacted when it next grows.
            (KernelSet::Mlx, _) => {}
            // A window of sealed blocks has one more block while it crosses a block boundary.
            (_, KvMode::Turbo4Delegated) => assert!(found <= expected, "{what}: bytes at rest"),
            _ => assert_eq!(found, expected, "{what}: bytes at rest"),
        }
        assert!(logits.iter().all(|logit| logit.is_finite()), "{what}: logits");
        logits
    }
}

fn model(checkpoint: &Checkpoint, ops: &Ops) -> Box<dyn LanguageModel> {
    let mut progress = NoProgress;
    let source = WeightSource::new(checkpoint, ops, &mut progress).unwrap();
    families::load(&source.root(), checkpoint.config()).unwrap()
}

/// Smallest cosine of a mode's logits to those of fp16, on random weights.
///
/// In a family with random routers an expert that is nearly tied with another may be exchanged by
/// the codes' rounding; only those of [`ROUTED`] met such a tie here. A mode that read the codes of
/// another would be near 0.
fn least_cosine(name: &str, mode: KvMode) -> f64 {
    let routed = ROUTED.contains(&name);
    match mode {
        KvMode::Fp16 => 1.0,
        KvMode::Int8 if routed => 0.99,
        KvMode::Int8 => 0.9995,
        _ if routed => 0.85,
        KvMode::Fp16Turbo3 => 0.965,
        KvMode::Turbo4 => 0.98,
        KvMode::Turbo4Delegated => 0.996,
        _ => 0.99,
    }
}

/// Families in which a quantised cache changed the choice of an expert.
const ROUTED: [&str; 5] = ["gpt_oss", "mixtral", "olmoe", "qwen3_moe", "qwen3_next"];

fn check_modes(name: &str, kernels: KernelSet, variant: &str) {
    let loaded = Loaded::new(name, kernels, variant, ComputeDtype::Checkpoint);
    let weights = loaded.checkpoint.checksum().unwrap();
    let fp16 = || loaded.run(name, KvMode::Fp16, &mut loaded.cache(KvMode::Fp16).unwrap());
    let before = fp16();
    for mode in KvMode::ALL {
        let what = format!("{name} {mode}");
        match (loaded.cache(mode), loaded.estimate(mode, 1, Phase::Decode)) {
            (Ok(mut cache), Ok(_)) => {
                let cosine = cosine(&loaded.run(&what, mode, &mut cache), &before);
                assert!(cosine > least_cosine(name, mode) - 1e-9, "{what}: cosine {cosine}");
            }
            (Err(ours), Err(theirs)) => {
                let ours = ours.to_string();
                for reason in [&ours, &theirs] {
                    let known = ["power of two", "a latent cache (MLA) takes no turbo mode"];
                    assert!(known.iter().any(|known| reason.contains(known)), "{what}: {reason}");
                }
                assert!(ours.contains(mode.name()), "{what}: {ours}");
            }
            (ours, theirs) => panic!(
                "{what}: the cache says {:?}, the estimator {:?}",
                ours.err().map(|error| error.to_string()),
                theirs.err()
            ),
        }
        assert_eq!(loaded.checkpoint.checksum().unwrap(), weights, "{what} changed a tensor");
    }
    assert_eq!(fp16(), before, "{name}: fp16 after all other modes");
}

#[test]
fn cache_sizes_equal_the_estimate_in_every_mode() {
    on_engine(|| configurations().for_each(|name| check_modes(&name, KernelSet::Host, "q4")));
}

#[test]
fn cache_sizes_equal_the_estimate_with_mlx_kernels() {
    on_engine(|| configurations().for_each(|name| check_modes(&name, KernelSet::Mlx, "bf16")));
}

/// In fp32, unquantised values take 32 bits: keys and values, keys only, or the open block of values
/// that are quantised later.
#[test]
fn fp32_cache_sizes_equal_the_estimate() {
    let modes = [KvMode::Fp16, KvMode::Fp16Turbo4, KvMode::Turbo4Delegated];
    on_engine(move || {
        for name in configurations() {
            for kernels in [KernelSet::Host, KernelSet::Mlx] {
                let loaded = Loaded::new(&name, kernels, "bf16", ComputeDtype::Fp32);
                for mode in modes {
                    let what = format!("{name} {mode} {kernels:?}");
                    match loaded.cache(mode) {
                        Ok(mut cache) => drop(loaded.run(&what, mode, &mut cache)),
                        Err(refused) => assert_ne!(mode, KvMode::Fp16, "{what}: {refused}"),
                    }
                }
            }
        }
    });
}

/// MLX's kernels cache in the dtype of the checkpoint's files.
#[test]
fn mlx_kernels_cache_an_fp32_checkpoint_in_fp32() {
    on_engine(|| {
        let tokens: Vec<u32> = (0..300).collect();
        for (variant, kernels) in
            [("f32", KernelSet::Mlx), ("bf16", KernelSet::Mlx), ("f32", KernelSet::Host)]
        {
            let loaded = Loaded::new("qwen3", kernels, variant, ComputeDtype::Checkpoint);
            let mut cache = loaded.cache(KvMode::Fp16).unwrap();
            loaded.forward(&tokens, &mut cache);
            let mut machine = Machine::new(Backend::Cpu);
            if kernels == KernelSet::Mlx {
                machine.kernels = mlxcel_estimator::KernelSet::Mlx;
            }
            let workload = Workload::uniform(300, 1);
            let estimate = estimate_dir(loaded.folder.path(), &workload, &machine).unwrap();
            let bytes = cache.allocated_bytes() as u64;
            assert_eq!(estimate.kv_cache_bytes, Some(bytes), "{variant} {kernels:?}");
            let said = estimate.assumptions.iter().any(|a| a.contains("cache in its type"));
            assert_eq!(said, variant == "f32" && kernels == KernelSet::Mlx);
        }
    });
}

/// For a `config.json` with a window but without `layer_types`, the configuration class determines the
/// windowed layers.
#[test]
fn windows_without_layer_types_agree_with_the_estimator() {
    let cases = [
        ("smollm3", json!({"use_sliding_window": true}), [false, true, false]),
        ("smollm3", json!({"use_sliding_window": false}), [false; 3]),
        (
            "qwen3",
            json!({"use_sliding_window": true, "max_window_layers": 2}),
            [false, false, true],
        ),
        ("qwen3_moe", json!({"use_sliding_window": true, "max_window_layers": 2}), [true; 3]),
    ];
    on_engine(move || {
        for (name, changes, expected) in cases {
            let folder = TempDir::new().unwrap();
            mlxcel_testing::golden::checkpoint(
                name,
                &mlxcel_testing::golden::VARIANTS[0],
                folder.path(),
            )
            .unwrap();
            let path = folder.path().join("config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config["sliding_window"] = json!(64);
            for (key, value) in changes.as_object().unwrap() {
                config[key] = value.clone();
            }
            std::fs::write(&path, config.to_string()).unwrap();
            let loaded = Loaded::open(folder, KernelSet::Host, ComputeDtype::Checkpoint);
            let ours = loaded.model.cache_layout();
            let ours: Vec<_> = ours.iter().map(|layer| layer.window.is_some()).collect();
            assert_eq!(ours, expected, "{name} {changes}");
            loaded.run(name, KvMode::Fp16, &mut loaded.cache(KvMode::Fp16).unwrap());
        }
    });
}

#[test]
fn every_family_has_a_configuration_and_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/families.md");
    let page = std::fs::read_to_string(page).unwrap();
    for family in families::supported() {
        assert!(configurations().any(|name| name == family), "{family}");
        assert!(page.contains(&format!("\n| `{family}` |")), "{family} is not in docs/families.md");
    }
}
