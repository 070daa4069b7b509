//! Model families: class defaults, layers and tensors, as text.
//!
//! Each file of `families/` describes one family in a small language, which `families/README.md`
//! documents. A family is added by adding a file and naming it in [`registry`]; nothing outside
//! `families/` knows the layout of any family. [`statement`] reads the lines, [`expr`] the
//! expressions in them, [`eval`] and [`functions`] evaluate them for one configuration.

use std::collections::BTreeMap;

use crate::EstimatorError;

pub(crate) mod eval;
pub(crate) mod expr;
mod functions;
pub(crate) mod registry;
mod statement;

use expr::Expr;
pub(crate) use statement::{LayerPart, Row, Section, SectionPlace};

/// One family's description, parsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) defaults: BTreeMap<String, Expr>,
    pub(crate) derives: BTreeMap<String, Expr>,
    pub(crate) lets: BTreeMap<String, Expr>,
    pub(crate) architecture: Option<String>,
    pub(crate) text: Option<String>,
    /// Words that a per-layer list or pattern may hold, by field.
    pub(crate) words: Vec<(String, Vec<String>)>,
    pub(crate) renames: Vec<(String, String)>,
    pub(crate) notes: Vec<(String, Option<Expr>)>,
    pub(crate) sections: Vec<Section>,
}

impl Family {
    /// Parses a description; `name` is its file's name without the extension.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, EstimatorError> {
        let mut family = Self { name: name.to_owned(), ..Self::default() };
        for (index, line) in text.lines().enumerate() {
            let read = statement::read(&mut family, line);
            read.map_err(|reason| EstimatorError::Family {
                family: name.to_owned(),
                line: index.saturating_add(1),
                reason,
            })?;
        }
        Ok(family)
    }
}
