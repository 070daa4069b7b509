//! `cargo xtask dist`: a folder with the program, MLX's library, completions and manual pages that runs
//! without Rust.
//!
//! The program finds `libmlx` relative to itself (`crates/mlx-ffi/build/rpath.rs`), and the library finds
//! its dependencies in `../../*.libs`, the layout of a wheel. The folder is therefore relocatable. It
//! needs the C and C++ libraries of a system that is at least as new as this one.

use anyhow::{Context, Result, bail, ensure};
use mlxcel_testing::paths::workspace_root;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shells with a completion script in the folder, and the file's name.
const SHELLS: [(&str, &str); 3] =
    [("bash", "mlxcel.bash"), ("zsh", "_mlxcel"), ("fish", "mlxcel.fish")];

/// Command-line options of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Output folder, which is replaced [default: target/dist/mlxcel-VERSION-ARCH-OS]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds the program, assembles the folder, and runs a copy of it in an empty environment.
///
/// # Errors
/// A failed build, a file that cannot be copied, or a copy that does not run by itself.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let built = build()?;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("mlxcel-{version}-{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    let default = workspace_root().join("target/dist").join(name);
    let out = arguments.out.clone().unwrap_or(default);
    if out.exists() {
        ensure!(out.join("bin/mlxcel").is_file(), "{} is not a dist folder", out.display());
        std::fs::remove_dir_all(&out).with_context(|| format!("removing {}", out.display()))?;
    }
    assemble(&built, &out)?;
    check(&out)?;
    eprintln!("{}: {} MiB", out.display(), size(&out)? >> 20);
    Ok(())
}

/// Result of the build.
struct Built {
    program: PathBuf,
    /// Folder of the linked `libmlx`.
    library: PathBuf,
}

/// Builds in release mode; cargo's messages contain the paths.
fn build() -> Result<Built> {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--release", "-p", "cli", "--message-format=json-render-diagnostics"])
        .current_dir(workspace_root())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(output.status.success(), "the build failed");
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let program = messages.iter().find_map(|message| message["executable"].as_str());
    let linked = messages
        .iter()
        .filter(|message| message["reason"] == "build-script-executed")
        .filter_map(|message| message["linked_paths"].as_array())
        .flatten()
        .filter_map(Value::as_str);
    // Cargo prefixes some paths with their kind, as in `native=/folder`.
    let library = linked
        .map(|path| PathBuf::from(path.rsplit_once('=').map_or(path, |(_, path)| path)))
        .find(|folder| has_library(folder));
    Ok(Built {
        program: program.context("cargo names no executable")?.into(),
        // The build links to the wheel's folder through a symlink; the wheel's other folders are needed.
        library: library
            .context("no linked folder holds libmlx: is it linked statically?")?
            .canonicalize()?,
    })
}

fn has_library(folder: &Path) -> bool {
    ["libmlx.so", "libmlx.dylib"].iter().any(|name| folder.join(name).is_file())
}

fn assemble(built: &Built, out: &Path) -> Result<()> {
    copy(&built.program, &out.join("bin/mlxcel"))?;
    copy_some(&built.library, &out.join("lib/mlx/lib"), &|name| {
        name.starts_with("libmlx.") || name.ends_with(".metallib")
    })?;
    // A wheel keeps the dependencies of its library two folders up.
    if let Some(wheel) = built.library.ancestors().nth(2) {
        for entry in std::fs::read_dir(wheel)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("mlx") && name.ends_with(".libs") {
                copy_some(&path, &out.join("lib").join(name), &|_| true)?;
            }
        }
    }
    for name in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&workspace_root().join(name), &out.join(name))?;
    }
    let program = out.join("bin/mlxcel");
    for (shell, name) in SHELLS {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        let path = out.join("share/completions").join(name);
        create_parent(&path)?;
        std::fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
    }
    output(Command::new(&program).arg("man").arg(out.join("share/man/man1")))?;
    Ok(())
}

/// Runs a copy of the folder in an empty environment and checks which libraries it loads.
fn check(out: &Path) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("mlxcel-dist-{}", std::process::id()));
    let copied = copy_all(out, &folder).and_then(|()| {
        let program = folder.join("bin/mlxcel");
        let prompt = ["generate", "-p", "Once upon a time", "-n", "4", "--temp", "0"];
        let text = output(Command::new(&program).args(prompt).env_clear())?;
        ensure!(!text.is_empty(), "the copy generates no text");
        if cfg!(target_os = "linux") {
            loads_its_own(&program, &folder)?;
        }
        Ok(())
    });
    std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    copied
}

/// Checks that the program loads the copied libraries. It also knows the build's folder of `libmlx`, which
/// exists on this machine.
fn loads_its_own(program: &Path, folder: &Path) -> Result<()> {
    let listed = output(Command::new(program).env_clear().env("LD_TRACE_LOADED_OBJECTS", "1"))?;
    let inside = folder.display().to_string();
    for library in listed.lines().filter(|line| line.contains("libmlx") || line.contains("blas")) {
        ensure!(library.contains(&inside), "the copy loads {}", library.trim());
    }
    ensure!(listed.contains("libmlx"), "the copy does not load libmlx");
    Ok(())
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{command:?} prints text that is not UTF-8"))
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file has a folder")?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// Copies the files of a folder whose names are wanted; follows links.
fn copy_some(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && wanted(&name) {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    copy_some(from, to, &|_| true)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_dir() {
            copy_all(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { size(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_copied_recursively() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::write(from.join("one"), "1").unwrap();
        std::fs::write(from.join("a/b/two"), "22").unwrap();
        copy_all(&from, &to).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("a/b/two")).unwrap(), "22");
        assert_eq!(size(&to).unwrap(), 3);
    }
}
