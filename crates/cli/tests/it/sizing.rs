//! Black-box tests of `mlxcel inspect` and of the memory check of `mlxcel generate`.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Qwen2.5-0.5B's published shape.
const QWEN: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": true, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16"}"#;

fn folder(config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// Runs the program with no calibration and no variable but `variable`.
fn mlxcel(args: &[&str], variable: Option<(&str, &str)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlxcel"));
    for name in ["MLXCEL_MEMORY_LIMIT", "MLXCEL_HEADROOM_FACTOR", "MLXCEL_KERNELS"] {
        command.env_remove(name);
    }
    command.env("XDG_DATA_HOME", "/nonexistent").envs(variable).args(args).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn inspect(model: &Path, flags: &[&str]) -> Value {
    let mut args = vec!["inspect", "--json", "--backend", "cpu", "-m", model.to_str().unwrap()];
    args.extend(flags);
    json(&mlxcel(&args, None))
}

/// Published: 12 KiB per token in fp16, 96 MiB at 8192 tokens, 6 KiB with int8.
#[test]
fn published_figures() {
    let dir = folder(QWEN);
    for model in [dir.path().to_owned(), dir.path().join("config.json")] {
        let report = inspect(&model, &["--memory", "24GiB"]);
        assert_eq!(report["schema"], "mlxcel.inspect/1");
        assert_eq!(report["kv_bytes_per_token"], 12_288);
        assert_eq!(report["kv_cache_bytes"], 96 << 20);
        assert_eq!(report["inputs"]["context_tokens"], 8192);
        assert_eq!(report["weights_bytes"], 988_065_536);
        assert_eq!(report["available_bytes"], 24_u64 << 30);
        assert_eq!(report["available_source"], "what_if");
        assert_eq!(report["fits"], true);
    }
}

#[test]
fn flags_reach_the_estimate() {
    let dir = folder(QWEN);
    let int8 = inspect(dir.path(), &["--cache-type-k", "int8", "--cache-type-v", "int8"]);
    assert_eq!(int8["kv_bytes_per_token"], 6_144);
    assert_eq!(int8, inspect_again(&int8, dir.path(), &["--kv-cache-mode", "int8"]));
    let fp32 = inspect(dir.path(), &["--dtype", "fp32"]);
    assert_eq!(fp32["kv_bytes_per_token"], 2 * 12_288);
    assert_eq!(fp32["inputs"]["dtype"], "fp32");
    assert_eq!(fp32["inputs"]["cache_type_v"], "fp32");
    assert_eq!(fp32["weights_bytes"], 988_065_536);
    let four = inspect(dir.path(), &["-n", "512", "--batch", "4", "--quant", "int4"]);
    assert_eq!(four["kv_cache_bytes"], 4 * 512 * 12_288);
    assert!(four["weights_bytes"].as_u64().unwrap() < 988_065_536 / 3);
    let sum = inspect(dir.path(), &["-p", "500", "-n", "12"]);
    assert_eq!(sum["inputs"]["context_tokens"], 512);
    assert_eq!(sum["kv_cache_bytes"], 512 * 12_288);
    let whole = inspect(dir.path(), &["-c", "1024", "-p", "500", "-n", "12"]);
    assert_eq!(whole["inputs"]["context_tokens"], 1024);
    assert_eq!(inspect(dir.path(), &["-c", "0"])["inputs"]["context_tokens"], 32_768);
    assert_eq!(inspect(dir.path(), &["-c", "99999"])["inputs"]["context_tokens"], 99_999);
    let chunk = inspect(dir.path(), &["--prefill-chunk", "64"]);
    assert_eq!(chunk["inputs"]["prefill_chunk"], 64);
    let model = dir.path().to_str().unwrap();
    let metal = json(&mlxcel(&["inspect", "--json", "--backend", "metal", "-m", model], None));
    assert_eq!(metal["inputs"]["backend"], "metal");
    // MLX's kernels hold the weights in 32 bits as well.
    let fp32 = ["inspect", "--json", "--backend", "metal", "--dtype", "fp32", "-m", model];
    assert_eq!(json(&mlxcel(&fp32, None))["weights_bytes"], 2 * 988_065_536_u64);
}

/// The report of other flags, with what changes from one moment to the next taken from `first`.
fn inspect_again(first: &Value, model: &Path, flags: &[&str]) -> Value {
    let mut report = inspect(model, flags);
    for key in [
        "available_bytes",
        "verdict",
        "max_context_tokens",
        "max_batch",
        "kv_modes",
        "max_prefill_chunk",
    ] {
        report[key] = first[key].clone();
    }
    report
}

#[test]
fn exit_code_needs_its_flag() {
    let dir = folder(QWEN);
    let args = ["inspect", "-m", dir.path().to_str().unwrap(), "--memory", "512MB", "-n", "14"];
    let output = mlxcel(&args, None);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("DOES NOT FIT: 622.4 MiB over budget"), "{text}");
    let output = mlxcel(&[&args[..], &["--exit-code"]].concat(), None);
    assert_eq!(output.status.code(), Some(2));
}

/// `args` with `variable` fail with one sentence that contains `expected`.
#[track_caller]
fn refused(args: &[&str], variable: Option<(&str, &str)>, expected: &str) {
    let output = mlxcel(args, variable);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains(expected), "{text}");
    assert!(text.starts_with("error: ") && !text.contains("panicked"), "{text}");
}

