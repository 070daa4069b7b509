//! Rules about manifests, documentation and other text.

use super::source::{Kind, SourceFile};
use super::{Document, Violation, Workspace};
use std::collections::BTreeSet;

const VARIABLES: &str = "docs/environment-variables.md";

/// All crates inherit the lints of the workspace.
pub(super) fn workspace_lints(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for package in workspace.graph.members() {
        let path = format!("{}/Cargo.toml", package.folder.as_deref().unwrap_or_default());
        let manifest = workspace.documents.iter().find(|document| document.path == path);
        if !manifest.is_some_and(|manifest| manifest.text.contains("[lints]\nworkspace = true")) {
            let what = "does not inherit [workspace.lints]".into();
            violations.push(Violation { place: path, what });
        }
    }
}

/// The code reads exactly the environment variables that the documentation lists.
pub(super) fn environment_variables(workspace: &Workspace, violations: &mut Vec<Violation>) {
    let documented: BTreeSet<&str> = workspace
        .documents
        .iter()
        .filter(|document| document.path == VARIABLES)
        .flat_map(|document| document.text.split(|c: char| !is_name(c)))
        .filter(|name| name.starts_with("MLXCEL_"))
        .collect();
    let mut read = BTreeSet::new();
    for file in &workspace.sources {
        for (name, line) in variables(file) {
            read.insert(name);
            if !documented.contains(name) {
                let place = format!("{}:{line}", file.path);
                violations.push(Violation { place, what: format!("{name} is not in {VARIABLES}") });
            }
        }
    }
    for name in documented.difference(&read) {
        let what = format!("{name} is not read anywhere");
        violations.push(Violation { place: VARIABLES.into(), what });
    }
}

/// String literals in production code that are names of variables, with their lines. Excludes
/// `env!("…")`, through which a build script passes values to its crate.
fn variables(file: &SourceFile) -> impl Iterator<Item = (&str, usize)> {
    let is_test = |line: usize| file.test_lines.iter().any(|lines| lines.contains(&line));
    file.tokens.iter().enumerate().filter_map(move |(index, token)| {
        let name = token.text.strip_prefix('"')?.strip_suffix('"')?;
        let internal = index >= 3 && file.tokens[index - 3].text == "env";
        let counts = token.kind == Kind::Literal
            && name.len() > "MLXCEL_".len()
            && name.starts_with("MLXCEL_")
            && name.chars().all(is_name);
        (counts && !internal && !is_test(token.line) && !file.path.contains("/tests/"))
            .then_some((name, token.line))
    })
}

fn is_name(character: char) -> bool {
    character.is_ascii_uppercase() || character.is_ascii_digit() || character == '_'
}

/// The architecture page stays short enough to be read.
pub(super) fn short_architecture(workspace: &Workspace, violations: &mut Vec<Violation>) {
    const MAX_LINES: usize = 300;
    for document in workspace.documents.iter().filter(|d| d.path == "docs/ARCHITECTURE.md") {
        let lines = document.text.lines().count();
        if lines > MAX_LINES {
            let what = format!("has {lines} lines, more than {MAX_LINES}");
            violations.push(Violation { place: document.path.clone(), what });
        }
    }
}

/// Absolute paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/opt", "/ref"),
    concat!("/Use", "rs/"),
];

/// Committed files contain no paths of a particular machine.
pub(super) fn no_machine_paths(workspace: &Workspace, violations: &mut Vec<Violation>) {
    let documents = workspace.documents.iter().map(|Document { path, text }| (path, text));
    let sources = workspace.sources.iter().map(|file| (&file.path, &file.text));
    for (path, text) in documents.chain(sources) {
        for (index, line) in text.lines().enumerate() {
            if let Some(found) = MACHINE_PATHS.iter().find(|found| line.contains(**found)) {
                let place = format!("{path}:{}", index + 1);
                violations.push(Violation { place, what: format!("names {found}") });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_the_lints_is_reported() {
        let workspace = Workspace::of_packages(&[("a", "crates/a", &[]), ("b", "crates/b", &[])])
            .with_documents(&[
                ("crates/a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
                ("crates/b/Cargo.toml", "[package]\n"),
            ]);
        assert_eq!(workspace.broken_by(workspace_lints), ["crates/b/Cargo.toml"]);
    }

    #[test]
    fn variables_are_documented_and_documented_ones_are_read() {
        let code = "//! x\nfn f() { var(\"MLXCEL_GOOD\"); var(\"MLXCEL_SECRET\"); }\n\
            const P: &str = env!(\"MLXCEL_BUILD\");\nconst S: &str = \"MLXCEL_a\";\n\
            #[cfg(test)]\nmod tests { const T: &str = \"MLXCEL_TEST\"; }\n";
        let workspace = Workspace::of_sources(&[("a.rs", code)])
            .with_documents(&[(VARIABLES, "| `MLXCEL_GOOD` | `MLXCEL_GONE` |\n")]);
        assert_eq!(workspace.broken_by(environment_variables), ["a.rs:2", VARIABLES]);
    }

    #[test]
    fn a_long_architecture_page_is_reported() {
        let path = "docs/ARCHITECTURE.md";
        let check = |lines: usize| {
            Workspace::default()
                .with_documents(&[(path, &"x\n".repeat(lines))])
                .broken_by(short_architecture)
        };
        assert!(check(300).is_empty());
        assert_eq!(check(301), [path]);
    }

    #[test]
    fn paths_of_a_machine_are_reported() {
        let path = format!("see {}notes\n", MACHINE_PATHS[0]);
        let workspace = Workspace::of_sources(&[("a.rs", &format!("//! x\n// {path}"))])
            .with_documents(&[("b.md", &path), ("c.md", "see /usr/lib\n")]);
        assert_eq!(workspace.broken_by(no_machine_paths), ["b.md:1", "a.rs:2"]);
    }
}
