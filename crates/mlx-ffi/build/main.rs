//! Build script of `mlx-ffi`: finds MLX, compiles the C++ shim against it, and links both.
//!
//! Every failure is reported as one sentence that says what to do; nothing here panics.

#![expect(clippy::print_stdout, reason = "a build script communicates with Cargo through stdout")]

mod error;
mod link;
mod locate;
mod pins;
mod prefix;
mod rpath;
mod shim;
mod source;
mod wheel;

use std::env;
use std::path::PathBuf;

use error::{Failure, Result};

fn main() {
    if let Err(failure) = run() {
        println!("cargo::error={failure}");
    }
}

fn run() -> Result<()> {
    for name in ["MLXCEL_PYTHON", "MLXCEL_CACHE_DIR", "XDG_CACHE_HOME", "CXX", "CXXFLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build");
    let out = cargo_dir("OUT_DIR")?;
    let mlx = locate::locate(&out)?;
    warn_of_other_version(&mlx);
    shim::compile(&mlx, &cargo_dir("CARGO_MANIFEST_DIR")?)?;
    link::link(&mlx, &out)
}

fn warn_of_other_version(mlx: &locate::Mlx) {
    if let locate::Mlx::Prefix(prefix::Prefix { version: (major, minor, patch), .. }) = mlx {
        let found = format!("{major}.{minor}.{patch}");
        if found != pins::MLX_VERSION {
            println!("cargo::warning=MLX is {found}; mlxcel is tested with {}", pins::MLX_VERSION);
        }
    }
}

fn cargo_dir(name: &str) -> Result<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| Failure::new(format!("{name} is not set: run this through cargo")))
}