#[test]
fn bad_input_is_one_sentence() {
    let check = |config: &str, expected: &str| {
        let dir = folder(config);
        refused(&["inspect", "-m", dir.path().to_str().unwrap()], None, expected);
    };
    check("{\"model_type\": \"qwen2\",", "not usable JSON");
    check(&QWEN.replacen("24", "1000000000", 1), "no model has more than");
    check(&QWEN.replacen("896", "-896", 1), "cannot be negative");
    check(&QWEN.replacen("896", "89.6", 1), "cannot be fractional");
    check(&QWEN.replacen("896", "Infinity", 1), "a whole number is needed");
    check(&QWEN.replacen('{', "{\"vocab_size\": 1,", 1), "is given twice");
    refused(&["inspect", "-m", "/nonexistent"], None, "/nonexistent");
    refused(&["inspect", "--memory", "4 potatoes"], None, "a size such as");
    refused(&["inspect", "-n", "0"], None, "--max-tokens");
    let potatoes = Some(("MLXCEL_MEMORY_LIMIT", "4 potatoes"));
    refused(&["inspect"], potatoes, "MLXCEL_MEMORY_LIMIT=4 potatoes: a size such as");
    let factor = Some(("MLXCEL_HEADROOM_FACTOR", "lots"));
    refused(&["inspect"], factor, "MLXCEL_HEADROOM_FACTOR=lots: a number");
}

#[test]
fn broken_checkpoints_are_one_sentence() {
    let dir = folder(QWEN);
    let args = ["inspect", "-m", dir.path().to_str().unwrap()];
    let header = br#"{"a":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    refused(&args, None, "model.safetensors");
    let index = r#"{"weight_map": {"a": "model.safetensors", "b": "lost.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    refused(&args, None, "`lost.safetensors`, which is missing");
}

#[test]
fn a_factor_of_nan_reserves_nothing_and_is_reported() {
    let factor = Some(("MLXCEL_HEADROOM_FACTOR", "NaN"));
    let report = json(&mlxcel(&["inspect", "--json"], factor));
    assert_eq!(report["runtime_headroom_bytes"], 0);
    assert!(report["assumptions"].to_string().contains("keeps nothing free"));
}

const GENERATE: [&str; 7] = ["generate", "-p", "Once", "-n", "300", "--temp", "0"];
const SMALL: Option<(&str, &str)> = Some(("MLXCEL_MEMORY_LIMIT", "13200KiB"));

