//! Experts and recurrent states beyond the goldens: contradictory configurations, checkpoints that
//! lack an expert, states that are forked, trimmed and reused.

use std::path::Path;

use crate::support::{Setup, on_engine, relative_difference};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{Engine, EngineConfig, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::{
    ComputeDtype, KernelSet, OpsConfig, Precision, SequenceCache, SequenceRun, cache_file,
};
use mlxcel_testing::golden::VARIANTS;
use serde_json::{Value, json};
use tempfile::TempDir;

const KERNELS: [KernelSet; 2] = [KernelSet::Host, KernelSet::Mlx];

/// Writes the fp32 checkpoint of configuration `name`, with `changes` in its `config.json`.
fn checkpoint(name: &str, changes: &Value) -> TempDir {
    let folder = TempDir::new().unwrap();
    mlxcel_testing::golden::checkpoint(name, &VARIANTS[0], folder.path()).unwrap();
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

fn load(folder: &Path, kv_mode: KvMode) -> mlxcel_runtime::Result<Engine> {
    load_with(KernelSet::Host, folder, kv_mode)
}

fn load_with(kernels: KernelSet, folder: &Path, kv_mode: KvMode) -> mlxcel_runtime::Result<Engine> {
    let ops = OpsConfig {
        kernels,
        threads: Some(1),
        precision: Precision::Exact,
        dtype: ComputeDtype::Fp32,
    };
    let config = EngineConfig { ops, kv_mode, prefill_chunk: 512, weights: Residence::Auto };
    Engine::load(&ModelSource::Folder(folder.to_owned()), config, &mut NoProgress)
}

fn refusal(name: &str, changes: &Value) -> String {
    let folder = checkpoint(name, changes);
    load(folder.path(), KvMode::Fp16).err().map_or_else(String::new, |error| error.to_string())
}

#[test]
fn contradictory_experts_are_rejected() {
    on_engine(|| {
        for (name, changes, why) in [
            ("qwen3_moe", json!({"num_experts_per_tok": 9}), "active experts is 9"),
            ("mixtral", json!({"num_experts_per_tok": 0}), "active experts is 0"),
            ("olmoe", json!({"num_experts": 9}), "experts.8.gate_proj.weight\" is missing"),
            ("olmoe", json!({"intermediate_size": 128}), "[128, 128] expected"),
            ("deepseek_v2", json!({"n_group": 3}), "expert groups is 3"),
            ("deepseek_v2", json!({"topk_method": "dice"}), "topk_method is \"dice\""),
            ("deepseek_v3", json!({"topk_group": 5}), "active expert groups is 5"),
            ("deepseek_v3", json!({"scoring_func": "softmax"}), "scoring_func is \"softmax\""),
            ("deepseek_v3", json!({"kv_lora_rank": 0}), "kv_lora_rank is 0"),
        ] {
            let error = refusal(name, &changes);
            assert!(error.contains(why), "{name} {changes}: {error}");
        }
    });
}

#[test]
fn contradictory_scans_are_rejected() {
    on_engine(|| {
        for (changes, why) in [
            (json!({"n_groups": 0}), "n_groups is 0"),
            (json!({"time_step_limit": [1, 0]}), "time_step_limit is [1, 0]"),
            (json!({"conv_kernel": 3}), "conv1d.weight\" has shape"),
            (json!({"num_heads": 4}), "shape"),
        ] {
            let error = refusal("mamba2", &changes);
            assert!(error.contains(why), "{changes}: {error}");
        }
        let folder = checkpoint("mamba2", &json!({"time_step_limit": [0.0, "Infinity"]}));
        assert!(load(folder.path(), KvMode::Fp16).is_ok());
    });
}

#[test]
fn contradictory_hybrids_are_rejected() {
    on_engine(|| {
        let conv = ["conv", "full_attention", "conv", "conv"];
        let mamba = ["mamba", "attention", "mamba", "mlp"];
        for (name, changes, why) in [
            ("mamba", json!({"state_size": 0}), "state_size is 0"),
            ("mamba", json!({"time_step_rank": "manual"}), "`time_step_rank` is manual"),
            ("falcon_mamba", json!({"use_conv_bias": true, "conv_kernel": 5}), "has shape"),
            ("lfm2", json!({"layer_types": conv[..3]}), "layer_types has 3 entries"),
            ("lfm2", json!({"layer_types": mamba}), "layer_types says \"mamba\" of layer 0"),
            ("lfm2", json!({"full_attn_idxs": [2, 4]}), "full_attn_idxs names layer 4"),
            ("lfm2", json!({"conv_L_cache": 0}), "conv_L_cache is 0"),
            ("granitemoehybrid", json!({"layer_types": mamba}), "says \"mlp\" of layer 3"),
            ("granitemoehybrid", json!({"layer_types": mamba[1..]}), "layer_types has 3 entries"),
            ("granitemoehybrid", json!({"num_experts_per_tok": 7}), "active experts is 7"),
            ("granitemoehybrid", json!({"mamba_n_groups": 3}), "not a multiple of 3 groups"),
            ("qwen3_next", json!({"mlp_only_layers": [4]}), "mlp_only_layers names layer 4"),
            ("qwen3_next", json!({"linear_num_key_heads": 3}), "not a multiple of 3 groups"),
            ("qwen3_next", json!({"full_attention_interval": 0}), "full_attention_interval"),
            ("qwen3_5_moe", json!({"layer_types": ["full_attention"]}), "has 1 entries"),
            ("qwen3_5_moe", json!({"num_experts_per_tok": 9}), "active experts is 9"),
            ("qwen3_5_moe", json!({"num_experts_per_tok": null}), "num_experts_per_tok is missing"),
            ("falcon_h1", json!({"mamba_d_head": 16}), "mamba_n_heads (6) times mamba_d_head (16)"),
            ("falcon_h1", json!({"mamba_rms_norm": true}), "with one group"),
            ("nemotron_h", json!({"hybrid_override_pattern": "M?M*-"}), "\"?\" of layer 1"),
            ("nemotron_h", json!({"hybrid_override_pattern": "EEEEE"}), "layer 0 has experts"),
        ] {
            let error = refusal(name, &changes);
            assert!(error.contains(why), "{name} {changes}: {error}");
        }
        // Layer numbers start at 0.
        let folder = checkpoint("lfm2", &json!({"layer_types": null, "full_attn_idxs": [1]}));
        assert!(load(folder.path(), KvMode::Fp16).is_ok());
    });
}

#[test]
fn latent_caches_reject_turbo_modes() {
    on_engine(|| {
        let folder = checkpoint("deepseek_v2", &json!({}));
        for (mode, kernels) in KvMode::ALL.into_iter().flat_map(|mode| KERNELS.map(|k| (mode, k))) {
            let error = load_with(kernels, folder.path(), mode).err();
            assert_eq!(error.is_some(), mode.is_turbo(), "{mode}");
            let reason = "a latent cache (MLA) takes no turbo mode; use int8 or fp16";
            assert!(error.is_none_or(|error| error.to_string().contains(reason)), "{mode}");
        }
    });
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count).map(|i| u32::try_from(i * 7919 % 512).unwrap()).collect()
}

fn decode(engine: &Engine, cache: &mut SequenceCache, token: u32) -> Vec<f32> {
    engine.forward(&mut [SequenceRun { tokens: &[token], cache }], LogitRows::Last).unwrap()
}

#[test]
fn a_state_can_be_forked_and_cleared_but_not_trimmed() {
    on_engine(|| {
        let families = ["mamba2", "mamba", "lfm2", "granitemoehybrid", "falcon_h1", "qwen3_5"];
        for (name, kernels) in families.into_iter().flat_map(|name| KERNELS.map(|k| (name, k))) {
            let folder = checkpoint(name, &json!({}));
            let source = ModelSource::Folder(folder.path().to_owned());
            let engine = Setup { kernels, ..Setup::default() }.engine(&source);
            let mut cache = engine.new_cache().unwrap();
            assert!(!cache.can_trim());
            let prompt = engine.prefill(&tokens(20), &mut cache, &mut NoProgress).unwrap();
            let mut fork = cache.fork();
            decode(&engine, &mut fork, 99);
            decode(&engine, &mut fork, 100);
            let original = decode(&engine, &mut cache, 17);
            let whole: Vec<u32> = tokens(20).into_iter().chain([17]).collect();
            let mut again = engine.new_cache().unwrap();
            let expected = engine.prefill(&whole, &mut again, &mut NoProgress).unwrap();
            assert!(relative_difference(&original, &expected) < 1e-4, "{kernels:?}");

            let error = cache.trim(5).unwrap_err().to_string();
            assert!(error.contains("a recurrent state cannot go back"), "{error}");
            assert_eq!(cache.tokens(), 21);
            cache.trim(21).unwrap();
            cache.trim(0).unwrap();
            let repeated = engine.prefill(&tokens(20), &mut cache, &mut NoProgress).unwrap();
            assert_eq!(repeated, prompt, "{kernels:?}");

            let path = folder.path().join("cache.safetensors");
            let model = mlxcel_runtime::loading::Fingerprint::of(&source).unwrap();
            let error = cache_file::save(model, &cache, &path).unwrap_err().to_string();
            assert!(
                error.contains("saving a cache with recurrent layers is not supported"),
                "{error}"
            );
        }
    });
}
