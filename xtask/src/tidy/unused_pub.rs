//! The rule about `pub` items that no other crate uses.
//!
//! The compiler reports dead private items, but not public ones. This rule goes by names: an item counts
//! as used if its name occurs in another package, in tests, benches, examples or fuzz targets, or in a
//! Markdown document. Common names such as `new` therefore always pass; a report is always right.

use super::source::{Kind, SourceFile, Token, closing};
use super::source_rules::GENERATED;
use super::{Violation, Workspace};
use std::collections::{BTreeMap, BTreeSet};

/// Crates whose public items are an API for programs outside of this repository.
const PUBLIC_APIS: &[(&str, &str)] = &[
    ("crates/estimator", "sizing is meant for embedding in other programs"),
    ("crates/advisor", "recommendations are meant for embedding in other programs"),
    ("crates/kernels", "the kernels have no dependency on this repository"),
];

/// Items that stay public without a user: name and reason.
const ALLOWED: &[(&str, &str)] = &[];

/// A `pub` item of a library.
struct Item<'a> {
    name: &'a str,
    line: usize,
    is_type: bool,
}

/// Public items have a user outside of their crate.
pub(super) fn unused_pub(workspace: &Workspace, violations: &mut Vec<Violation>) {
    let packages: Vec<&str> =
        workspace.graph.members().filter_map(|package| package.folder.as_deref()).collect();
    let users = users_by_name(workspace, &packages);
    for library in &packages {
        let is_api = PUBLIC_APIS.iter().any(|(folder, _)| folder == library);
        if is_api {
            continue;
        }
        let files: Vec<&SourceFile> = workspace
            .sources
            .iter()
            .filter(|file| library_of(file, &packages) == Some(library))
            .filter(|file| !GENERATED.contains(&file.path.as_str()))
            .collect();
        let exposed = exposed_names(&files);
        for file in files {
            for item in public_items(file) {
                let is_allowed = ALLOWED.iter().any(|(name, _)| *name == item.name);
                let is_used = users
                    .get(item.name)
                    .is_some_and(|users| users.iter().any(|user| user != library));
                let is_exposed = item.is_type && exposed.contains(item.name);
                if !(is_allowed || is_used || is_exposed) {
                    violations.push(Violation {
                        place: format!("{}:{}", file.path, item.line),
                        what: format!("`pub {}` is used by no other crate", item.name),
                    });
                }
            }
        }
    }
}

/// The packages, or files outside of any library, in which each name occurs.
fn users_by_name<'a>(
    workspace: &'a Workspace,
    packages: &[&'a str],
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in &workspace.sources {
        let user = library_of(file, packages).unwrap_or(&file.path);
        for token in file.tokens.iter().filter(|token| token.kind == Kind::Ident) {
            users.entry(&token.text).or_default().insert(user);
        }
    }
    for document in workspace.documents.iter().filter(|document| document.path.ends_with(".md")) {
        for word in document.text.split(|c: char| !c.is_alphanumeric() && c != '_') {
            users.entry(word).or_default().insert(&document.path);
        }
    }
    users
}

/// The folder of the package whose library contains the file; `None` for binaries, build scripts, tests
/// and everything else.
fn library_of<'a>(file: &SourceFile, packages: &[&'a str]) -> Option<&'a str> {
    packages.iter().copied().find(|package| {
        let inside = file.path.strip_prefix(package).and_then(|path| path.strip_prefix("/src/"));
        inside.is_some_and(|path| path != "main.rs" && !path.starts_with("bin/"))
    })
}

/// The `pub` items of a file outside of `#[cfg(test)]`, without modules, re-exports and fields.
fn public_items(file: &SourceFile) -> impl Iterator<Item = Item<'_>> {
    file.tokens.iter().enumerate().filter_map(|(index, token)| {
        let is_test = file.test_lines.iter().any(|lines| lines.contains(&token.line));
        if token.text != "pub" || is_test {
            return None;
        }
        let (kind, name) = item_after(&file.tokens[index + 1..])?;
        // A macro's parameter.
        if name == "$" {
            return None;
        }
        let is_type = !matches!(kind, "fn" | "const" | "static");
        Some(Item { name, line: token.line, is_type })
    })
}

