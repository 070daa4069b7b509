//! Hostile and broken input: one clear sentence, or a labelled unknown; never a panic or a zero.

use std::path::Path;

use mlxcel_estimator::{
    Backend, Machine, ModelSpec, WeightSource, Workload, estimate_dir, read_dir,
};

#[track_caller]
fn check(config: &str, expected: &str) {
    let got = match ModelSpec::from_config(config) {
        Ok(spec) => format!("{:?} {}", spec.architecture, spec.assumptions.join("; ")),
        Err(error) => error.to_string(),
    };
    assert!(got.contains(expected), "{got}");
    assert!(!got.contains('\n') && got.len() < 400, "{got}");
}

fn llama(fields: &str) -> String {
    format!(r#"{{"model_type": "llama", {fields}}}"#)
}

#[test]
fn configurations_that_lie() {
    check(&llama(r#""num_hidden_layers": 1000000000"#), "no model has more than 4096");
    check(&llama(r#""hidden_size": -4096"#), "`hidden_size` is -4096: a size cannot be negative");
    check(&llama(r#""hidden_size": 40.96"#), "a size cannot be fractional");
    check(&llama(r#""hidden_size": "4096""#), "a whole number is needed");
    check(&llama(r#""hidden_size": Infinity"#), "a whole number is needed");
    check(&llama(r#""hidden_size": 1e30"#), "too large");
    check(&llama(r#""hidden_size": {"a": 1}"#), "a whole number is needed");
    check(&llama(r#""num_attention_heads": 0"#), "contradict each other");
    check(&llama(r#""hidden_size": 1, "hidden_size": 2"#), "key `hidden_size` is given twice");
    check(r#"{"model_type": "exaone"}"#, "config.json gives no `hidden_size`");
    let rank = r#"{"model_type": "mamba", "time_step_rank": "manual"}"#;
    check(rank, "`time_step_rank` is manual: a whole number is needed");
    let short = r#"{"model_type": "nemotron_h", "layers_block_type": ["mamba"], "hybrid_override_pattern": "M?"}"#;
    check(short, "Unknown");
}

#[test]
fn layer_numbers_that_do_not_exist() {
    let kimi = |numbers: &str| {
        format!(
            r#"{{"model_type": "kimi_linear", "num_hidden_layers": 8,
                "linear_attn_config": {{"full_attn_layers": {numbers}}}}}"#
        )
    };
    check(&kimi("[4, 8]"), "Hybrid");
    let range = "layers are counted from 1 to 8 there";
    check(&kimi("[0, 4]"), &format!("`linear_attn_config.full_attn_layers` is 0: {range}"));
    check(&kimi("[4, 9]"), &format!("is 9: {range}"));
    check(&kimi("[-1]"), range);
    check(&kimi("[1.5]"), range);
    check(&kimi(r#"["a"]"#), range);
    check(&kimi(r#""4""#), "a list of layer numbers is needed");
    let lfm = r#"{"model_type": "lfm2", "num_hidden_layers": 4, "full_attn_idxs": [1, 4]}"#;
    check(lfm, "`full_attn_idxs` is 4: layers are counted from 0 to 3 there");
}

#[test]
fn configurations_that_say_nothing() {
    check("{}", "Unknown config.json has no usable `model_type`");
    check(r#"{"model_type": 7}"#, "no usable `model_type`");
    check(r#"{"model_type": "bert"}"#, "model type `bert` is not known");
    check("", "not usable JSON");
    check("null", "null instead of an object");
    check(&"{\"a\":".repeat(10_000), "recursion limit");
}

#[test]
fn sizes_that_overflow() {
    let huge = llama(&format!(r#""hidden_size": {0}, "vocab_size": {0}, "head_dim": 1"#, u64::MAX));
    let spec = ModelSpec::from_config(&huge);
    assert!(spec.is_err() || spec.unwrap().parameters().is_err());
}

fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

fn estimate(dir: &Path) -> String {
    let workload = Workload::uniform(100, 1);
    estimate_dir(dir, &workload, &Machine::new(Backend::Cpu))
        .map_or_else(|e| e.to_string(), |_| "sized".to_owned())
}

const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 100}"#;

#[test]
fn folders_that_lie() {
    let empty = tempfile::tempdir().unwrap();
    assert!(estimate(empty.path()).contains("cannot read"));
    let dir = folder(TINY);
    assert_eq!(estimate(dir.path()), "sized");
    assert_eq!(estimate(&dir.path().join("config.json")), "sized");
    std::fs::write(dir.path().join("model.safetensors"), [0xff; 20]).unwrap();
    assert!(estimate(dir.path()).contains("model.safetensors: bad safetensors header"));
    std::fs::write(dir.path().join("model.safetensors"), b"").unwrap();
    assert!(estimate(dir.path()).contains("the file ends after 0 bytes"));
}

#[test]
fn an_index_without_any_of_its_shards_is_sized_from_the_configuration() {
    let dir = folder(TINY);
    let index = r#"{"metadata": {"total_size": 5}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(read_dir(dir.path()).unwrap().1.source, WeightSource::Config);
    std::fs::write(dir.path().join("x-1.safetensors"), b"").unwrap();
    assert!(estimate(dir.path()).contains("names `x-2.safetensors`, which is missing"));
}
