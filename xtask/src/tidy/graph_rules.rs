//! Rules about who depends on whom.

use super::{Violation, Workspace};

/// A package of the workspace: where it lies and which packages of the workspace it may use.
struct Crate {
    folder: &'static str,
    name: &'static str,
    /// Normal and build dependencies.
    uses: &'static [&'static str],
    /// What its tests may use besides.
    tests_use: &'static [&'static str],
}

/// The crates and arrows of `docs/ARCHITECTURE.md`.
const CRATES: &[Crate] = &[
    Crate { folder: "crates/mlx-ffi", name: "mlx-ffi", uses: &[], tests_use: &[] },
    Crate { folder: "crates/kernels", name: "mlxcel-kernels", uses: &[], tests_use: &[] },
    Crate { folder: "crates/estimator", name: "mlxcel-estimator", uses: &[], tests_use: &[] },
    Crate {
        folder: "crates/advisor",
        name: "mlxcel-advisor",
        uses: &["mlxcel-estimator"],
        tests_use: &[],
    },
    Crate {
        folder: "crates/core",
        name: "mlxcel-core",
        uses: &["mlx-ffi", "mlxcel-kernels", "mlxcel-estimator"],
        tests_use: &[],
    },
    Crate {
        folder: "crates/runtime",
        name: "mlxcel-runtime",
        uses: &["mlxcel-core", "mlxcel-estimator"],
        tests_use: &["mlxcel-testing"],
    },
    Crate {
        folder: "crates/hub",
        name: "mlxcel-hub",
        uses: &["mlxcel-estimator"],
        tests_use: &["mlxcel-testing"],
    },
    Crate {
        folder: "crates/server",
        name: "mlxcel-server",
        uses: &["mlxcel-runtime", "mlxcel-core", "mlxcel-estimator"],
        tests_use: &["mlxcel-testing"],
    },
    Crate {
        folder: "crates/testing",
        name: "mlxcel-testing",
        uses: &["mlxcel-estimator", "mlxcel-kernels"],
        tests_use: &[],
    },
    Crate {
        folder: "crates/cli",
        name: "cli",
        uses: &[
            "mlxcel-runtime",
            "mlxcel-hub",
            "mlxcel-server",
            "mlxcel-estimator",
            "mlxcel-advisor",
        ],
        tests_use: &["mlxcel-testing"],
    },
    Crate {
        folder: "xtask",
        name: "xtask",
        uses: &["mlxcel-estimator", "mlxcel-testing"],
        tests_use: &[],
    },
    Crate {
        folder: "benches",
        name: "mlxcel-benches",
        uses: &[
            "mlx-ffi",
            "mlxcel-kernels",
            "mlxcel-estimator",
            "mlxcel-core",
            "mlxcel-runtime",
            "mlxcel-testing",
        ],
        tests_use: &[],
    },
];

/// Only the arrows of [`CRATES`], so that the layers stay layers.
pub(super) fn crate_arrows(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for package in workspace.graph.members() {
        let Some(allowed) = CRATES.iter().find(|entry| entry.name == package.name) else {
            continue; // `package_names` reports it.
        };
        for used in workspace.graph.member_names(&package.dependencies) {
            if !allowed.uses.contains(&used) {
                violations.push(Violation {
                    place: package.name.clone(),
                    what: format!("must not depend on {used}"),
                });
            }
        }
        for used in workspace.graph.member_names(&package.dev_dependencies) {
            if ![allowed.uses, allowed.tests_use].concat().contains(&used) {
                violations.push(Violation {
                    place: package.name.clone(),
                    what: format!("its tests must not depend on {used}"),
                });
            }
        }
    }
}

/// Every member of the workspace is in [`CRATES`], under its name: a dependency that is
/// called `core` breaks `::core::…` paths in whoever depends on it.
pub(super) fn package_names(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for package in workspace.graph.members() {
        let folder = package.folder.as_deref().unwrap_or_default();
        match CRATES.iter().find(|entry| entry.folder == folder) {
            Some(entry) if entry.name == package.name => {}
            Some(entry) => violations.push(Violation {
                place: format!("{folder}/Cargo.toml"),
                what: format!("must be called {}, not {}", entry.name, package.name),
            }),
            None => violations.push(Violation {
                place: format!("{folder}/Cargo.toml"),
                what: "is not in the table of crates (xtask/src/tidy/graph_rules.rs)".into(),
            }),
        }
    }
}

/// These build with no C or C++ compiler on the machine: sizing is for embedding anywhere,
/// and xtask must build in seconds.
const NO_NATIVE_CODE: &[&str] =
    &["mlxcel-estimator", "mlxcel-advisor", "mlxcel-kernels", "mlxcel-testing", "xtask"];

/// Crates that call a native tool chain from build scripts.
const NATIVE_TOOLS: &[&str] = &["cc", "cmake", "bindgen", "pkg-config", "mlx-sys", "mlx-ffi"];

