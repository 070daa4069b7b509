//! Rust files as tokens with line numbers, and the ranges of lines that are tests.
//!
//! Tokens come from `proc-macro2`, so that comments and strings cannot trigger a rule. A documentation
//! comment is an attribute that contains a string.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::ops::RangeInclusive;

/// One token of a flattened token stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Source text; brackets are separate tokens.
    pub text: String,
    /// 1-based.
    pub line: usize,
    /// Kind of the token.
    pub kind: Kind,
}

/// Kinds of tokens that the rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or a name.
    Ident,
    /// A string, character or number.
    Literal,
    /// Anything else.
    Punct,
}

/// A Rust source file.
pub(super) struct SourceFile {
    /// Relative to the root of the workspace, with `/`.
    pub path: String,
    /// Content of the file.
    pub text: String,
    /// Without comments.
    pub tokens: Vec<Token>,
    /// Lines of items under `#[cfg(test)]`, in ascending order.
    pub test_lines: Vec<RangeInclusive<usize>>,
    /// Names of modules declared as `#[cfg(test)] mod name;`.
    pub test_modules: Vec<String>,
}

impl SourceFile {
    /// Tokenises `text`; fails on unbalanced brackets or an unterminated string.
    pub(super) fn parse(path: &str, text: &str) -> Result<Self> {
        let stream: TokenStream =
            text.parse().map_err(|error| anyhow!("{path}: is not Rust: {error}"))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let (test_lines, test_modules) = test_items(&tokens);
        Ok(Self { path: path.into(), text: text.into(), tokens, test_lines, test_modules })
    }

    /// The number of lines that are not in an item under `#[cfg(test)]`.
    pub(super) fn production_lines(&self) -> usize {
        let test: usize = self.test_lines.iter().map(|lines| lines.end() - lines.start() + 1).sum();
        self.text.lines().count() - test
    }

    /// The lines on which `words` appear as consecutive tokens.
    pub(super) fn find<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        self.tokens
            .windows(words.len())
            .filter(move |window| window.iter().zip(words).all(|(token, word)| token.text == *word))
            .map(|window| window[0].line)
    }

    /// True if the file is in one of `folders` (which end with `/`) or is one of them.
    pub(super) fn is_in(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(Token { text: open.into(), line, kind: Kind::Punct });
                flatten(group.stream(), tokens);
                let line = group.span_close().start().line;
                tokens.push(Token { text: close.into(), line, kind: Kind::Punct });
            }
            TokenTree::Ident(ident) => {
                tokens.push(Token { text: ident.to_string(), line, kind: Kind::Ident });
            }
            TokenTree::Literal(literal) => {
                tokens.push(Token { text: literal.to_string(), line, kind: Kind::Literal });
            }
            TokenTree::Punct(punct) => push_punct(punct.as_char(), line, tokens),
        }
    }
}

/// Joins two colons to one token, because the rules search for paths; other punctuation stays separate.
fn push_punct(character: char, line: usize, tokens: &mut Vec<Token>) {
    match tokens.last_mut() {
        Some(last) if character == ':' && last.text == ":" => last.text.push(':'),
        _ => tokens.push(Token { text: character.into(), line, kind: Kind::Punct }),
    }
}

/// The line ranges of items under `#[cfg(test)]`, and the names of such modules in other files.
fn test_items(tokens: &[Token]) -> (Vec<RangeInclusive<usize>>, Vec<String>) {
    let mut lines: Vec<RangeInclusive<usize>> = Vec::new();
    let mut modules = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_cfg_test(&tokens[at..]) {
            at += 1;
            continue;
        }
        let item = skip_attributes(tokens, at);
        let end = item_end(tokens, item);
        let words: Vec<&str> = tokens[item..=end].iter().map(|token| token.text.as_str()).collect();
        if let ["mod", name, ";"] = words[..] {
            modules.push(name.to_string());
        }
        // An item may share a line with the attributes of the next; no line counts twice.
        let first = lines.last().map_or(0, |last| *last.end() + 1).max(tokens[at].line);
        if first <= tokens[end].line {
            lines.push(first..=tokens[end].line);
        }
        at = end + 1;
    }
    (lines, modules)
}

/// True if `tokens` begin with `#[cfg(test)]` or a conjunction that contains `test`.
fn is_cfg_test(tokens: &[Token]) -> bool {
    let words: Vec<&str> = tokens.iter().take(7).map(|token| token.text.as_str()).collect();
    matches!(
        words[..],
        ["#", "[", "cfg", "(", "test", ..] | ["#", "[", "cfg", "(", "all", _, "test"]
    )
}

/// The index of the first token after the attributes that start at `at`.
fn skip_attributes(tokens: &[Token], mut at: usize) -> usize {
    while at + 1 < tokens.len() && tokens[at].text == "#" && tokens[at + 1].text == "[" {
        at = closing(tokens, at + 1) + 1;
    }
    at.min(tokens.len() - 1)
}

/// The index of the `;` or closing brace that ends the item at `at`.
fn item_end(tokens: &[Token], at: usize) -> usize {
    let mut index = at;
    while index < tokens.len() {
        match tokens[index].text.as_str() {
            ";" => return index,
            "{" => return closing(tokens, index),
            "(" | "[" => index = closing(tokens, index) + 1,
            _ => index += 1,
        }
    }
    tokens.len() - 1
}

/// The index of the bracket that closes the one at `open`.
pub(super) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> SourceFile {
        SourceFile::parse("x.rs", text).unwrap()
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let file = parse("//! unsafe\n// unsafe\nfn f() { \"unsafe\"; /* unsafe */ }\n");
        assert_eq!(file.find(&["unsafe"]).count(), 0);
        assert_eq!(file.find(&["fn", "f"]).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn test_items_do_not_count_as_production() {
        let file = parse(
            "fn a() {}\n#[cfg(test)]\nuse std::{fs, io};\nfn b() {}\n\
             #[cfg(test)]\n#[allow(dead_code)]\nmod tests {\n    fn c() {}\n}\nfn d() {}\n",
        );
        assert_eq!(file.test_lines, [2..=3, 5..=9]);
        assert_eq!(file.production_lines(), 3);
    }

    #[test]
    fn conjunctions_with_test_count_and_negations_do_not() {
        assert_eq!(parse("#[cfg(all(test, unix))]\nfn a() {}\n").production_lines(), 0);
        assert_eq!(parse("#[cfg(not(test))]\nfn a() {}\n").production_lines(), 2);
    }

    #[test]
    fn test_modules_in_other_files_are_named() {
        assert_eq!(parse("#[cfg(test)]\nmod oracle;\nmod real;\n").test_modules, ["oracle"]);
    }

    #[test]
    fn a_path_separator_is_one_token() {
        assert_eq!(parse("use axum::Router;").find(&["axum", "::"]).count(), 1);
    }
}
