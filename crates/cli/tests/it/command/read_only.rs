//! Read-only disks: each command fails with one sentence that names the file, and existing files stay.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::everyday::{repository, text, with_hub};
use super::support::{MLXCEL, Model, assert_one_sentence};
use mlxcel_testing::fake_hub::FakeHub;

/// Mounts the folder `$0` read-only for the rest of the line.
const READ_ONLY: &str =
    "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";

/// How a folder is made read-only here.
#[derive(Clone, Copy)]
enum Means {
    /// A mount in a namespace of its own, also for root.
    Mount,
    /// Without the permission to write, which root does not need.
    Permission,
}

impl Means {
    /// What works on this machine; says why where nothing does.
    fn find() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let fails = |means: Self| {
            let mut command = means.command(folder.path(), "touch", &[file.to_str().unwrap()]);
            let output = command.output().ok()?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            let reason = ["Read-only file system", "Permission denied"];
            reason.iter().any(|reason| stderr.contains(reason)).then_some(means)
        };
        let means = fails(Self::Mount).or_else(|| fails(Self::Permission));
        if means.is_none() {
            eprintln!("skipped: root without user namespaces can write everywhere");
        }
        means
    }

    /// `program` with `folder` read-only.
    fn command(self, folder: &Path, program: &str, args: &[&str]) -> Command {
        let mut command = match self {
            Self::Mount => {
                let mut command = Command::new("unshare");
                command.args(["-rm", "sh", "-c", READ_ONLY]).arg(folder).arg(program);
                command
            }
            Self::Permission => {
                fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
                Command::new(program)
            }
        };
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(self, folder: &Path, args: &[&str]) -> Output {
        self.command(folder, MLXCEL, args).output().unwrap()
    }
}

/// Both a read-only mount and a missing permission say so.
fn assert_refused(output: &Output, named: &str) {
    let stderr = text(output.stderr.clone());
    let reason = ["Read-only file system", "Permission denied"];
    assert!(reason.iter().any(|reason| stderr.contains(reason)), "{stderr}");
    assert_one_sentence(output, &[named]);
}

/// What is in a folder, to see that it stays.
fn contents(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn writes_to_a_read_only_disk_fail() {
    let Some(means) = Means::find() else { return };
    let (disk, plain, model) = (folder(), folder(), Model::new());
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == "bf16").unwrap();
    mlxcel_testing::golden::checkpoint("llama", variant, plain.path()).unwrap();
    let path = |name: &str| disk.path().join(name).to_str().unwrap().to_owned();
    let (plain, model) = (plain.path().to_str().unwrap(), model.path().to_str().unwrap());
    let refused = |args: &[&str], named: &str| {
        assert_refused(&means.run(disk.path(), args), named);
        assert_eq!(contents(disk.path()), [""; 0], "{args:?}");
    };
    refused(&["quantize", "-m", plain, "--out", &path("q4")], "q4");
    refused(&["quantize", "-m", plain, "--out", &path("deep/er")], "deep");
    refused(&["convert", "-m", plain, "--out", &path("f16"), "--dtype", "float16"], "f16");
    refused(&["inspect", "-m", model, "--plot", &path("a.svg")], "a.svg");
    refused(&["man", &path("man")], "man");
    let stats = ["generate", "-q", "-m", model, "-p", "hello", "-n", "1", "--stats-json"];
    let output = means.run(disk.path(), &[&stats[..], &[&path("a.json")]].concat());
    let stderr = text(output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("a.json"), "{stderr}");
}

/// A conversation that cannot be saved goes on, and one that was saved stays as it was.
#[test]
fn a_conversation_continues_after_a_failed_save() {
    let Some(means) = Means::find() else { return };
    let disk = folder();
    let old = disk.path().join("old.json");
    fs::write(&old, "old").unwrap();
    let lines = disk.path().join("lines");
    let new = disk.path().join("new.json");
    fs::write(&lines, format!("Once\n/save {}\n/save {}\nupon\n", new.display(), old.display()))
        .unwrap();
    let mut command = means.command(disk.path(), MLXCEL, &["chat", "-n", "2"]);
    let output = command.stdin(fs::File::open(&lines).unwrap()).output().unwrap();
    let stderr = text(output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("new.json: "), "{stderr}");
    assert_eq!(stderr.matches(" cached,").count(), 2, "both turns are answered: {stderr}");
    assert_eq!(contents(disk.path()), ["lines", "old.json"]);
    assert_eq!(fs::read_to_string(&old).unwrap(), "old");
}

/// Models that are in a read-only cache run; nothing is fetched into it, nor removed.
#[test]
fn a_read_only_cache_is_usable() {
    let Some(means) = Means::find() else { return };
    let files = repository();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let (server, empty, full) = (FakeHub::new("org/tiny", &files), folder(), folder());
    assert!(with_hub(&server, full.path(), &["download", "org/tiny"]).status().unwrap().success());
    let run = |cache: &Path, args: &[&str]| {
        let mut command = means.command(cache, MLXCEL, args);
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HUB_CACHE", cache).output().unwrap()
    };
    let download = ["download", "-q", "org/tiny"];
    assert_refused(&run(empty.path(), &download), empty.path().to_str().unwrap());
    assert_eq!(contents(empty.path()), [""; 0]);
    let generate = ["generate", "-q", "-m", "org/tiny", "-p", "hello", "-n", "1"];
    assert_eq!(run(full.path(), &generate).status.code(), Some(0));
    assert!(text(run(full.path(), &["list"]).stdout).contains("org/tiny"));
    if matches!(means, Means::Mount) {
        assert_refused(&run(full.path(), &["rm", "--yes", "org/tiny"]), "models--org--tiny");
    }
    assert_eq!(run(full.path(), &generate).status.code(), Some(0), "it is still whole");
}
