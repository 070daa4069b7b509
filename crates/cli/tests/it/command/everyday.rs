//! Conversations through a pipe, quantised checkpoints, and models in a cache of our own.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::support::{MLXCEL, assert_one_sentence, assert_refused, mlxcel};
use mlxcel_testing::fake_hub::{COMMIT, FakeHub, HubBehavior};

/// Runs `mlxcel chat` with `lines` on standard input.
fn chat(args: &[&str], lines: &str) -> Output {
    let mut child = Command::new(MLXCEL)
        .arg("chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// What the built-in model continues `prompt` with, greedily, from an empty cache.
fn continued(prompt: &str) -> String {
    let output = mlxcel(&["generate", "-q", "--temp", "0", "-n", "12", "-p", prompt]);
    assert!(output.status.success());
    text(output.stdout)
}

#[test]
fn answers_equal_those_to_the_whole_conversation() {
    let first = continued("Once upon a time");
    let second = continued(&format!("Once upon a time{first}The king said"));
    let output = chat(&["--temp", "0", "-n", "12"], "Once upon a time\n\nThe king said\n");
    assert!(output.status.success());
    assert_eq!(text(output.stdout), format!("{first}{second}"));
    let statistics = text(output.stderr);
    let cached: Vec<usize> = statistics
        .lines()
        .filter_map(|line| line.split(" cached").next()?.rsplit(' ').next()?.parse().ok())
        .collect();
    assert_eq!(cached.len(), 2, "{statistics}");
    // The first turn except for its last token, which was sampled but never computed.
    assert!(cached[0] == 0 && cached[1] >= 12, "{statistics}");
}

#[test]
fn conversations_are_saved_loaded_and_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.json");
    let name = file.to_str().unwrap();
    let args = ["-q", "--temp", "0", "-n", "8"];
    let saved = chat(&args, &format!("Once upon\n/save {name}\n"));
    let first = text(saved.stdout);
    let json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["schema"], "mlxcel.chat/1");
    assert_eq!(json["messages"][0]["content"], "Once upon");
    assert_eq!(json["messages"][1]["content"].as_str().unwrap(), first.trim_end_matches('\n'));
    let straight = text(chat(&args, "Once upon\nThe fox\n").stdout);
    let loaded = text(chat(&args, &format!("/load {name}\nThe fox\n")).stdout);
    assert_eq!(format!("{first}{loaded}"), straight);
    let cleared = text(chat(&args, "The fox\n/clear\nOnce upon\n").stdout);
    assert!(cleared.ends_with(&first), "{cleared}");
}

#[test]
fn commands_that_fail_do_not_end_the_conversation() {
    let output =
        chat(&["-n", "2"], "/load /nowhere\n/save\n/dance\n/info\nOnce\\\nupon\n/exit\nno\n");
    assert!(output.status.success());
    let stderr = text(output.stderr);
    for expected in ["/nowhere: ", "/save needs", "no command /dance", "context 0/512 tokens"] {
        assert!(stderr.contains(expected), "no {expected} in {stderr}");
    }
    assert_eq!(stderr.matches(" cached,").count(), 1, "{stderr}");
}

#[test]
fn messages_beyond_the_context_are_rejected() {
    let output = chat(&["-q", "-c", "8", "-n", "4"], "one two three four five six seven eight\n");
    assert_one_sentence(&output, &["the context holds 8"]);
    assert_refused(
        &["chat", "-q", "--system", "be brief"],
        &["--system needs a model with a chat"],
    );
}

#[test]
fn a_quantised_checkpoint_generates() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, out) = (folder.path().join("plain"), folder.path().join("q4"));
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "bf16").unwrap();
    mlxcel_testing::golden::checkpoint("llama", variant, &plain).unwrap();
    let (model, target) = (plain.to_str().unwrap(), out.to_str().unwrap());
    let output = mlxcel(&["quantize", "-m", model, "--bits", "4", "--out", target]);
    assert!(output.status.success());
    assert!(text(output.stderr).contains("bits per weight"));
    let output = mlxcel(&["generate", "-q", "-m", target, "-p", "hello", "-n", "2"]);
    assert!(output.status.success());
    assert_refused(&["quantize", "-m", model, "--out", target], &["exists already"]);
    assert_refused(&["quantize", "-m", target, "--out", "/tmp/x"], &["already quantised"]);
    assert_refused(&["quantize", "--out", "/nowhere/x"], &["give one with -m DIR"]);
    let bits = ["quantize", "-m", model, "--bits", "7", "--out", "/nowhere/x"];
    assert_refused(&bits, &["bits per weight is 7", "2, 3, 4, 5, 6 or 8"]);
}

