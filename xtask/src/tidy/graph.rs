//! The crate graph from `cargo metadata`.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Supported platforms. Dependencies of other platforms, such as bindings to browsers, are never built.
const PLATFORMS: [&str; 3] =
    ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"];

/// A package of the workspace or one of its dependencies.
#[derive(Debug, Default)]
pub(super) struct Package {
    /// The package's name.
    pub name: String,
    /// Its folder relative to the workspace root, with `/`; `None` outside the workspace.
    pub folder: Option<String>,
    /// Ids of its normal and build dependencies.
    pub dependencies: BTreeSet<String>,
    /// Ids of its dev-dependencies.
    pub dev_dependencies: BTreeSet<String>,
    /// True if it declares a native library (`links = "…"`).
    pub links: bool,
}

/// All packages, by package id.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Keys are opaque ids.
    pub packages: BTreeMap<String, Package>,
}

impl Graph {
    /// Runs cargo, with default features.
    pub(super) fn load(root: &Path) -> Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(PLATFORMS.iter().flat_map(|platform| ["--filter-platform", platform]))
            .current_dir(root)
            .output()
            .context("running cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let root = root.canonicalize()?;
        Self::from_json(&serde_json::from_slice(&output.stdout)?, &root)
    }

    /// Parses the JSON of `cargo metadata`, format version 1.
    pub(super) fn from_json(metadata: &Value, root: &Path) -> Result<Self> {
        let mut graph = Self::default();
        let members: BTreeSet<&str> =
            array(metadata, "workspace_members")?.iter().filter_map(Value::as_str).collect();
        for package in array(metadata, "packages")? {
            let id = string(package, "id")?;
            let manifest = Path::new(string(package, "manifest_path")?);
            let folder = manifest.parent().and_then(|folder| folder.strip_prefix(root).ok());
            graph.packages.insert(
                id.into(),
                Package {
                    name: string(package, "name")?.into(),
                    folder: folder
                        .filter(|_| members.contains(id))
                        .map(|folder| folder.to_string_lossy().replace('\\', "/")),
                    links: !package["links"].is_null(),
                    ..Package::default()
                },
            );
        }
        for node in array(&metadata["resolve"], "nodes")? {
            graph.add_edges(node)?;
        }
        Ok(graph)
    }

    fn add_edges(&mut self, node: &Value) -> Result<()> {
        let id = string(node, "id")?;
        let package = self.packages.get_mut(id).with_context(|| format!("{id} is unknown"))?;
        for dependency in array(node, "deps")? {
            let target = string(dependency, "pkg")?;
            for kind in array(dependency, "dep_kinds")? {
                let edges = match kind["kind"].as_str() {
                    Some("dev") => &mut package.dev_dependencies,
                    _ => &mut package.dependencies,
                };
                edges.insert(target.into());
            }
        }
        Ok(())
    }

    /// The packages of the workspace.
    pub(super) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.values().filter(|package| package.folder.is_some())
    }

    /// Names of the packages behind `ids`, members of the workspace only.
    pub(super) fn member_names<'a>(
        &'a self,
        ids: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a str> + 'a {
        ids.iter()
            .filter_map(|id| self.packages.get(id))
            .filter(|package| package.folder.is_some())
            .map(|package| package.name.as_str())
    }

    /// All transitive normal and build dependencies of `package`.
    pub(super) fn closure<'a>(&'a self, package: &'a Package) -> Vec<&'a Package> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&str> = package.dependencies.iter().map(String::as_str).collect();
        while let Some(id) = open.pop() {
            if seen.insert(id)
                && let Some(package) = self.packages.get(id)
            {
                open.extend(package.dependencies.iter().map(String::as_str));
            }
        }
        seen.into_iter().filter_map(|id| self.packages.get(id)).collect()
    }
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("cargo metadata has no list {key}"))
}

fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no string {key}"))
}
