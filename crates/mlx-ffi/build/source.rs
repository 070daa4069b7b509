//! Build of MLX from a source tree: always in Release, as one shared library.
//!
//! MLX's dependencies (`fmt`, `nlohmann_json`) come from the system if installed; otherwise MLX's build
//! downloads them. GGUF support is disabled: it is unused and another download.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result};

const SYSTEM_INCLUDES: [&str; 3] = ["/usr/include", "/usr/local/include", "/opt/homebrew/include"];

/// Builds `source` under `out` and returns the installation prefix.
pub(crate) fn build(source: &Path, out: &Path) -> Result<PathBuf> {
    let is_tree = source.is_absolute() && source.join("CMakeLists.txt").is_file();
    if !is_tree || !source.join("mlx/version.h").is_file() {
        return Err(Failure::new(format!(
            "MLXCEL_MLX_SOURCE is {} but that is not a source tree of MLX: set it to the absolute path of a folder with CMakeLists.txt and mlx/version.h, or unset it",
            source.display()
        )));
    }
    if std::process::Command::new("cmake").arg("--version").output().is_err() {
        return Err(Failure::new(
            "MLXCEL_MLX_SOURCE needs cmake: install it (Debian: apt install cmake), or unset the variable",
        ));
    }
    let mut config = cmake::Config::new(source);
    config.profile("Release").out_dir(out.join("mlx-source"));
    for (option, on) in options() {
        config.define(option, if on { "ON" } else { "OFF" });
    }
    if let Some(json) = system_json(out)? {
        config.define("FETCHCONTENT_SOURCE_DIR_JSON", json);
    }
    if system_header("cblas.h").is_some() && has_openblas() {
        config.define("BLA_VENDOR", "OpenBLAS");
    }
    Ok(config.build())
}

fn options() -> [(&'static str, bool); 8] {
    [
        ("BUILD_SHARED_LIBS", true),
        ("MLX_BUILD_TESTS", false),
        ("MLX_BUILD_EXAMPLES", false),
        ("MLX_BUILD_BENCHMARKS", false),
        ("MLX_BUILD_PYTHON_BINDINGS", false),
        ("MLX_BUILD_GGUF", false),
        ("MLX_BUILD_CUDA", env::var_os("CARGO_FEATURE_CUDA").is_some()),
        ("USE_SYSTEM_FMT", system_header("fmt/core.h").is_some()),
    ]
}

/// Links the system's JSON headers into a folder with the layout that MLX's build expects.
fn system_json(out: &Path) -> Result<Option<PathBuf>> {
    let Some(include) = system_header("nlohmann/json.hpp") else { return Ok(None) };
    let root = out.join("json");
    let link = root.join("single_include/nlohmann");
    if !link.exists() {
        fs::create_dir_all(root.join("single_include"))
            .and_then(|()| std::os::unix::fs::symlink(include.join("nlohmann"), &link))
            .map_err(|error| {
                Failure::new(format!(
                    "cannot write {} ({error}): free some space there",
                    link.display()
                ))
            })?;
    }
    Ok(Some(root))
}

fn system_header(name: &str) -> Option<PathBuf> {
    SYSTEM_INCLUDES.iter().map(PathBuf::from).find(|dir| dir.join(name).is_file())
}

fn has_openblas() -> bool {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let folders = [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into()];
    folders.iter().any(|dir| Path::new(dir).join("libopenblas.so").exists())
}
