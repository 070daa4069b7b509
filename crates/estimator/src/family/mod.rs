//! Families: what a kind of model keeps in its checkpoint and in its cache, as text.
//!
//! Each file of `families/` describes one family in the little language read here; a family is
//! added by adding a file and naming it in [`registry`]. Nothing outside `families/` knows what
//! any family looks like. The statements, one a line (`#` starts a comment):
//!
//! ```text
//! default NAME = EXPR          the value of a config field that is absent (the class default)
//! derive NAME = EXPR           … that is null, or absent without a default
//! let NAME = EXPR              a name of our own, in capitals (`; NAME = EXPR` adds more)
//! architecture WORD            overrides what the kept state says
//! text TYPE                    a wrapper's language model, where the config does not say
//! rename FROM TO               a wrapper's prefix for the language model's tensors
//! note SENTENCE                goes to the estimate's assumptions
//! [once|layer|vision] [for N] [x N] [if EXPR]      opens a section
//! NAME [DIM, DIM] [ROLE] [if EXPR]    a tensor; {l} is the layer, {i} the `for`, {e} the `x`
//! keep CALL [if EXPR]                 what a layer keeps for a sequence, see `spec::layers`
//! use FRAGMENT [KEY=TEXT …] [if EXPR] splices `families/fragments/FRAGMENT.txt`, <KEY> replaced
//! ```

use std::collections::BTreeMap;

use crate::EstimatorError;

pub(crate) mod eval;
pub(crate) mod expr;
mod functions;
pub(crate) mod registry;
mod statement;

use expr::Expr;
pub(crate) use statement::{Keep, Row, Section, Where};

/// One family's description, parsed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) defaults: BTreeMap<String, Expr>,
    pub(crate) derives: BTreeMap<String, Expr>,
    pub(crate) lets: BTreeMap<String, Expr>,
    pub(crate) architecture: Option<String>,
    pub(crate) text: Option<String>,
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
