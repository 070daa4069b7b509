//! Completions, manual pages, llama.cpp's flags, colours, plots.

use std::process::Command;

use super::support::{MLXCEL, mlxcel};

fn stdout(args: &[&str]) -> String {
    let output = mlxcel(args);
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_for_every_shell_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        for command in ["generate", "inspect", "quantize", "download"] {
            assert!(script.contains(command), "{command} in {shell}");
        }
    }
}

#[test]
fn the_manual_has_a_page_per_command() {
    let folder = tempfile::tempdir().unwrap();
    stdout(&["man", folder.path().to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.path().join("mlxcel-quantize.1")).unwrap();
    assert!(page.starts_with(".ie") && page.contains("group"));
    for name in ["mlxcel.1", "mlxcel-generate.1", "mlxcel-chat.1"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
}

#[test]
fn flags_of_llama_cpp() {
    let refused = |args: &[&str], code, expected: &str| {
        let output = mlxcel(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(expected), "{stderr}");
    };
    refused(&["generate", "-ngl", "99"], 2, "-ngl is a flag of llama.cpp");
    refused(&["inspect", "-ctk", "q8_0"], 1, "q8_0 is nearest to int8");
    refused(&["inspect", "--kv-cache-mode", "q4_0"], 1, "q4_0 is nearest to turbo4");
    let report = stdout(&["inspect", "-c", "512", "-ctk", "f16", "-ctv", "turbo4", "--json"]);
    assert!(report.contains("\"context_tokens\": 512"));
    assert!(report.contains("\"cache_type_k\": \"fp16\""));
}

#[test]
fn no_colours_without_a_terminal() {
    for args in [&["--help"][..], &["generate", "--nonsense"], &["inspect"], &["list"]] {
        for no_color in [None, Some("1")] {
            let mut command = Command::new(MLXCEL);
            command.args(args).env_remove("NO_COLOR").env("HF_HUB_CACHE", "/nowhere");
            command.envs(no_color.map(|value| ("NO_COLOR", value)));
            let output = command.output().unwrap();
            let all = [output.stdout, output.stderr].concat();
            assert!(!all.is_empty() && !all.contains(&0x1b), "{args:?}");
        }
    }
}

#[test]
fn inspect_plots_memory() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("memory.svg");
    stdout(&["inspect", "--memory", "16MiB", "--plot", file.to_str().unwrap()]);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("available: 16.0 MiB"), "{svg}");
    assert!(svg.contains("turbo4-delegated") && svg.contains("<polyline"), "{svg}");
    let output = mlxcel(&["inspect", "--plot", "/nowhere/x.svg"]);
    assert_eq!(output.status.code(), Some(1));
}