/// `mlxcel` with a cache of its own and `server` for a hub.
pub(crate) fn with_hub(server: &FakeHub, cache: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(MLXCEL);
    command
        .args(args)
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HUB_CACHE", cache)
        .env("HF_TOKEN", "secret")
        .stdin(Stdio::null());
    command
}

/// The tiny model as a repository.
pub(crate) fn repository() -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
    mlxcel_testing::golden::checkpoint("llama", variant, folder.path()).unwrap();
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
    };
    fs::read_dir(folder.path()).unwrap().map(file).collect()
}

#[test]
fn a_model_is_sized_downloaded_run_listed_and_removed() {
    let files = repository();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let server = FakeHub::with(
        "org/tiny",
        &files,
        HubBehavior { token: Some("secret".to_owned()), ..HubBehavior::default() },
    );
    let cache = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| with_hub(&server, cache.path(), args).output().unwrap();
    let absent = run(&["generate", "-q", "-m", "org/tiny", "-p", "x", "-n", "2"]);
    assert_one_sentence(&absent, &["`mlxcel download org/tiny` fetches it"]);
    let sized = |output: Output| -> Value {
        assert!(output.status.success(), "{}", text(output.stderr));
        let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
        // What changes from moment to moment.
        for key in [
            "available_bytes",
            "over_budget_bytes",
            "verdict",
            "max_batch",
            "max_context_tokens",
            "kv_modes",
            "max_prefill_chunk",
        ] {
            report[key] = Value::Null;
        }
        report
    };
    let inspect = ["inspect", "-m", "org/tiny", "--json"];
    let remote = sized(run(&inspect));
    assert_eq!(sized(run(&["inspect", "org/tiny", "--json"])), remote);
    let downloaded = run(&["download", "org/tiny"]);
    assert!(downloaded.status.success(), "{}", text(downloaded.stderr));
    assert!(text(downloaded.stdout).trim_end().ends_with(COMMIT));
    assert_eq!(sized(run(&inspect)), remote);
    assert!(run(&["generate", "-q", "-m", "org/tiny", "-p", "x", "-n", "2"]).status.success());
    let list: Value = serde_json::from_slice(&run(&["list", "--json"]).stdout).unwrap();
    assert_eq!((&list["schema"], &list["models"][0]["bits"]), (&"mlxcel.list/1".into(), &4.into()));
    assert!(text(run(&["list"]).stdout).contains("org/tiny"));
    assert_one_sentence(&run(&["rm", "org/tiny"]), &["--yes"]);
    assert!(run(&["rm", "--yes", "org/tiny"]).status.success());
    assert_one_sentence(&run(&["rm", "--yes", "../tiny"]), &["not a model's name"]);
    assert_one_sentence(&run(&["download", "org/none/x"]), &["not a model's name"]);
    let offline = with_hub(&server, cache.path(), &inspect).env("HF_HUB_OFFLINE", "1").output();
    assert_one_sentence(&offline.unwrap(), &["neither a folder nor in the local"]);
}

/// Fifty downloads killed at random moments end with the right file.
#[test]
fn a_download_survives_kill() {
    let byte = |n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[0];
    let weights: Vec<u8> = (0..3_000_000).map(byte).collect();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", weights.clone())];
    let behavior = HubBehavior { token: None, pause: Duration::from_millis(4) };
    let server = FakeHub::with("org/large", &files, behavior);
    let cache = tempfile::tempdir().unwrap();
    let start = || -> Child {
        let mut command = with_hub(&server, cache.path(), &["download", "-q", "org/large"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    for round in 0..50_u64 {
        let mut child = start();
        std::thread::sleep(Duration::from_millis(20 + (round * 37) % 90));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output =
        with_hub(&server, cache.path(), &["download", "-q", "org/large"]).output().unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    let folder = text(output.stdout);
    assert!(fs::read(Path::new(folder.trim_end()).join("model.safetensors")).unwrap() == weights);
    assert!(server.log().iter().filter(|r| r.cdn && r.range.is_some()).count() > 1, "resumed");
}
