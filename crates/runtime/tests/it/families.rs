//! Every family with every KV cache mode: what the caches take is what the estimator says, a mode
//! runs or fails as it says, and none touches a weight.

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

/// One configuration of every family, and those with a window of their own.
fn configurations() -> impl Iterator<Item = String> {
    let all = mlxcel_testing::golden::configurations().unwrap().into_iter();
    all.filter(|name| !name.contains('-') || name.ends_with("-sliding"))
}

/// A family's checkpoint, loaded.
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

    /// Bytes of a sequence of `tokens`, prefilled in one chunk, by the estimator.
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

    /// Prefills, goes on, and decodes a token; checks the cache's bytes after the first and last.
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
            // A contiguous buffer shrinks when it next grows.
            (KernelSet::Mlx, _) => {}
            // A window of sealed blocks has one more for as long as it lies across a boundary.
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

/// What a mode may cost: the cosine of its logits to those of fp16, on random weights, where the
/// choice of experts hangs on little. A mode that read another's codes would have none at all.
fn least_cosine(mode: KvMode) -> f64 {
    match mode {
        KvMode::Fp16 => 1.0,
        KvMode::Int8 => 0.99,
        _ => 0.8,
    }
}

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
                assert!(cosine > least_cosine(mode) - 1e-9, "{what}: cosine {cosine}");
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
fn every_mode_takes_what_the_estimator_says_and_touches_no_weight() {
    on_engine(|| configurations().for_each(|name| check_modes(&name, KernelSet::Host, "q4")));
}

#[test]
fn every_mode_of_the_mlx_set_takes_what_the_estimator_says() {
    on_engine(|| configurations().for_each(|name| check_modes(&name, KernelSet::Mlx, "bf16")));
}

/// What is not quantised takes 32 bits where everything is computed in fp32: both sides, keys, and the
/// open block of values that are sealed later.
#[test]
fn fp32_caches_take_what_the_estimator_says() {
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

/// MLX's kernels cache in the type of the checkpoint, which its files state.
#[test]
fn a_checkpoint_in_fp32_is_cached_in_fp32_by_mlx() {
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

/// Where `config.json` gives a window but no `layer_types`, the configuration's class says which layers
/// have it.
#[test]
fn windows_without_layer_types_are_the_estimators() {
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
