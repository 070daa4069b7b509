//! Links MLX and passes the folder of the shared library to dependents.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result};
use crate::locate::Mlx;
use crate::prefix::Prefix;
use crate::rpath;

/// Emits Cargo's directives for linking `mlx`.
pub(crate) fn link(mlx: &Mlx, out: &Path) -> Result<()> {
    println!("cargo::rustc-check-cfg=cfg(mlxcel_mlx_sys)");
    match mlx {
        Mlx::MlxSys { .. } => println!("cargo::rustc-cfg=mlxcel_mlx_sys"),
        Mlx::Prefix(prefix) => link_prefix(prefix, out)?,
    }
    Ok(())
}

fn link_prefix(prefix: &Prefix, out: &Path) -> Result<()> {
    // Cargo puts link-search folders on the loader's path of `cargo run`, `test` and doc tests,
    // but only those below its target folder: hence the link.
    let alias = out.join("mlx");
    relink(&prefix.root, &alias)?;
    println!("cargo::rustc-link-search=native={}", alias.join(prefix.lib_dir).display());
    println!("cargo::rustc-link-lib=dylib=mlx");
    // Rebuild if the library was replaced or the cache cleared.
    println!("cargo::rerun-if-changed={}", prefix.include().join("mlx/version.h").display());
    rpath::announce(&library_dir(prefix)?);
    Ok(())
}

fn library_dir(prefix: &Prefix) -> Result<PathBuf> {
    let dir = prefix.root.join(prefix.lib_dir);
    dir.canonicalize().map_err(|error| {
        Failure::new(format!("cannot resolve {} ({error}): check MLXCEL_MLX_DIR", dir.display()))
    })
}

fn relink(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    // Nothing to remove on the first build.
    let _ = fs::remove_file(link);
    symlink(target, link).map_err(|error| {
        Failure::new(format!("cannot write {} ({error}): free some space there", link.display()))
    })
}
