//! Invariants of the code base that the compiler does not check, as a table of rules.
//!
//! A rule is a function from the workspace to violations. Each has a test in which it reports an
//! offending workspace in memory and accepts a good one. The test `workspace_is_tidy` runs all rules on
//! the checkout.

mod documents;
mod graph;
mod graph_rules;
mod source;
mod source_rules;
#[cfg(test)]
mod testing;
mod unused_pub;

use anyhow::{Context, Result, bail};
use graph::Graph;
use mlxcel_testing::paths::workspace_root;
use source::SourceFile;
use std::path::Path;

/// Input of the rules.
#[derive(Default)]
struct Workspace {
    graph: Graph,
    sources: Vec<SourceFile>,
    documents: Vec<Document>,
}

/// A text file other than Rust: manifest, documentation, script, configuration.
struct Document {
    /// Relative to the root of the workspace, with `/`.
    path: String,
    text: String,
}

/// Place and description of a broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    /// A path, `path:line`, or the name of a package.
    place: String,
    what: String,
}

struct Rule {
    name: &'static str,
    check: fn(&Workspace, &mut Vec<Violation>),
}

/// All rules; each function documents its rule and the reason.
const RULES: &[Rule] = &[
    Rule { name: "crate-arrows", check: graph_rules::crate_arrows },
    Rule { name: "package-names", check: graph_rules::package_names },
    Rule { name: "no-native-code", check: graph_rules::no_native_code },
    Rule { name: "front-end-crates", check: graph_rules::front_end_crates },
    Rule { name: "unsafe-folders", check: source_rules::unsafe_folders },
    Rule { name: "file-length", check: source_rules::file_length },
    Rule { name: "module-docs", check: source_rules::module_docs },
    Rule { name: "no-placeholders", check: source_rules::no_placeholders },
    Rule { name: "ignore-reasons", check: source_rules::ignore_reasons },
    Rule { name: "http-in-server", check: source_rules::http_in_server },
    Rule { name: "one-block-size", check: source_rules::one_block_size },
    Rule { name: "unused-pub", check: unused_pub::unused_pub },
    Rule { name: "workspace-lints", check: documents::workspace_lints },
    Rule { name: "environment-variables", check: documents::environment_variables },
    Rule { name: "short-architecture", check: documents::short_architecture },
    Rule { name: "no-machine-paths", check: documents::no_machine_paths },
];

/// Runs all rules on the checkout; the error lists every violation.
pub(crate) fn run() -> Result<()> {
    let workspace = Workspace::load(&workspace_root())?;
    let mut report = String::new();
    for rule in RULES {
        let mut violations = Vec::new();
        (rule.check)(&workspace, &mut violations);
        for Violation { place, what } in violations {
            report.push_str(&format!("\n  {place}: {what} [{}]", rule.name));
        }
    }
    if !report.is_empty() {
        bail!("the workspace is not tidy:{report}");
    }
    eprintln!("tidy: {} rules over {} Rust files", RULES.len(), workspace.sources.len());
    Ok(())
}

impl Workspace {
    fn load(root: &Path) -> Result<Self> {
        let mut workspace = Self { graph: Graph::load(root)?, ..Self::default() };
        workspace.read_folder(root, root)?;
        Ok(workspace)
    }

    /// Reads the input of the rules below `folder`, without build output and hidden folders other than
    /// `.ci` and `.cargo`.
    fn read_folder(&mut self, root: &Path, folder: &Path) -> Result<()> {
        let mut entries: Vec<_> = std::fs::read_dir(folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .collect::<std::io::Result<_>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
            let kind = entry.file_type()?;
            if kind.is_dir() && !hidden && name != "target" {
                self.read_folder(root, &entry.path())?;
            } else if kind.is_file() {
                self.read_file(root, &entry.path())?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, root: &Path, path: &Path) -> Result<()> {
        const DOCUMENTS: &[&str] =
            &["toml", "md", "py", "sh", "yml", "yaml", "h", "hpp", "cc", "cpp"];
        let name = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
        let is_script = name.starts_with(".ci/");
        if extension == "rs" {
            self.sources.push(SourceFile::parse(&name, &read_text(path)?)?);
        } else if DOCUMENTS.contains(&extension) || is_script {
            self.documents.push(Document { path: name, text: read_text(path)? });
        }
        Ok(())
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn rule_names_are_unique() {
        let mut names: Vec<_> = RULES.iter().map(|rule| rule.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RULES.len());
    }
}
