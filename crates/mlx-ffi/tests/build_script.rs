//! Unit tests of the build script: accepted inputs, and the message of each failure.
//!
//! A test binary of its own: it includes the build script's modules by path, without MLX, and so runs
//! on machines where the library itself cannot be built.

#![cfg(test)]

#[path = "../build/error.rs"]
mod error;
#[path = "../build/pins.rs"]
mod pins;
#[path = "../build/prefix.rs"]
mod prefix;
#[path = "../build/wheel.rs"]
mod wheel;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use error::Failure;
use pins::{CPU, CUDA, Wheel};
use prefix::{Prefix, parse_version};
use wheel::{Fetch, cache_dir, entry_name};

const VERSION_H: &str =
    "#define MLX_VERSION_MAJOR 0\n#define MLX_VERSION_MINOR 32\n#define MLX_VERSION_PATCH 4\n";

#[test]
fn pins_are_hashes_for_both_machines() {
    for wheel in CPU.iter().chain(CUDA) {
        for arch in ["x86_64", "aarch64"] {
            let hash = wheel.sha256(arch).unwrap();
            assert_eq!(hash.len(), 64, "{} {}", wheel.package, wheel.version);
            assert!(hash.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
        }
        assert_ne!(wheel.x86_64, wheel.aarch64);
        assert_eq!(wheel.sha256("riscv64"), None);
    }
}

#[test]
fn a_failure_is_one_line() {
    assert_eq!(Failure::new("a\n  b\tc").to_string(), "a b c");
}

#[test]
fn versions_are_parsed() {
    assert_eq!(parse_version(VERSION_H), Some((0, 32, 4)));
    assert_eq!(parse_version("#define MLX_VERSION_MAJOR 0\n"), None);
    assert_eq!(parse_version("#define MLX_VERSION_MAJOR x\n"), None);
}

/// A prefix with the given header and library files.
fn prefix(version_h: Option<&str>, library: Option<&str>) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("include/mlx")).unwrap();
    if let Some(text) = version_h {
        fs::write(root.path().join("include/mlx/version.h"), text).unwrap();
    }
    if let Some(path) = library {
        fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
        fs::write(root.path().join(path), "").unwrap();
    }
    root
}

#[track_caller]
fn refused(root: &tempfile::TempDir, parts: &[&str]) {
    let sentence = Prefix::check(root.path(), "MLXCEL_MLX_DIR").unwrap_err().to_string();
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

#[test]
fn a_prefix_needs_headers_and_a_library_of_a_supported_version() {
    let good = prefix(Some(VERSION_H), Some("lib/libmlx.so"));
    let found = Prefix::check(good.path(), "MLXCEL_MLX_DIR").unwrap();
    assert_eq!((found.lib_dir, found.version), ("lib", (0, 32, 4)));
    assert_eq!(found.include(), good.path().join("include"));
    let lib64 = prefix(Some(VERSION_H), Some("lib64/libmlx.so"));
    assert_eq!(Prefix::check(lib64.path(), "X").unwrap().lib_dir, "lib64");
    let headers = ["MLXCEL_MLX_DIR is", "include/mlx/version.h is not there", "or unset it"];
    refused(&prefix(None, Some("lib/libmlx.so")), &headers);
    refused(&prefix(Some(VERSION_H), None), &["no shared library", "BUILD_SHARED_LIBS=ON"]);
    refused(&prefix(Some(VERSION_H), Some("lib/libmlx.a")), &["no shared library"]);
    let relative = Prefix::check(Path::new("mlx"), "MLXCEL_MLX_DIR").unwrap_err().to_string();
    assert!(relative.contains("relative path mlx"), "{relative}");
    let old = VERSION_H.replace("32", "29");
    refused(&prefix(Some(&old), Some("lib/libmlx.so")), &["0.32.2 or newer", "newer MLX"]);
}

#[test]
fn the_cache_folder_follows_the_environment() {
    let env = |set: &'static [(&str, &str)]| {
        move |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v))
    };
    let fallback = Path::new("/fallback");
    let all = &[("MLXCEL_CACHE_DIR", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
    assert_eq!(cache_dir(env(all), fallback), Path::new("/a"));
    assert_eq!(cache_dir(env(&all[1..]), fallback), Path::new("/b/mlxcel"));
    assert_eq!(cache_dir(env(&all[2..]), fallback), Path::new("/c/.cache/mlxcel"));
    assert_eq!(cache_dir(env(&[("HOME", "relative")]), fallback), fallback);
    assert_eq!(entry_name("mlx-cpu", &"ab".repeat(32)), "mlx-cpu-0.32.4-abababab");
}

/// A wheel file, a Python whose pip delivers it, and a cache.
struct Index {
    root: tempfile::TempDir,
    sha256: &'static str,
}

impl Index {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let script = "import hashlib, sys, zipfile\n\
            with zipfile.ZipFile(sys.argv[1], 'w') as z: z.writestr('mlx/include/x.h', 'hello')\n\
            print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest(), end='')";
        let file = root.path().join("a.whl");
        let output = Command::new("python3").args(["-c", script]).arg(&file).output().unwrap();
        let sha256 = String::from_utf8(output.stdout).unwrap().leak();
        assert_eq!(sha256.len(), 64);
        Self { root, sha256 }
    }

    fn wheel(&self) -> [Wheel; 1] {
        [Wheel { package: "mlx-cpu", version: "1", x86_64: self.sha256, aarch64: self.sha256 }]
    }

    /// Fetches with a Python whose `-m pip` runs the shell command `pip`.
    fn fetch(&self, pip: &str) -> Fetch {
        let python = self.root.path().join("python");
        // The last two arguments of `pip download` are the folder and the package.
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" != -m ]; then exec python3 \"$@\"; fi\n\
             while [ \"$1\" != --dest ]; do shift; done\ndest=$2\nmkdir -p \"$dest\"\n{pip}\n"
        );
        fs::write(&python, text).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        Fetch {
            python: python.to_str().unwrap().to_owned(),
            cache: self.root.path().join("cache"),
            arch: "x86_64".to_owned(),
            cross: false,
        }
    }

    fn deliver(&self) -> String {
        format!("cp {} \"$dest\"", self.root.path().join("a.whl").display())
    }

    #[track_caller]
    fn fails(&self, fetch: &Fetch, parts: &[&str]) {
        let sentence = fetch.prefix(&self.wheel()).unwrap_err().to_string();
        for part in parts {
            assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
        }
        let left = fs::read_dir(&fetch.cache).map_or(0, Iterator::count);
        assert_eq!(left, 0, "something is left in the cache");
    }
}

