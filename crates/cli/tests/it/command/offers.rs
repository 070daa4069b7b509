//! Questions at a terminal: a model that is missing, and one that does not fit.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::everyday::{repository, text, with_hub};
use super::support::{MLXCEL, assert_one_sentence};
use mlxcel_testing::fake_hub::FakeHub;

/// A hub with the tiny model.
fn hub() -> FakeHub {
    let files = repository();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    FakeHub::new("org/tiny", &files)
}

/// The terminal's content after typing `answers` to `mlxcel ARGS`, and the exit code.
fn at_a_terminal(
    server: &FakeHub,
    cache: &Path,
    args: &str,
    answers: &str,
    limit: Option<&str>,
) -> (String, Option<i32>) {
    // `script` gives the program a terminal; its own standard input is what is typed.
    let mut command = Command::new("script");
    command
        .args(["-qec", &format!("'{MLXCEL}' {args}"), "/dev/null"])
        .env("TERM", "xterm")
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HUB_CACHE", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if let Some(limit) = limit {
        command.env("MLXCEL_MEMORY_LIMIT", limit);
    }
    let mut child = command.spawn().expect("script comes with util-linux");
    child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (text(output.stdout), output.status.code())
}

const OFFER: &str = "org/tiny is not on this machine. Download it? [y/N]";
const GENERATE: &str = "generate -q -m org/tiny -p hello -n 2";

#[test]
fn a_missing_model_is_offered_for_download() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    for answer in ["n\n", "\n", "maybe\n"] {
        let (seen, code) = at_a_terminal(&server, cache.path(), GENERATE, answer, None);
        assert!(seen.contains(OFFER), "{seen:?}");
        assert!(seen.contains("`mlxcel download org/tiny` fetches it"), "{seen:?}");
        assert_eq!(code, Some(1));
    }
    assert!(server.log().is_empty(), "nothing is asked of the hub before the answer");
    let (seen, code) = at_a_terminal(&server, cache.path(), GENERATE, "y\n", None);
    assert!(seen.contains(OFFER) && seen.contains("download ["), "{seen:?}");
    assert_eq!(code, Some(0), "{seen:?}");
    let (seen, code) = at_a_terminal(&server, cache.path(), GENERATE, "", None);
    assert!(!seen.contains("Download"), "it is here now: {seen:?}");
    assert_eq!(code, Some(0), "{seen:?}");
}

#[test]
fn without_a_terminal_nothing_is_offered() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    for command in ["generate", "chat", "serve", "quantize --out /nowhere/x", "bench"] {
        let args: Vec<_> = command.split(' ').chain(["-m", "org/tiny"]).collect();
        let output = with_hub(&server, cache.path(), &args).output().unwrap();
        assert_one_sentence(&output, &["org/tiny", "`mlxcel download org/tiny` fetches it"]);
    }
    assert!(server.log().is_empty());
}

#[test]
fn a_download_that_does_not_fit_needs_confirmation() {
    let (server, cache) = (hub(), tempfile::tempdir().unwrap());
    let limit = Some("1MB");
    let there = || cache.path().join("models--org--tiny/refs/main").exists();
    let ask = |args: &str, answer: &str| {
        let (seen, code) = at_a_terminal(&server, cache.path(), args, answer, limit);
        (seen.contains("DOES NOT FIT"), seen.contains("Download it anyway? [y/N]"), code)
    };
    assert_eq!(ask("download org/tiny", "n\n"), (true, true, Some(1)));
    // --quiet never asks, not even at a terminal.
    assert_eq!(ask("download -q org/tiny", ""), (true, false, Some(1)));
    let run = |args: &[&str]| {
        let mut command = with_hub(&server, cache.path(), args);
        command.env("MLXCEL_MEMORY_LIMIT", "1MB").output().unwrap()
    };
    let refused = run(&["download", "-q", "org/tiny"]);
    assert_one_sentence(
        &refused,
        &["org/tiny with", "DOES NOT FIT", "use --yes to download it anyway"],
    );
    assert!(!there());
    let forced = run(&["download", "-q", "--yes", "org/tiny"]);
    assert_eq!((forced.status.code(), text(forced.stderr).as_str()), (Some(0), ""));
    assert!(there());
    std::fs::remove_dir_all(cache.path().join("models--org--tiny")).unwrap();
    let warned = run(&["download", "org/tiny"]);
    assert_eq!(warned.status.code(), Some(0));
    assert!(text(warned.stderr).contains("warning: org/tiny with") && there());
    std::fs::remove_dir_all(cache.path().join("models--org--tiny")).unwrap();
    assert_eq!(ask("download org/tiny", "y\n"), (true, true, Some(0)));
    assert!(there());
}
