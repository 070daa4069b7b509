//! How a binary finds `libmlx` at run time. Shared by the build scripts of `mlx-ffi` and of every
//! crate between it and a binary.
//!
//! `cargo::rustc-link-arg` does not reach dependents, and a crate sees the metadata of its direct
//! dependencies only. So each crate on the way has `links = "mlxcel_<name>"` and this build script:
//!
//! ```ignore
//! #[path = "../mlx-ffi/build/rpath.rs"]
//! mod rpath;
//! fn main() {
//!     rpath::forward();
//! }
//! ```

#![allow(clippy::print_stdout, reason = "that is how a build script talks to Cargo")]
// Each build script that includes this file uses one of the two functions.
#![allow(dead_code, reason = "announce is mlx-ffi's, forward is its dependents'")]

use std::env;
use std::path::Path;

/// Where a distributed binary looks, relative to itself: beside it, and in `../lib`, also with the
/// layout of a wheel (`lib/mlx/lib/libmlx.so` next to `lib/mlx_cpu.libs`).
const RELATIVE: [&str; 3] = ["../lib/mlx/lib", "../lib", "."];

/// Called by `mlx-ffi`: links its own tests against `lib_dir`, and tells its dependents.
pub(crate) fn announce(lib_dir: &Path) {
    emit(&lib_dir.display().to_string());
}

/// Called by a dependent: the same for this crate's binaries and tests, and its own dependents.
///
/// Emits nothing where MLX is linked statically.
pub(crate) fn forward() {
    println!("cargo::rerun-if-changed=build.rs");
    let announced =
        env::vars().find(|(name, _)| name.starts_with("DEP_MLXCEL_") && name.ends_with("_RPATH"));
    if let Some((_, lib_dir)) = announced {
        emit(&lib_dir);
    }
}

fn emit(lib_dir: &str) {
    let origin = match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@loader_path",
        _ => "$ORIGIN",
    };
    for relative in RELATIVE {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{origin}/{relative}");
    }
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib_dir}");
    println!("cargo::metadata=RPATH={lib_dir}");
}
