//! Workspaces in memory, for the tests of the rules.

use super::graph::{Graph, Package};
use super::source::SourceFile;
use super::{Document, Violation, Workspace};

impl Workspace {
    /// A workspace of Rust files, `(path, text)`.
    pub(super) fn of_sources(files: &[(&str, &str)]) -> Self {
        let sources =
            files.iter().map(|(path, text)| SourceFile::parse(path, text).unwrap()).collect();
        Self { sources, ..Self::default() }
    }

    /// Sets the documents, `(path, text)`.
    pub(super) fn with_documents(mut self, files: &[(&str, &str)]) -> Self {
        self.documents = files
            .iter()
            .map(|(path, text)| Document { path: (*path).into(), text: (*text).into() })
            .collect();
        self
    }

    /// A workspace of packages, `(name, folder or "", normal dependencies)`.
    pub(super) fn of_packages(packages: &[(&str, &str, &[&str])]) -> Self {
        let mut graph = Graph::default();
        for (name, folder, dependencies) in packages {
            let package = Package {
                name: (*name).into(),
                folder: (!folder.is_empty()).then(|| (*folder).into()),
                dependencies: dependencies.iter().map(|name| (*name).into()).collect(),
                ..Package::default()
            };
            graph.packages.insert((*name).into(), package);
        }
        Self { graph, ..Self::default() }
    }

    /// The places where `rule` is broken.
    pub(super) fn broken_by(&self, rule: fn(&Self, &mut Vec<Violation>)) -> Vec<String> {
        let mut violations = Vec::new();
        rule(self, &mut violations);
        violations.into_iter().map(|violation| violation.place).collect()
    }
}
