//! Rules about single Rust files.

use super::source::{Kind, SourceFile, Token, closing};
use super::{Violation, Workspace};

/// Maximum number of production lines per file; half of it is the goal.
const MAX_LINES: usize = 800;

/// Folders with a stricter limit: a model family should read like prose.
const SHORT_FOLDERS: &[(&str, usize)] = &[("crates/runtime/src/families/", 300)];

/// Files written by `cargo xtask bindgen`.
pub(super) const GENERATED: &[&str] = &["crates/mlx-ffi/src/bindings.rs"];

/// Only the crates for MLX and SIMD contain `unsafe`.
pub(super) fn unsafe_folders(workspace: &Workspace, violations: &mut Vec<Violation>) {
    const MAY: &[&str] = &["crates/mlx-ffi/", "crates/kernels/"];
    for file in workspace.sources.iter().filter(|file| !file.is_in(MAY)) {
        for line in file.find(&["unsafe"]) {
            violations.push(at(file, line, "`unsafe` belongs in mlx-ffi or kernels"));
        }
    }
}

/// Files are short.
pub(super) fn file_length(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for file in &workspace.sources {
        if GENERATED.contains(&file.path.as_str()) || is_test_file(workspace, file) {
            continue;
        }
        let short = SHORT_FOLDERS.iter().find(|(folder, _)| file.is_in(&[folder]));
        let limit = short.map_or(MAX_LINES, |(_, limit)| *limit);
        let lines = file.production_lines();
        if lines > limit {
            let what = format!("has {lines} production lines, more than {limit}");
            violations.push(Violation { place: file.path.clone(), what });
        }
    }
}

/// Every file opens with documentation of its purpose.
pub(super) fn module_docs(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for file in workspace.sources.iter().filter(|file| !file.text.starts_with("//! ")) {
        violations.push(at(file, 1, "does not open with `//!` and its purpose"));
    }
}

/// Commits contain no placeholders.
pub(super) fn no_placeholders(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for file in &workspace.sources {
        for name in ["todo", "unimplemented", "dbg"] {
            for line in file.find(&[name, "!"]) {
                violations.push(at(file, line, &format!("`{name}!` is not for commits")));
            }
        }
    }
}

/// Ignored tests state their requirement (`#[ignore = "needs …"]`). Tests that need `../shared` are named
/// `shared_…`, by which `cargo xtask ci` finds them.
pub(super) fn ignore_reasons(workspace: &Workspace, violations: &mut Vec<Violation>) {
    for file in &workspace.sources {
        for (index, token) in file.tokens.iter().enumerate() {
            if token.text != "#" || word(&file.tokens, index + 2) != "ignore" {
                continue;
            }
            let reason = word(&file.tokens, index + 4);
            if !reason.starts_with("\"needs ") {
                violations.push(at(file, token.line, "`#[ignore]` without \"needs …\""));
            }
            let name = next_function(&file.tokens[closing(&file.tokens, index + 1)..]);
            if reason.contains("../shared") != name.starts_with("shared_") {
                let what = format!(
                    "`{name}`: tests that need ../shared, and only they, are called shared_…"
                );
                violations.push(at(file, token.line, &what));
            }
        }
    }
}

/// HTTP and its wire formats are confined to the server, the hub's client, and their tests.
pub(super) fn http_in_server(workspace: &Workspace, violations: &mut Vec<Violation>) {
    const MAY: &[&str] = &[
        "crates/server/",
        "crates/hub/",
        "crates/testing/src/fake_hub.rs",
        "crates/cli/tests/",
        "xtask/src/tidy/",
    ];
    for file in workspace.sources.iter().filter(|file| !file.is_in(MAY)) {
        for name in ["axum", "hyper", "hyper_util", "tower", "http"] {
            for line in file.find(&[name, "::"]) {
                violations.push(at(file, line, &format!("`{name}` belongs in mlxcel-server")));
            }
        }
        let wire = file.tokens.iter().filter(|token| {
            token.kind == Kind::Literal && token.text.starts_with("\"chat.completion")
        });
        for token in wire {
            violations.push(at(file, token.line, "wire formats belong in mlxcel-server"));
        }
    }
}

/// The estimator defines the size of a KV block. The kernels, which have no dependencies, define it again,
/// and `core` asserts at compile time that both are equal.
pub(super) fn one_block_size(workspace: &Workspace, violations: &mut Vec<Violation>) {
    const NAME: &str = "KV_BLOCK_TOKENS";
    const KERNELS: &[&str] = &["crates/kernels/src/"];
    for file in &workspace.sources {
        for line in file.find(&["const", NAME]) {
            if file.is_in(KERNELS) && !workspace.sources.iter().any(asserts_one_block_size) {
                violations.push(at(
                    file,
                    line,
                    "nothing in core asserts that the estimator agrees",
                ));
            } else if !file.is_in(KERNELS) && !file.is_in(&["crates/estimator/src/"]) {
                violations.push(at(file, line, "KV_BLOCK_TOKENS is defined in the estimator"));
            }
        }
    }
}

/// True if the file belongs to `core` and has an assertion that names the block size twice.
fn asserts_one_block_size(file: &SourceFile) -> bool {
    let tokens = &file.tokens;
    file.is_in(&["crates/core/src/"])
        && (0..tokens.len()).any(|index| {
            if tokens[index].text != "assert" || word(tokens, index + 1) != "!" {
                return false;
            }
            let end = closing(tokens, index + 2);
            let names = tokens[index..end].iter().filter(|t| t.text == "KV_BLOCK_TOKENS");
            names.count() == 2
        })
}

fn at(file: &SourceFile, line: usize, what: &str) -> Violation {
    Violation { place: format!("{}:{line}", file.path), what: what.into() }
}