/// Kind and name of the item whose visibility is followed by `tokens`.
fn item_after(tokens: &[Token]) -> Option<(&str, &str)> {
    let mut words = tokens.iter().take(6).map(|token| token.text.as_str()).peekable();
    while let Some(word) = words.next() {
        match word {
            "unsafe" | "async" | "extern" | "\"C\"" => {}
            "const" if matches!(words.peek(), Some(&("fn" | "unsafe" | "async" | "extern"))) => {}
            "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static" => {
                return Some((word, words.next()?));
            }
            _ => return None,
        }
    }
    None
}

/// Names in the public signatures, fields and variants of a library: its users hold such types without
/// naming them.
fn exposed_names<'a>(files: &[&'a SourceFile]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for file in files {
        for (index, token) in file.tokens.iter().enumerate() {
            if token.text == "pub" {
                let signature = signature(&file.tokens[index + 1..]);
                names.extend(signature.iter().map(|token| token.text.as_str()));
            }
        }
    }
    names
}

/// The tokens of an item after its name, up to its body; of enums and traits also the body.
fn signature(tokens: &[Token]) -> &[Token] {
    let (start, has_public_body) = match item_after(tokens) {
        Some((kind, name)) => {
            let place = tokens.iter().position(|token| token.text == name).unwrap_or(0);
            (place + 1, matches!(kind, "enum" | "trait"))
        }
        None => (0, false),
    };
    let mut end = start;
    while end < tokens.len() {
        match tokens[end].text.as_str() {
            "{" if has_public_body => return &tokens[start..=closing(tokens, end)],
            "{" | ";" | "}" => break,
            "(" | "[" => end = closing(tokens, end) + 1,
            _ => end += 1,
        }
    }
    &tokens[start..end.min(tokens.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(sources: &[(&str, &str)], documents: &[(&str, &str)]) -> Vec<String> {
        let packages = [("ffi", "crates/mlx-ffi", &[][..]), ("cli", "crates/cli", &[][..])];
        let mut workspace = Workspace::of_packages(&packages);
        workspace.sources = Workspace::of_sources(sources).sources;
        workspace.with_documents(documents).broken_by(unused_pub)
    }

    const LIBRARY: &str = "//! x\n\
        pub fn used() {}\n\
        pub fn forgotten() {}\n\
        pub const unsafe fn also_forgotten() {}\n\
        pub(crate) fn private() {}\n\
        impl S { pub fn method(&self) -> Returned { forgotten() } }\n\
        pub struct Returned;\n\
        pub struct Lost { pub field: Held }\n\
        pub enum Held { A(Inner) }\n\
        pub struct Inner;\n\
        pub mod m;\n\
        #[cfg(test)]\nmod tests { pub fn helper() {} }\n";

    #[test]
    fn items_without_a_user_outside_are_reported() {
        let sources = [
            ("crates/mlx-ffi/src/lib.rs", LIBRARY),
            ("crates/cli/src/main.rs", "//! x\nfn main() { used(); s.method(); }\n"),
        ];
        let expected = [
            "crates/mlx-ffi/src/lib.rs:3",
            "crates/mlx-ffi/src/lib.rs:4",
            "crates/mlx-ffi/src/lib.rs:8",
        ];
        assert_eq!(broken(&sources, &[]), expected);
    }

    #[test]
    fn tests_and_documents_are_users() {
        let sources = [
            ("crates/mlx-ffi/src/lib.rs", LIBRARY),
            ("crates/mlx-ffi/tests/it.rs", "//! x\nfn a() { used(); forgotten(); method(); }\n"),
        ];
        let documents = [("docs/x.md", "call `also_forgotten()` or `Lost`")];
        assert!(broken(&sources, &documents).is_empty());
    }

    #[test]
    fn a_public_api_is_exempt() {
        let library = [("crates/estimator/src/lib.rs", LIBRARY)];
        let mut workspace = Workspace::of_packages(&[("e", "crates/estimator", &[])]);
        workspace.sources = Workspace::of_sources(&library).sources;
        assert!(workspace.broken_by(unused_pub).is_empty());
    }
}
