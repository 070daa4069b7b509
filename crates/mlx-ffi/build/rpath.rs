//! Run-time search path for `libmlx`. Shared by the build scripts of `mlx-ffi` and of every crate
//! between it and a binary.
//!
//! `cargo::rustc-link-arg` does not reach dependents, and a crate sees only the metadata of its direct
//! dependencies. Each crate in between therefore has `links = "mlxcel_<name>"` and this build script:
//!
//! ```ignore
//! #[path = "../mlx-ffi/build/rpath.rs"]
//! mod rpath;
//! fn main() {
//!     rpath::forward();
//! }
//! ```

#![allow(clippy::print_stdout, reason = "a build script communicates with Cargo through stdout")]
// Each build script that includes this file uses one of the two functions.
#![allow(dead_code, reason = "announce is mlx-ffi's, forward is its dependents'")]

use std::env;
use std::path::Path;

/// Search path of a distributed binary, relative to itself: its own folder and `../lib`, also in the
/// layout of a wheel (`lib/mlx/lib/libmlx.so` next to `lib/mlx_cpu.libs`).
const RELATIVE: [&str; 3] = ["../lib/mlx/lib", "../lib", "."];

/// Sets the search path of `mlx-ffi`'s tests to `lib_dir` and passes it to dependents.
pub(crate) fn announce(lib_dir: &Path) {
    emit(&lib_dir.display().to_string());
}

/// Sets the search path of a dependent's binaries and tests and passes it on to its own dependents.
///
/// Emits nothing if MLX is linked statically.
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
