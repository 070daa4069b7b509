//! Invalid requests and outputs that cannot be written: one sentence on stderr.

use std::io::Read;
use std::process::{Command, Output, Stdio};

use super::support::{MLXCEL, Model, assert_one_sentence, assert_refused, mlxcel};

#[test]
fn prompts() {
    assert_refused(&["generate", "-p", ""], &["the prompt is empty"]);
    assert_refused(&["generate"], &["the prompt is empty"]);
    assert_refused(&["generate", "-f", "/no/such/file"], &["/no/such/file"]);
    assert_refused(&["generate", "-p", "x", "--system", "y"], &["--system needs a model with"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"abc\xff").unwrap();
    let name = file.path().to_str().unwrap();
    assert_refused(&["generate", "-f", name], &[name, "not UTF-8 text (byte 3)"]);
    assert_refused(&["eval", "--text", name], &[name, "not UTF-8 text (byte 3)"]);
    std::fs::write(file.path(), b"").unwrap();
    assert_refused(&["generate", "-f", name], &["the prompt is empty"]);
    assert_refused(&["eval", "--text", name], &["nothing to score"]);
}

#[test]
fn sizes_beyond_the_context_are_rejected() {
    let long = "once upon a time ".repeat(2000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &long).unwrap();
    let name = file.path().to_str().unwrap();
    assert_refused(&["generate", "-f", name], &["the prompt has", "but the context holds"]);
    let hello = ["generate", "-p", "Once upon a time"];
    let with = |more: &[&'static str]| [&hello[..], more].concat();
    assert_refused(&with(&["-n", "100000000"]), &["100000000 more are wanted"]);
    assert_refused(&with(&["-c", "10", "-n", "20"]), &["20 more are wanted", "holds 10"]);
    assert_refused(&with(&["-c", "2"]), &["holds 2"]);
    assert_refused(&with(&["-c", "100000000"]), &["--ctx-size 100000000 exceeds"]);
    let advice = ["generate", "--recommend-quant", "-c", "100000000"];
    assert_refused(&advice, &["--ctx-size 100000000 exceeds the model's context of 512"]);
    assert_refused(&["chat", "-q", "-c", "100000000"], &["--ctx-size 100000000 exceeds"]);
    assert_refused(&["serve", "-c", "100000000"], &["--ctx-size 100000000 exceeds"]);
    let sum = ["inspect", "-c", "100", "-p", "90", "-n", "20"];
    assert_refused(&sum, &["the prompt has 90 tokens and 20 more are wanted", "holds 100"]);
}

/// `--ctx-size 0` is the model's own context, as in llama.cpp.
#[test]
fn a_context_of_zero_is_the_models_own() {
    let context = |args: &[&str]| -> String {
        let output = mlxcel(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(context(&["inspect", "-c", "0"]).contains("\n512 tokens × 1"));
    let advice = context(&["generate", "--recommend-quant", "--json", "-c", "0"]);
    assert!(advice.contains("\"context_tokens\": 512"), "{advice}");
    let whole = ["generate", "-q", "-p", "Once", "-c", "0", "-n", "4"];
    assert!(!context(&whole).is_empty());
    let full = mlxcel(&["generate", "-q", "-p", "Once", "-c", "0", "-n", "512"]);
    assert_one_sentence(&full, &["512 more are wanted", "holds 512"]);
    // Mamba has no limit of its own.
    let folder = tempfile::tempdir().unwrap();
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint("mamba", variant, folder.path()).unwrap();
    let path = folder.path().to_str().unwrap();
    for args in [&["generate", "-p", "x"][..], &["chat"], &["serve"], &["inspect"]] {
        let args = [args, &["-m", path, "-c", "0"]].concat();
        assert_refused(&args, &["--ctx-size 0", "states no context"]);
    }
}

#[test]
fn a_smaller_context_ends_the_text_there() {
    let stats = tempfile::NamedTempFile::new().unwrap();
    let args = ["generate", "-q", "-p", "Once upon a time", "--ctx-size", "12", "--ignore-eos"];
    let json = ["--stats-json", stats.path().to_str().unwrap()];
    let output = mlxcel(&[&args[..], &json[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(stats.path()).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tokens = |key: &str| stats[key].as_u64().unwrap();
    assert_eq!(tokens("prompt_tokens") + tokens("generated_tokens"), 12);
    assert_eq!(stats["finish"], "length");
}

#[test]
fn invalid_values_of_flags() {
    let hello = ["generate", "-p", "Once upon a time"];
    let with = |more: &[&'static str]| [&hello[..], more].concat();
    assert_refused(&with(&["--temp=-1"]), &["temperature"]);
    assert_refused(&with(&["--temp", "NaN"]), &["temperature"]);
    assert_refused(&with(&["--top-p", "2"]), &["top_p"]);
    assert_refused(&with(&["--prefill-chunk", "0"]), &["--prefill-chunk"]);
    assert_refused(&with(&["--threads", "0"]), &["--threads"]);
    assert_refused(&with(&["--kv-cache-mode", "fp7"]), &["fp7"]);
    assert_refused(&["eval", "--tokens", "1,2,99999"], &["99999", "outside the vocabulary"]);
    assert_refused(&["eval", "--tokens", "1,2", "--window", "9999"], &["--window 9999 exceeds"]);
    assert_refused(&["bench", "-r", "0"], &["--repetitions"]);
    for unknown in [&["generate", "--no-such-flag"][..], &["generate", "--stop", ""]] {
        let output = mlxcel(unknown);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stderr.starts_with(b"error: "));
    }
}

#[test]
fn files_that_cannot_be_written() {
    let stats = "/no/such/folder/stats.json";
    let output = mlxcel(&["generate", "-q", "-p", "Once", "-n", "2", "--stats-json", stats]);
    assert_one_sentence(&output, &[stats]);
    let logits = "/no/such/folder/logits.safetensors";
    assert_refused(&["eval", "--tokens", "1,2", "--logits-out", logits], &[logits]);
}

/// Every command that prints, with a small task.
const PRINTING: [&[&str]; 5] = [
    &["generate", "-q", "-p", "Once upon a time", "-n", "40"],
    &["eval", "--tokens", "1,2,3"],
    &["eval", "--tokens", "1,2,3", "--json"],
    &["bench", "-p", "8", "-n", "0", "-r", "1"],
    &["bench", "-p", "8", "-n", "0", "-r", "1", "--json"],
];

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_on_stdout() {
    for args in PRINTING {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(MLXCEL);
        let output = command.args(args).stdout(full).stdin(Stdio::null()).output().unwrap();
        assert_one_sentence(&output, &["cannot write to standard output"]);
    }
}

#[test]
fn a_closed_pipe_on_stdout() {
    for args in PRINTING {
        let mut command = Command::new(MLXCEL);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        assert_one_sentence(&child.wait_with_output().unwrap(), &["cannot write to standard"]);
    }
}

/// Imitates `… | head -c 10`, which closes the pipe early.
#[test]
fn a_pipe_that_closes_midway() {
    let model = Model::new().config("max_position_embeddings", "100000");
    let path = model.path().to_str().unwrap();
    let mut child = Command::new(MLXCEL)
        .args(["generate", "-q", "-m", path, "-p", "hello", "-n", "50000", "--ignore-eos"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut start = [0; 10];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut start).unwrap();
    drop(out);
    let output: Output = child.wait_with_output().unwrap();
    assert_one_sentence(&output, &["cannot write to standard output"]);
}
