//! Validation of an installed MLX: `include/mlx` and `lib/libmlx.{so,dylib}` under one prefix.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result};
use crate::pins::OLDEST_MLX;

/// A prefix with headers and a shared library of a supported version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) root: PathBuf,
    pub(crate) lib_dir: &'static str,
    pub(crate) version: (u32, u32, u32),
}

impl Prefix {
    /// Checks `root`; messages name `origin`, the variable that it came from.
    pub(crate) fn check(root: &Path, origin: &str) -> Result<Self> {
        if !root.is_absolute() {
            return Err(Failure::new(format!(
                "{origin} is the relative path {}: set it to an absolute one",
                root.display()
            )));
        }
        let header = root.join("include/mlx/version.h");
        let text = fs::read_to_string(&header).map_err(|_| {
            Failure::new(format!(
                "{origin} is {} but {} is not there: set it to a folder with include/mlx and lib/libmlx.so, or unset it",
                root.display(),
                header.display()
            ))
        })?;
        let version =
            parse_version(&text).filter(|found| *found >= OLDEST_MLX).ok_or_else(|| {
                Failure::new(format!(
                    "{} is not of MLX {}.{}.{} or newer: point {origin} to a newer MLX",
                    header.display(),
                    OLDEST_MLX.0,
                    OLDEST_MLX.1,
                    OLDEST_MLX.2
                ))
            })?;
        let lib_dir = ["lib", "lib64"].into_iter().find(|dir| {
            ["libmlx.so", "libmlx.dylib"].iter().any(|file| root.join(dir).join(file).is_file())
        });
        match lib_dir {
            Some(lib_dir) => Ok(Self { root: root.to_owned(), lib_dir, version }),
            None => Err(Failure::new(format!(
                "{origin} is {} but there is no shared library lib/libmlx.so (or .dylib) in it: build MLX with BUILD_SHARED_LIBS=ON, or unset {origin}",
                root.display()
            ))),
        }
    }

    /// The folder of the headers.
    pub(crate) fn include(&self) -> PathBuf {
        self.root.join("include")
    }
}

/// The three `MLX_VERSION_*` numbers of a `version.h`.
pub(crate) fn parse_version(header: &str) -> Option<(u32, u32, u32)> {
    let major = parse_define(header, "MLX_VERSION_MAJOR")?;
    let minor = parse_define(header, "MLX_VERSION_MINOR")?;
    let patch = parse_define(header, "MLX_VERSION_PATCH")?;
    Some((major, minor, patch))
}

/// The value of `#define name NUMBER`.
fn parse_define(header: &str, name: &str) -> Option<u32> {
    header.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let defines = words.next() == Some("#define") && words.next() == Some(name);
        if defines { words.next()?.parse().ok() } else { None }
    })
}
