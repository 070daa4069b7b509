//! Sources of prompts, progress bars at a terminal, Ctrl-C.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use super::support::{MLXCEL, Model, mlxcel};

/// Greedy text of the built-in model after `args`, from standard input `stdin`.
fn text(args: &[&str], stdin: &str) -> String {
    let mut command = Command::new(MLXCEL);
    command.args(["generate", "-q", "-n", "8", "--temp", "0"]).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn all_sources_of_prompts() {
    let prompt = "Once upon a time there was a king";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), prompt).unwrap();
    let expected = text(&["-p", prompt], "");
    assert!(expected.trim().len() > 8, "{expected}");
    assert_eq!(text(&["--prompt", "-"], prompt), expected);
    assert_eq!(text(&["-f", "-"], prompt), expected);
    assert_eq!(text(&[], prompt), expected);
    assert_eq!(text(&["-f", file.path().to_str().unwrap()], ""), expected);
    let twice = text(&["-p", prompt, "--stop", expected.trim()], "");
    assert_eq!(twice.trim(), "", "a stop string is not part of the text");
}

/// A model that goes on for long.
fn patient() -> Model {
    Model::new().config("max_position_embeddings", "1000000")
}

/// Starts a generation whose two streams are pipes.
fn start(model: &Model, args: &[&str]) -> Child {
    let mut command = Command::new(MLXCEL);
    command.args(["generate", "--ignore-eos", "--temp", "1", "-m"]).arg(model.path()).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn ctrl_c_keeps_the_text_and_exits_with_130() {
    let model = patient();
    let mut child = start(&model, &["-p", "Once upon a time", "-n", "500000"]);
    let mut out = child.stdout.take().unwrap();
    let mut text = vec![0; 20];
    out.read_exact(&mut text).unwrap();
    interrupt(&child);
    out.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    assert!(stderr.contains("generated: ") && !stderr.contains("error"), "{stderr}");
}

#[test]
fn ctrl_c_during_prefill() {
    let prompt = "once upon a time ".repeat(2000);
    let model = patient();
    let mut child = start(&model, &["-p", &prompt, "--prefill-chunk", "1", "-n", "1"]);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("kv cache") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended early");
    }
    interrupt(&child);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), rest.as_str()), (Some(130), ""));
    assert_eq!(output.stdout, b"");
}

#[test]
fn no_bars_without_a_terminal() {
    let output = mlxcel(&["generate", "-p", "Once upon a time", "-n", "2", "--prefill-chunk", "1"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains('\r') && !stderr.contains('\u{1b}'), "{stderr:?}");
    let lines: Vec<_> = stderr.lines().map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["model", "kv cache", "prompt"], "{stderr}");
}

/// `script` gives the program a terminal.
#[test]
#[cfg(target_os = "linux")]
fn bars_at_a_terminal() {
    let on_terminal = |flags: &str| {
        let prompt = "once upon a time ".repeat(40);
        let line = format!("'{MLXCEL}' generate {flags} -p '{prompt}' -n 2 --prefill-chunk 1");
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
        let output = command.output().expect("script comes with util-linux");
        String::from_utf8(output.stdout).unwrap()
    };
    let seen = on_terminal("");
    assert!(seen.contains("loading [") && seen.contains("prompt ["), "{seen:?}");
    assert!(!on_terminal("-q").contains('['));
}
