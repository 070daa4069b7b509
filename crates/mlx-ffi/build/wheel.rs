//! Download of the pinned wheels with pip, verification, and unpacking into a cache.
//!
//! A cache entry is complete or absent: wheels are unpacked into a scratch folder next to it, which is
//! then renamed, so that concurrent or aborted builds leave nothing incomplete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::error::{Failure, Result};
use crate::pins::{MLX_VERSION, Wheel};

const UNPACK: &str = include_str!("unpack.py");
const ALTERNATIVES: &str =
    "or set MLXCEL_MLX_DIR to an installed MLX (a folder with include/mlx and lib/libmlx.so)";

/// Source and destination of the wheels.
pub(crate) struct Fetch {
    /// Python with pip: `MLXCEL_PYTHON`, else `python3`.
    pub(crate) python: String,
    /// Folder for unpacked wheels: `MLXCEL_CACHE_DIR`, else the user's cache folder.
    pub(crate) cache: PathBuf,
    /// The Rust name of the architecture to link for.
    pub(crate) arch: String,
    /// True if that differs from this machine's.
    pub(crate) cross: bool,
}

impl Fetch {
    /// The MLX prefix (`include/`, `lib/`) of the unpacked `wheels`, which are fetched if missing.
    pub(crate) fn prefix(&self, wheels: &[Wheel]) -> Result<PathBuf> {
        let hashes = wheels.iter().map(|wheel| self.hash(wheel)).collect::<Result<Vec<_>>>()?;
        let entry = self.cache.join(entry_name(wheels[0].package, hashes[0]));
        if !entry.is_dir() {
            self.fill(&entry, wheels, &hashes)?;
        }
        Ok(entry.join("mlx"))
    }

    fn hash(&self, wheel: &Wheel) -> Result<&'static str> {
        wheel.sha256(&self.arch).ok_or_else(|| {
            Failure::new(format!(
                "there is no prebuilt MLX for {}: set MLXCEL_MLX_SOURCE to a source tree of MLX {MLX_VERSION}, {ALTERNATIVES}",
                self.arch
            ))
        })
    }

    fn fill(&self, entry: &Path, wheels: &[Wheel], hashes: &[&str]) -> Result<()> {
        let scratch = self.cache.join(format!(".unpacking-{}", std::process::id()));
        let done = self.fill_scratch(&scratch, wheels, hashes).and_then(|unpacked| {
            match fs::rename(&unpacked, entry) {
                // A concurrent build may have created the entry, with the same verified content.
                Err(error) if !entry.is_dir() => Err(unwritable(entry, &error)),
                _ => Ok(()),
            }
        });
        // Nothing else uses the scratch folder; failing to remove it is harmless.
        let _ = fs::remove_dir_all(&scratch);
        done
    }

    fn fill_scratch(&self, scratch: &Path, wheels: &[Wheel], hashes: &[&str]) -> Result<PathBuf> {
        fs::create_dir_all(scratch).map_err(|error| unwritable(scratch, &error))?;
        let mut files = Vec::new();
        for (wheel, hash) in wheels.iter().zip(hashes) {
            files.push(format!("{}={hash}", self.download(wheel, scratch)?.display()));
        }
        let unpacked = scratch.join("unpacked");
        let output =
            self.run(Command::new(&self.python).args(["-c", UNPACK]).arg(&unpacked).args(files))?;
        match output.status.code() {
            Some(0) => Ok(unpacked),
            Some(3) => Err(Failure::new(format!(
                "the MLX wheel is not the pinned one ({}): report it to the package index's operator, {ALTERNATIVES}",
                String::from_utf8_lossy(&output.stdout).trim()
            ))),
            _ => Err(Failure::new(format!(
                "unpacking the MLX wheel into {} failed ({}): free some space there or set MLXCEL_CACHE_DIR",
                scratch.display(),
                last_line(&output)
            ))),
        }
    }

    fn download(&self, wheel: &Wheel, scratch: &Path) -> Result<PathBuf> {
        let folder = scratch.join(wheel.package);
        let name = format!("{}=={}", wheel.package, wheel.version);
        let mut pip = Command::new(&self.python);
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--no-deps", "--only-binary=:all:", "--dest"]).arg(&folder);
        if self.cross {
            pip.arg("--platform").arg(format!("manylinux_2_35_{}", self.arch));
        }
        let output = self.run(pip.arg(&name))?;
        if !output.status.success() {
            return Err(pip_failure(&self.python, &name, &output));
        }
        let mut files = fs::read_dir(&folder).map_err(|error| unwritable(&folder, &error))?;
        match files.next() {
            Some(Ok(file)) => Ok(file.path()),
            _ => Err(Failure::new(format!(
                "pip downloaded no file for {name}: fetch it by hand {ALTERNATIVES}"
            ))),
        }
    }

    fn run(&self, command: &mut Command) -> Result<Output> {
        command.output().map_err(|error| {
            Failure::new(format!(
                "cannot run `{}` ({error}), which fetches MLX: install Python 3 with pip (Debian: apt install python3-pip) {ALTERNATIVES}",
                self.python
            ))
        })
    }
}

/// `MLXCEL_CACHE_DIR`, else `$XDG_CACHE_HOME/mlxcel`, else `~/.cache/mlxcel`, else `fallback`.
pub(crate) fn cache_dir(var: impl Fn(&str) -> Option<PathBuf>, fallback: &Path) -> PathBuf {
    let candidates =
        [("MLXCEL_CACHE_DIR", ""), ("XDG_CACHE_HOME", "mlxcel"), ("HOME", ".cache/mlxcel")];
    candidates
        .into_iter()
        .filter_map(|(name, below)| Some(var(name)?.join(below)))
        .find(|path| path.is_absolute())
        .unwrap_or_else(|| fallback.to_owned())
}

/// The name of a cache entry: package, MLX version, and the start of the hash.
pub(crate) fn entry_name(package: &str, sha256: &str) -> String {
    format!("{package}-{MLX_VERSION}-{}", &sha256[..8])
}

fn pip_failure(python: &str, name: &str, output: &Output) -> Failure {
    if String::from_utf8_lossy(&output.stderr).contains("No module named pip") {
        return Failure::new(format!(
            "`{python}` has no pip, which fetches MLX: install it (Debian: apt install python3-pip) {ALTERNATIVES}"
        ));
    }
    Failure::new(format!(
        "pip could not download {name} ({}): check the network, that pip is recent, and that glibc is 2.35 or newer, {ALTERNATIVES}",
        last_line(output)
    ))
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned()
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!(
        "cannot write {} ({error}): make it writable or set MLXCEL_CACHE_DIR to a folder that is",
        path.display()
    ))
}