#[test]
fn generate_refuses_before_loading_and_names_what_fits() {
    let output = mlxcel(&[&GENERATE[..], &["--estimate-memory", "--json"]].concat(), SMALL);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: DOES NOT FIT: ") && text.contains("over budget"), "{text}");
    let refusal: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&refusal["schema"], &refusal["reason"]),
        (&"mlxcel.refusal/1".into(), &"over_budget".into())
    );
    let command = refusal["commands"][0].as_str().unwrap();
    let flags: Vec<&str> = command.split_whitespace().skip(2).collect();
    let accepted = [&["generate", "-p", "Once", "--estimate-memory"], &flags[..]].concat();
    let output = mlxcel(&accepted, SMALL);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn generate_loads_with_force_and_warns_without_the_flag() {
    let force = [&GENERATE[..], &["--estimate-memory", "--no-memory-check"]].concat();
    for args in [&force[..], &GENERATE[..]] {
        let output = mlxcel(args, SMALL);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !output.stdout.is_empty(), "{text}");
        assert!(text.contains("warning: DOES NOT FIT"), "{text}");
    }
    let output = mlxcel(&[&GENERATE[..], &["--estimate-memory"]].concat(), None);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("note: expected peak ") && !text.contains("warning"), "{text}");
}

#[test]
fn a_cache_respects_the_memory_limit() {
    let args = ["bench", "-p", "256", "-n", "0", "-r", "1", "-d", "60000"];
    let limit = |size| mlxcel(&args, Some(("MLXCEL_MEMORY_LIMIT", size)));
    let output = limit("40MiB");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("more bytes would pass the memory limit"), "{text}");
    assert!(limit("4GiB").status.success());
}

#[test]
fn advice_replaces_the_command() {
    let dir = folder(QWEN);
    let path = dir.path().to_str().unwrap();
    for command in [&["inspect", "--recommend"][..], &["generate", "--recommend-quant"]] {
        let args = [command, &["--json", "-m", path]].concat();
        let advice = json(&mlxcel(&args, Some(("MLXCEL_MEMORY_LIMIT", "24GiB"))));
        assert_eq!(advice["schema"], "mlxcel.advice/1");
        assert_eq!(advice["default_kv_mode"], "fp16");
        assert_eq!(advice["asked"]["context_tokens"], 8192);
        assert_eq!(advice["weights"]["quant"], "fp16");
        let ranges = advice["kv_cache"].as_array().unwrap();
        let modes: Vec<_> = ranges.iter().map(|range| &range["recommendation"]["mode"]).collect();
        assert_eq!(modes, ["fp16", "fp16+turbo4", "fp16+turbo4"]);
    }
    let text = mlxcel(&["inspect", "--recommend", "-m", path], None);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("advice") && text.contains("fp16+turbo4"), "{text}");
}

#[test]
fn measurements_override_the_table() {
    let data = tempfile::tempdir().unwrap();
    let kept = ("XDG_DATA_HOME", data.path().to_str().unwrap());
    let text = data.path().join("text.txt");
    std::fs::write(&text, "Once upon a time there lived a king who had three sons. ".repeat(200))
        .unwrap();
    let modes = "fp16,int8,fp16+turbo4";
    let eval = ["eval", "--text", text.to_str().unwrap(), "--kv-cache-mode", modes];
    assert!(mlxcel(&eval, Some(kept)).status.success());
    let advice = json(&mlxcel(&["inspect", "--recommend", "--json", "-n", "8192"], Some(kept)));
    let sources: Vec<_> = advice["kv_cache"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| range["recommendation"]["source"].as_str().unwrap())
        .collect();
    assert!(sources.contains(&"measured"), "{sources:?}");
}

#[test]
fn advice_conflicts_with_modes() {
    for args in [
        &["inspect", "--recommend", "--quant", "int4"][..],
        &["generate", "--recommend-quant", "--kv-cache-mode", "int8"],
    ] {
        assert_eq!(mlxcel(args, None).status.code(), Some(2));
    }
}