fn word(tokens: &[Token], index: usize) -> &str {
    tokens.get(index).map_or("", |token| token.text.as_str())
}

/// The name of the first function in `tokens`.
fn next_function(tokens: &[Token]) -> &str {
    let keyword = tokens.iter().position(|token| token.text == "fn");
    keyword.map_or("", |index| word(tokens, index + 1))
}

/// Integration tests, and modules that their parent declares under `#[cfg(test)]`.
fn is_test_file(workspace: &Workspace, file: &SourceFile) -> bool {
    let folders = file.path.split('/').rev().skip(1);
    folders.into_iter().any(|folder| folder == "tests")
        || workspace.sources.iter().any(|parent| {
            let folder = module_folder(&parent.path);
            parent.test_modules.iter().any(|name| {
                file.path == format!("{folder}/{name}.rs")
                    || file.path.starts_with(&format!("{folder}/{name}/"))
            })
        })
}

/// The folder in which the submodules of the file at `path` lie.
fn module_folder(path: &str) -> &str {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    if matches!(name, "lib" | "main" | "mod") { folder } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_outside_its_two_crates_is_reported() {
        let code = "//! x\nfn f() { unsafe { g() } }\n";
        let workspace = Workspace::of_sources(&[
            ("crates/core/src/lib.rs", code),
            ("crates/kernels/src/lib.rs", code),
        ]);
        assert_eq!(workspace.broken_by(unsafe_folders), ["crates/core/src/lib.rs:2"]);
    }

    #[test]
    fn long_files_are_reported_unless_the_length_is_tests_or_generated() {
        let long = format!("//! x\n{}", "const A: u8 = 1;\n".repeat(800));
        let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(800));
        let workspace = Workspace::of_sources(&[
            ("crates/core/src/long.rs", &long),
            ("crates/core/src/tested.rs", &tested),
            ("crates/core/tests/long.rs", &long),
            ("crates/core/src/lib.rs", "//! x\n#[cfg(test)]\nmod oracle;\n"),
            ("crates/core/src/oracle.rs", &long),
            (GENERATED[0], &long),
        ]);
        assert_eq!(workspace.broken_by(file_length), ["crates/core/src/long.rs"]);
    }

    #[test]
    fn a_long_model_family_is_reported() {
        let family = format!("//! x\n{}", "const A: u8 = 1;\n".repeat(300));
        let path = "crates/runtime/src/families/llama.rs";
        assert_eq!(Workspace::of_sources(&[(path, &family)]).broken_by(file_length), [path]);
    }

    #[test]
    fn a_file_without_opening_documentation_is_reported() {
        let workspace = Workspace::of_sources(&[
            ("a.rs", "//! Owns a.\n"),
            ("b.rs", "fn b() {}\n//! late\n"),
            ("c.rs", "//!\n"),
        ]);
        assert_eq!(workspace.broken_by(module_docs), ["b.rs:1", "c.rs:1"]);
    }

    #[test]
    fn placeholders_are_reported() {
        let code = "//! x\nfn a() { todo!() }\nfn b() { dbg!(1); }\nfn todo() {}\n";
        let workspace = Workspace::of_sources(&[("a.rs", code)]);
        assert_eq!(workspace.broken_by(no_placeholders), ["a.rs:2", "a.rs:3"]);
    }

    #[test]
    fn ignored_tests_need_a_reason_and_the_right_name() {
        let code = "//! x\n\
            #[test]\n#[ignore]\nfn a() {}\n\
            #[test]\n#[ignore = \"needs a GPU\"]\nfn b() {}\n\
            #[test]\n#[ignore = \"needs ../shared\"]\nfn shared_c() {}\n\
            #[test]\n#[ignore = \"needs ../shared\"]\nfn d() {}\n\
            #[ignore = \"needs a GPU\"]\n#[test]\nfn shared_e() {}\n";
        let workspace = Workspace::of_sources(&[("a.rs", code)]);
        assert_eq!(workspace.broken_by(ignore_reasons), ["a.rs:3", "a.rs:12", "a.rs:14"]);
    }

    #[test]
    fn http_outside_the_server_is_reported() {
        let code = "//! x\nuse axum::Router;\nconst KIND: &str = \"chat.completion.chunk\";\n";
        let workspace = Workspace::of_sources(&[
            ("crates/server/src/lib.rs", code),
            ("crates/runtime/src/engine.rs", code),
        ]);
        assert_eq!(
            workspace.broken_by(http_in_server),
            ["crates/runtime/src/engine.rs:2", "crates/runtime/src/engine.rs:3"]
        );
    }

    #[test]
    fn a_second_block_size_is_reported() {
        let code = "//! x\npub const KV_BLOCK_TOKENS: u64 = 256;\n";
        let estimator = ("crates/estimator/src/kv.rs", code);
        let workspace = Workspace::of_sources(&[estimator, ("crates/core/src/cache.rs", code)]);
        assert_eq!(workspace.broken_by(one_block_size), ["crates/core/src/cache.rs:2"]);
    }

    #[test]
    fn the_kernels_block_size_is_reported_unless_core_compares_it() {
        let code = "//! x\npub const KV_BLOCK_TOKENS: usize = 256;\n";
        let kernels = ("crates/kernels/src/kv.rs", code);
        let core = |code| Workspace::of_sources(&[kernels, ("crates/core/src/lib.rs", code)]);
        let compared = "//! x\nconst _: () = assert!(k::KV_BLOCK_TOKENS == e::KV_BLOCK_TOKENS);\n";
        assert!(core(compared).broken_by(one_block_size).is_empty());
        let other = "//! x\nconst _: () = assert!(k::KV_BLOCK_TOKENS == 256);\n";
        assert_eq!(core(other).broken_by(one_block_size), ["crates/kernels/src/kv.rs:2"]);
    }
}
