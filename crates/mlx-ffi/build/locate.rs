//! Search for MLX: four sources, in order. The first one that is configured is used or fails the build.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result};
use crate::pins;
use crate::prefix::Prefix;
use crate::source;
use crate::wheel::{Fetch, cache_dir};

/// An MLX to compile the shim against and to link.
#[derive(Debug)]
pub(crate) enum Mlx {
    /// A folder with headers and a shared library.
    Prefix(Prefix),
    /// The static library that the `mlx-sys` crate builds and links.
    MlxSys { includes: Vec<PathBuf>, defines: Vec<String> },
}

/// Finds MLX: `MLXCEL_MLX_DIR`, `MLXCEL_MLX_SOURCE`, `mlx-sys` (macOS), the pinned wheel (Linux).
pub(crate) fn locate(out: &Path) -> Result<Mlx> {
    if let Some(root) = path_var("MLXCEL_MLX_DIR") {
        return Ok(Mlx::Prefix(Prefix::check(&root, "MLXCEL_MLX_DIR")?));
    }
    if let Some(tree) = path_var("MLXCEL_MLX_SOURCE") {
        let root = source::build(&tree, out)?;
        return Ok(Mlx::Prefix(Prefix::check(&root, "MLXCEL_MLX_SOURCE")?));
    }
    match cargo_cfg("TARGET_OS").as_str() {
        "macos" => mlx_sys(),
        "linux" => wheel(out),
        other => Err(Failure::new(format!(
            "no prebuilt MLX is known for {other}: set MLXCEL_MLX_DIR to an installed MLX"
        ))),
    }
}

fn wheel(out: &Path) -> Result<Mlx> {
    let wheels = if env::var_os("CARGO_FEATURE_CUDA").is_some() { pins::CUDA } else { pins::CPU };
    let arch = cargo_cfg("TARGET_ARCH");
    let host = env::var("HOST").unwrap_or_default();
    let fetch = Fetch {
        python: env::var("MLXCEL_PYTHON").unwrap_or_else(|_| "python3".to_owned()),
        cache: cache_dir(|name| env::var_os(name).map(PathBuf::from), &out.join("cache")),
        cross: host.split('-').next() != Some(arch.as_str()),
        arch,
    };
    let root = fetch.prefix(wheels)?;
    Ok(Mlx::Prefix(Prefix::check(&root, "the MLX cache (MLXCEL_CACHE_DIR)")?))
}

fn mlx_sys() -> Result<Mlx> {
    let include = env::var_os("DEP_MLX_INCLUDE").ok_or_else(|| {
        Failure::new(
            "the mlx-sys crate set no DEP_MLX_INCLUDE: run `cargo update -p mlx-sys --precise 0.7.0`, or set MLXCEL_MLX_DIR",
        )
    })?;
    let defines = env::var("DEP_MLX_DEFINES").unwrap_or_default();
    Ok(Mlx::MlxSys {
        includes: env::split_paths(&include).collect(),
        defines: defines.split([' ', ',', ';']).filter(|d| !d.is_empty()).map(Into::into).collect(),
    })
}

fn path_var(name: &str) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn cargo_cfg(name: &str) -> String {
    env::var(format!("CARGO_CFG_{name}")).unwrap_or_default()
}
