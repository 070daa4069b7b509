//! Compiles the C++ shim against the MLX that was found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Failure, Result};
use crate::locate::Mlx;

const NO_COMPILER: &str =
    "install g++ 11 or newer (Debian: apt install g++) or clang++ 14 or newer, or set CXX to one";

/// Compiles every `shim/*.cc` into a static library that Cargo links.
pub(crate) fn compile(mlx: &Mlx, manifest: &Path) -> Result<()> {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .warnings(true)
        .flag_if_supported("-Wno-unused-parameter");
    build.cargo_warnings(false);
    for include in includes(mlx) {
        // A system folder: MLX's own headers are not free of warnings.
        build.flag("-isystem").flag(include);
    }
    if let Mlx::MlxSys { defines, .. } = mlx {
        for define in defines {
            build.define(define, None);
        }
    }
    build.files(sources(&manifest.join("shim"))?);
    check_compiler(&build)?;
    build.try_compile("mlxcel_shim").map_err(|error| {
        Failure::new(format!("the C++ shim does not compile ({error}): {NO_COMPILER}; the build log has the compiler's own words"))
    })
}

fn includes(mlx: &Mlx) -> Vec<PathBuf> {
    match mlx {
        Mlx::Prefix(prefix) => vec![prefix.include()],
        Mlx::MlxSys { includes, .. } => includes.clone(),
    }
}

fn check_compiler(build: &cc::Build) -> Result<()> {
    let missing =
        |why: String| Failure::new(format!("no C++20 compiler was found ({why}): {NO_COMPILER}"));
    let compiler = build.try_get_compiler().map_err(|error| missing(error.to_string()))?;
    match Command::new(compiler.path()).arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(missing(format!("`{}`: {error}", compiler.path().display()))),
    }
}

/// Every C++ file of the shim, in a stable order; headers and sources are watched.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let unreadable = |error| {
        Failure::new(format!(
            "cannot read {} ({error}): check out the repository again",
            folder.display()
        ))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "cc") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
