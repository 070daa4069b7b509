//! Compilation of the C++ shim against MLX.

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
        // As a system folder: MLX's headers cause warnings.
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
        Failure::new(format!("the C++ shim does not compile ({error}): {NO_COMPILER}; the build log has the compiler's messages"))
    })
}

fn includes(mlx: &Mlx) -> Vec<PathBuf> {
    match mlx {
        Mlx::Prefix(prefix) => vec![prefix.include()],
        Mlx::MlxSys { includes, .. } => includes.clone(),
    }
}

fn check_compiler(build: &cc::Build) -> Result<()> {
    let compiler = build.try_get_compiler().map_err(|error| no_compiler(&error.to_string()))?;
    match Command::new(compiler.path()).arg("--version").output() {
        Ok(_) => Ok(()),
        Err(error) => Err(no_compiler(&format!("`{}`: {error}", compiler.path().display()))),
    }
}

fn no_compiler(reason: &str) -> Failure {
    Failure::new(format!("no C++20 compiler was found ({reason}): {NO_COMPILER}"))
}

/// Lists the shim's C++ files in a stable order, and makes Cargo watch headers and sources.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        let path = entry.map_err(|error| unreadable(folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "cc") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn unreadable(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!(
        "cannot read {} ({error}): check out the repository again",
        folder.display()
    ))
}
