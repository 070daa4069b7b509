//! Runs the built program on random-weights models in temporary folders, intact or broken, and checks
//! the form of failures.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The built program.
pub(crate) const MLXCEL: &str = env!("CARGO_BIN_EXE_mlxcel");

/// A model of the `llama` family with 4-bit weights, in a folder of its own.
pub(crate) struct Model {
    dir: TempDir,
}

/// The intact model, created once.
fn original() -> &'static Path {
    static ORIGINAL: OnceLock<TempDir> = OnceLock::new();
    let made = ORIGINAL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "q4").unwrap();
        mlxcel_testing::golden::checkpoint("llama", variant, dir.path()).unwrap();
        dir
    });
    made.path()
}

impl Model {
    /// A copy of the intact model.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(original()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Removes the file `name`.
    pub(crate) fn without(self, name: &str) -> Self {
        std::fs::remove_file(self.file(name)).unwrap();
        self
    }

    /// Sets one key of `config.json` to arbitrary text.
    pub(crate) fn config(self, key: &str, value: &str) -> Self {
        let text = std::fs::read_to_string(self.file("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().remove(key);
        let text = config.to_string();
        let rest = text.strip_prefix('{').unwrap();
        std::fs::write(self.file("config.json"), format!("{{\"{key}\":{value},{rest}")).unwrap();
        self
    }

    /// Changes the header of the weights, but not their data.
    pub(crate) fn header(self, change: impl FnOnce(&mut Value)) -> Self {
        let bytes = self.weights();
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(&mut header);
        let json = header.to_string();
        let mut changed = (json.len() as u64).to_le_bytes().to_vec();
        changed.extend_from_slice(json.as_bytes());
        changed.extend_from_slice(&bytes[8 + length..]);
        self.replaced(&changed)
    }

    /// The bytes of `model.safetensors`.
    pub(crate) fn weights(&self) -> Vec<u8> {
        std::fs::read(self.file("model.safetensors")).unwrap()
    }

    /// Replaces the bytes of `model.safetensors`.
    pub(crate) fn replaced(self, weights: &[u8]) -> Self {
        std::fs::write(self.file("model.safetensors"), weights).unwrap();
        self
    }

    /// Asserts that `generate -q` fails with one sentence that contains all of `expected`.
    pub(crate) fn refused(&self, expected: &[&str]) {
        let model = self.path().to_str().unwrap();
        assert_refused(&["generate", "-q", "-m", model, "-p", "hello", "-n", "2"], expected);
    }
}

/// Runs the program with empty standard input.
pub(crate) fn mlxcel(args: &[&str]) -> Output {
    Command::new(MLXCEL).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Asserts exit code 1, nothing on stdout, and one sentence on stderr that contains all of
/// `expected`.
pub(crate) fn assert_refused(args: &[&str], expected: &[&str]) {
    let output = mlxcel(args);
    assert_eq!(output.stdout, b"", "{args:?}: partial output");
    assert_one_sentence(&output, expected);
}

/// Asserts exit code 1 and one sentence on stderr that contains all of `expected`.
pub(crate) fn assert_one_sentence(output: &Output, expected: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.len() < 600, "a sentence, not {} bytes: {stderr}", stderr.len());
    for text in expected {
        assert!(stderr.contains(text), "no \"{text}\" in: {stderr}");
    }
}
