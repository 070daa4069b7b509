//! Broken models: exit code 1, one sentence on stderr, nothing on stdout.

use super::support::{Model, assert_refused};
use serde_json::json;

/// A quantised matrix of the model, and a vector.
const MATRIX: &str = "model.layers.0.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";

#[test]
fn the_intact_model_runs() {
    let model = Model::new();
    let path = model.path().to_str().unwrap();
    let output = super::support::mlxcel(&["generate", "-q", "-m", path, "-p", "hello", "-n", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.ends_with(b"\n"));
}

#[test]
fn folders() {
    assert_refused(&["generate", "-m", "/no/such/folder", "-p", "x"], &["/no/such/folder"]);
    assert_refused(&["bench", "-m", "/no/such/folder"], &["/no/such/folder"]);
    assert_refused(&["eval", "-m", "/no/such/folder", "--tokens", "1"], &["/no/such/folder"]);
    Model::new().without("config.json").refused(&["config.json: No such file"]);
    Model::new().without("tokenizer.json").refused(&["tokenizer.json is missing"]);
    Model::new().without("model.safetensors").refused(&["holds no model.safetensors"]);
    let model = Model::new();
    let file = model.file("config.json");
    assert_refused(&["generate", "-m", file.to_str().unwrap(), "-p", "x"], &["is a file"]);
}

#[test]
fn an_unknown_family_is_reported_first() {
    let model = Model::new().config("model_type", "\"martian\"").replaced(b"rubbish");
    let said = ["\"martian\" is not supported", "(supported: ", " llama, ", "starcoder2)"];
    model.without("tokenizer.json").refused(&said);
    Model::new().config("model_type", "null").refused(&["model_type is missing"]);
}

#[test]
fn config_files_without_a_configuration() {
    let broken = |bytes: &[u8], expected: &str| {
        let model = Model::new();
        std::fs::write(model.file("config.json"), bytes).unwrap();
        model.refused(&["config.json", expected]);
    };
    broken(b"", "not usable JSON");
    broken(b"{\"model_type\": \"llama\"", "not usable JSON");
    broken(b"[1, 2]", "instead of an object");
    broken(b"{\"model_type\": \"llama\xff\"}", "not UTF-8");
    broken(b"{\"model_type\": \"llama\"}", "is missing");
}

#[test]
fn numbers_written_by_python_are_accepted() {
    for (key, value) in [("time_step_limit", "[0.0, Infinity]"), ("router_bias", "NaN")] {
        let model = Model::new().config(key, value);
        let path = model.path().to_str().unwrap();
        let output =
            super::support::mlxcel(&["generate", "-q", "-m", path, "-p", "hello", "-n", "2"]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Model::new().config("rms_norm_eps", "NaN").refused(&["config.json"]);
}

#[test]
fn contradictory_configurations() {
    let refused = |key: &str, value: &str, expected: &[&str]| {
        Model::new().config(key, value).refused(expected);
    };
    refused("num_key_value_heads", "3", &["not a multiple of num_key_value_heads (3)"]);
    refused("num_attention_heads", "0", &["num_attention_heads is 0"]);
    refused("hidden_size", "18446744073709551615", &["hidden_size is 18446744073709551615"]);
    refused("intermediate_size", "1152921504606846976", &["intermediate_size is"]);
    refused("intermediate_size", "-5", &["intermediate_size is -5"]);
    refused("num_hidden_layers", "1000000000", &["num_hidden_layers is 1000000000"]);
    refused("num_hidden_layers", "9", &["model.layers.", "is missing"]);
    refused("layer_types", "[\"full_attention\"]", &["layer_types has 1 entries"]);
    refused("vocab_size", "9999", &["model.embed_tokens", "shape", "[9999, "]);
    refused(
        "rope_scaling",
        "{\"type\":\"magic\",\"factor\":2}",
        &["rope_scaling.type is \"magic\", which is not supported"],
    );
    refused(
        "rope_scaling",
        "{\"type\":\"linear\",\"factor\":0}",
        &["rope_scaling.factor is 0, a positive number"],
    );
    refused("rope_theta", "-1.0", &["rope"]);
    let quantization = "{\"bits\":18446744073709551615,\"group_size\":64}";
    refused("quantization", quantization, &["cannot be quantised"]);
    refused("quantization", "{\"bits\":7,\"group_size\":64}", &["7 bits"]);
    refused("quantization", "{\"bits\":4,\"group_size\":0}", &["groups of 0"]);
    refused("quantization", "{\"bits\":8,\"group_size\":64}", &["shape"]);
}

#[test]
fn tensors_that_contradict_the_configuration() {
    let model = Model::new().header(|h| {
        h.as_object_mut().unwrap().remove(NORM);
    });
    model.refused(&["model.safetensors"]);
    let model = Model::new().header(|h| {
        let tensor = h.as_object_mut().unwrap().remove(NORM).unwrap();
        h["model.norm.renamed"] = tensor;
    });
    model.refused(&["\"model.norm.weight\" is missing from"]);
    let model = Model::new().header(|h| {
        let rows = h[MATRIX]["shape"][0].as_u64().unwrap();
        let cols = h[MATRIX]["shape"][1].as_u64().unwrap();
        h[MATRIX]["shape"] = json!([cols, rows]);
    });
    model.refused(&[MATRIX, "has shape", "expected from config.json"]);
    let model = Model::new().header(|h| h[MATRIX]["dtype"] = json!("I32"));
    model.refused(&[MATRIX, "has dtype I32"]);
}

#[test]
fn wrong_headers() {
    let lie = |change: &dyn Fn(&mut serde_json::Value), expected: &[&str]| {
        Model::new().header(change).refused(&[&["model.safetensors"], expected].concat());
    };
    let offsets = |begin: u64, end: u64| {
        move |h: &mut serde_json::Value| h[NORM]["data_offsets"] = json!([begin, end])
    };
    lie(&offsets(0, 1 << 50), &[NORM, "would end at byte"]);
    lie(&offsets(u64::MAX - 1, u64::MAX), &[NORM]);
    lie(&offsets(8, 4), &[NORM, "before it begins"]);
    lie(&offsets(0, 0), &[NORM]);
    lie(&|h| h[NORM]["shape"] = json!([1_u64 << 40, 1_u64 << 40]), &[NORM]);
    lie(&|h| h[NORM]["dtype"] = json!("F12"), &[NORM, "F12"]);
    lie(&|h| h[NORM]["shape"] = json!([-1]), &["bad safetensors header"]);
    lie(&|h| h[NORM]["data_offsets"] = h[MATRIX]["data_offsets"].clone(), &[]);
    lie(&|h| *h = json!({}), &["model.safetensors"]);
}

#[test]
fn overlapping_tensors() {
    let model = Model::new().header(|h| {
        let size = |v: &serde_json::Value| v[1].as_u64().unwrap() - v[0].as_u64().unwrap();
        let bytes = size(&h[NORM]["data_offsets"]);
        let begin = h[MATRIX]["data_offsets"][0].as_u64().unwrap();
        h[NORM]["data_offsets"] = json!([begin, begin + bytes]);
    });
    model.refused(&["model.safetensors", "overlap"]);
}

#[test]
fn truncated_and_empty_files() {
    let cut = |bytes: usize, expected: &str| {
        let model = Model::new();
        let weights = model.weights();
        model.replaced(&weights[..bytes]).refused(&["model.safetensors", expected]);
    };
    cut(0, "ends after 0 bytes");
    cut(7, "ends after 7 bytes");
    cut(100, "bytes of header");
    let whole = Model::new().weights().len();
    cut(whole - 1, "would end at byte");
    let mut lie = u64::MAX.to_le_bytes().to_vec();
    lie.extend_from_slice(b"{}");
    Model::new().replaced(&lie).refused(&["model.safetensors", "bytes of header"]);
}

#[test]
fn a_header_of_a_hundred_megabytes() {
    let length: u64 = 100_000_001;
    let model = Model::new().replaced(&length.to_le_bytes());
    let file = std::fs::OpenOptions::new().append(true).open(model.file("model.safetensors"));
    file.unwrap().set_len(length + 8).unwrap();
    model.refused(&["model.safetensors", "limit of 100000000"]);
}

#[test]
fn broken_text_files() {
    let broken = |name: &str, bytes: &[u8]| {
        let model = Model::new();
        std::fs::write(model.file(name), bytes).unwrap();
        model.refused(&[name]);
    };
    broken("tokenizer.json", b"{}");
    broken("tokenizer.json", b"\xff\xfe");
    broken("tokenizer_config.json", b"{\"eos_token\": ");
    broken("generation_config.json", b"{\"temperature\": \"hot\"}");
}