#[test]
fn a_wheel_is_fetched_once() {
    let index = Index::new();
    let root = index.fetch(&index.deliver()).prefix(&index.wheel()).unwrap();
    assert_eq!(fs::read_to_string(root.join("include/x.h")).unwrap(), "hello");
    let entry = root.parent().unwrap();
    assert_eq!(fs::read_dir(entry.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(index.fetch("exit 1").prefix(&index.wheel()).unwrap(), root);
}

#[test]
fn a_wrong_hash_is_rejected() {
    let index = Index::new();
    let other = format!("{}; echo >> \"$dest/a.whl\"", index.deliver());
    index.fails(&index.fetch(&other), &["not the pinned one", index.sha256, "MLXCEL_MLX_DIR"]);
}

#[test]
fn missing_python_pip_or_network_each_have_a_message() {
    let index = Index::new();
    let mut fetch = index.fetch("exit 0");
    fetch.python = "/no/such/python".to_owned();
    index.fails(&fetch, &["cannot run `/no/such/python`", "python3-pip", "MLXCEL_MLX_DIR"]);
    let pip = index.fetch("echo 'python: No module named pip' >&2; exit 1");
    index.fails(&pip, &["has no pip", "apt install python3-pip", "MLXCEL_MLX_DIR"]);
    let network = index.fetch("echo; echo 'ERROR: No matching distribution' >&2; exit 1");
    index.fails(&network, &["mlx-cpu==1", "No matching distribution", "network", "MLXCEL_MLX_DIR"]);
    index.fails(&index.fetch("exit 0"), &["no file for mlx-cpu==1", "MLXCEL_MLX_DIR"]);
}

#[test]
fn an_unknown_architecture_and_a_read_only_cache() {
    let index = Index::new();
    let mut fetch = index.fetch(&index.deliver());
    fetch.arch = "riscv64".to_owned();
    index.fails(&fetch, &["no prebuilt MLX for riscv64", "MLXCEL_MLX_SOURCE"]);
    fetch.arch = "aarch64".to_owned();
    fetch.cache = PathBuf::from("/proc/no");
    index.fails(&fetch, &["cannot write /proc/no", "MLXCEL_CACHE_DIR"]);
}

#[test]
fn a_broken_wheel_leaves_nothing_behind() {
    let mut index = Index::new();
    let file = index.root.path().join("a.whl");
    fs::write(&file, "no zip").unwrap();
    let output = Command::new("sha256sum").arg(&file).output().unwrap();
    index.sha256 = String::from_utf8(output.stdout[..64].to_vec()).unwrap().leak();
    index
        .fails(&index.fetch(&index.deliver()), &["unpacking", "not a zip file", "free some space"]);
}