/// Crates that set `links` only to be unique in a build, with no native library behind it.
const NOT_NATIVE: &[&str] = &["rayon-core"];

/// Nothing below the crates of [`NO_NATIVE_CODE`] links or compiles native code.
pub(super) fn no_native_code(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for package in workspace.graph.members() {
        if !NO_NATIVE_CODE.contains(&package.name.as_str()) {
            continue;
        }
        for used in workspace.graph.closure(package) {
            let name = used.name.as_str();
            if (used.links && !NOT_NATIVE.contains(&name)) || NATIVE_TOOLS.contains(&name) {
                violations.push(Violation {
                    place: package.name.clone(),
                    what: format!("must build without a C compiler, but needs {name}"),
                });
            }
        }
    }
}

/// Crates that only these members may depend on, tests aside.
const RESERVED: &[(&[&str], &[&str])] = &[
    (&["anyhow", "clap"], &["cli", "xtask", "mlxcel-benches"]),
    (&["axum", "hyper", "hyper-util", "tower"], &["mlxcel-server"]),
    (&["ureq"], &["mlxcel-hub"]),
];

/// Argument parsing and untyped errors belong to front ends, HTTP to the server and the hub.
pub(super) fn front_end_crates(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for package in workspace.graph.members() {
        let used = package.dependencies.iter().filter_map(|id| workspace.graph.packages.get(id));
        for used in used {
            for (reserved, holders) in RESERVED {
                if reserved.contains(&used.name.as_str())
                    && !holders.contains(&package.name.as_str())
                {
                    violations.push(Violation {
                        place: package.name.clone(),
                        what: format!("must not depend on {}", used.name),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTIMATOR: (&str, &str, &[&str]) = ("mlxcel-estimator", "crates/estimator", &["serde"]);
    const FFI: (&str, &str, &[&str]) = ("mlx-ffi", "crates/mlx-ffi", &["cc"]);

    #[test]
    fn an_arrow_outside_the_table_is_reported() {
        let good = ("mlxcel-core", "crates/core", &["mlx-ffi", "mlxcel-estimator"][..]);
        let bad = ("mlxcel-advisor", "crates/advisor", &["mlx-ffi"][..]);
        let workspace = Workspace::of_packages(&[ESTIMATOR, FFI, good, bad]);
        assert_eq!(workspace.broken_by(crate_arrows), ["mlxcel-advisor"]);
    }

    #[test]
    fn tests_may_use_what_the_table_says_and_no_more() {
        let mut workspace = Workspace::of_packages(&[
            ("mlxcel-runtime", "crates/runtime", &[]),
            ("mlxcel-core", "crates/core", &[]),
            ("mlxcel-testing", "crates/testing", &[]),
        ]);
        for name in ["mlxcel-runtime", "mlxcel-core"] {
            let package = workspace.graph.packages.get_mut(name).unwrap();
            package.dev_dependencies.insert("mlxcel-testing".into());
        }
        assert_eq!(workspace.broken_by(crate_arrows), ["mlxcel-core"]);
    }

    #[test]
    fn a_package_called_core_or_outside_the_table_is_reported() {
        let workspace = Workspace::of_packages(&[
            ("core", "crates/core", &[]),
            ("extra", "crates/extra", &[]),
            ESTIMATOR,
        ]);
        assert_eq!(
            workspace.broken_by(package_names),
            ["crates/core/Cargo.toml", "crates/extra/Cargo.toml"]
        );
    }

    #[test]
    fn native_code_deep_below_the_estimator_is_reported() {
        let serde = ("serde", "", &["zstd-sys"][..]);
        let workspace = Workspace::of_packages(&[
            ESTIMATOR,
            FFI,
            serde,
            ("zstd-sys", "", &["cc"]),
            ("cc", "", &[]),
        ]);
        assert_eq!(workspace.broken_by(no_native_code), ["mlxcel-estimator"]);
        let workspace = Workspace::of_packages(&[ESTIMATOR, FFI, ("serde", "", &[])]);
        assert!(workspace.broken_by(no_native_code).is_empty());
    }

    #[test]
    fn a_native_library_below_the_estimator_is_reported() {
        let mut workspace = Workspace::of_packages(&[ESTIMATOR, ("serde", "", &[])]);
        workspace.graph.packages.get_mut("serde").unwrap().links = true;
        assert_eq!(workspace.broken_by(no_native_code), ["mlxcel-estimator"]);
    }

    #[test]
    fn argument_parsing_outside_front_ends_is_reported() {
        let workspace = Workspace::of_packages(&[
            ("mlxcel-server", "crates/server", &["clap", "axum"]),
            ("cli", "crates/cli", &["clap", "hyper"]),
            ("clap", "", &[]),
            ("axum", "", &[]),
            ("hyper", "", &[]),
        ]);
        assert_eq!(workspace.broken_by(front_end_crates), ["cli", "mlxcel-server"]);
    }
}
