//! Another tool embeds this crate with no C or C++ compiler on the machine.

use std::path::Path;
use std::process::Command;

const CONFIG: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;

/// Copies `tests/embedder` out of the repository, with the workspace's lock file so that it needs
/// no package that is not here already.
fn copy_out(root: &Path, to: &Path) {
    let from = root.join("tests/embedder");
    let manifest = std::fs::read_to_string(from.join("Cargo.toml")).unwrap();
    let manifest = manifest.replace("\"../..\"", &format!("{:?}", root.display().to_string()));
    std::fs::create_dir(to.join("src")).unwrap();
    std::fs::write(to.join("Cargo.toml"), manifest).unwrap();
    std::fs::copy(from.join("src/main.rs"), to.join("src/main.rs")).unwrap();
    std::fs::copy(root.join("../../Cargo.lock"), to.join("Cargo.lock")).unwrap();
}

/// Builds it with compilers that fail, and runs it on a folder that holds only a `config.json`.
#[test]
fn an_embedder_needs_no_c_compiler() {
    let crate_dir = tempfile::tempdir().unwrap();
    copy_out(Path::new(env!("CARGO_MANIFEST_DIR")), crate_dir.path());
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("config.json"), CONFIG).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--manifest-path"])
        .arg(crate_dir.path().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedder"))
        .arg("--")
        .arg(model.path())
        .env("CC", "false")
        .env("CXX", "false")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.trim(), "DOES NOT FIT: 622.4 MiB over budget");
}
