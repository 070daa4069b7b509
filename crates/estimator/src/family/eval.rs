//! Evaluation of the expressions of `families/` for one configuration and one layer.
//!
//! A lower-case name is a field of `config.json`; an UPPER-CASE name is a `let` of the
//! description. A field that is absent takes the description's `default`; one that is `null`,
//! or absent without a default, takes its `derive`. Everything is a checked `u64`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Family;
use super::expr::{Expr, Operator};
use crate::EstimatorError;
use crate::config::{Field, Fields};
use crate::error::shortened;

/// Derivations of every family that does not state its own.
const DERIVE: [(&str, &str); 2] = [
    ("num_key_value_heads", "num_attention_heads"),
    ("head_dim", "hidden_size / num_attention_heads"),
];

/// Greatest depth of references between lets and defaults.
const DEEPEST: u32 = 24;

/// Value of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExprValue {
    Absent,
    Size(u64),
    Word(String),
}

/// One configuration seen through one family, at one layer.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) fields: &'a Fields,
    pub(crate) family: &'a Family,
    /// The language model behind a wrapper, which has the names that the wrapper does not define.
    below: Option<&'a Family>,
    pub(crate) layer: Option<u64>,
    depth: u32,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(fields: &'a Fields, family: &'a Family) -> Self {
        Self { fields, family, below: None, layer: None, depth: 0 }
    }

    /// Adds the language model behind a wrapper.
    pub(crate) fn over(self, below: &'a Family) -> Self {
        Self { below: Some(below), ..self }
    }

    pub(crate) fn at_layer(self, layer: u64) -> Self {
        Self { layer: Some(layer), ..self }
    }

    /// A size that must be present.
    pub(crate) fn size(&self, expr: &Expr) -> Result<u64, EstimatorError> {
        match self.evaluate(expr)? {
            ExprValue::Size(n) => Ok(n),
            ExprValue::Word(word) => {
                let field = self.first_word(expr).unwrap_or_else(|| describe(expr));
                Err(bad(&field, &word, "a whole number is needed"))
            }
            ExprValue::Absent => Err(self.missing(expr)),
        }
    }

    /// A size that may be missing.
    pub(crate) fn optional(&self, expr: &Expr) -> Result<Option<u64>, EstimatorError> {
        match self.evaluate(expr)? {
            ExprValue::Absent => Ok(None),
            _ => self.size(expr).map(Some),
        }
    }

    /// A condition; an absent value does not hold.
    pub(crate) fn holds(&self, expr: &Expr) -> Result<bool, EstimatorError> {
        Ok(self.optional(expr)?.is_some_and(|n| n != 0))
    }

    /// A named quantity, as a description would refer to it.
    pub(crate) fn named(&self, name: &str) -> Result<Option<u64>, EstimatorError> {
        self.optional(&Expr::Name(name.to_owned()))
    }

    pub(super) fn evaluate(&self, expr: &Expr) -> Result<ExprValue, EstimatorError> {
        match expr {
            Expr::Int(n) => Ok(ExprValue::Size(*n)),
            Expr::Word(word) => Ok(ExprValue::Word(word.clone())),
            Expr::Name(name) => self.name(name),
            Expr::Call(function, arguments) => self.call(function, arguments),
            Expr::Not(inner) => Ok(boolean(!self.holds(inner)?)),
            Expr::Binary(operator, left, right) => self.binary(*operator, left, right),
        }
    }

    fn name(&self, name: &str) -> Result<ExprValue, EstimatorError> {
        if name == "l" {
            return Ok(self.layer.map_or(ExprValue::Absent, ExprValue::Size));
        }
        if let Some(expr) = self.defined(|family| &family.lets, name) {
            return self.deeper(name)?.evaluate(expr);
        }
        match self.fields.get(name) {
            Field::Present(value) => self.read(name, value),
            Field::Null => self.derived(name),
            Field::Absent => match self.defined(|family| &family.defaults, name) {
                Some(default) => self.deeper(name)?.evaluate(default),
                None => self.derived(name),
            },
        }
    }

    /// The definition of `name` in a map of this family, or of the one below it.
    fn defined(
        &self,
        map: impl Fn(&'a Family) -> &'a BTreeMap<String, Expr>,
        name: &str,
    ) -> Option<&'a Expr> {
        map(self.family).get(name).or_else(|| map(self.below?).get(name))
    }

    fn derived(&self, name: &str) -> Result<ExprValue, EstimatorError> {
        if let Some(expr) = self.defined(|family| &family.derives, name) {
            return self.deeper(name)?.evaluate(expr);
        }
        match DERIVE.iter().find(|(derived, _)| *derived == name) {
            None => Ok(ExprValue::Absent),
            Some((_, text)) => {
                let expr = super::expr::parse(text).map_err(|reason| self.internal(reason))?;
                self.deeper(name)?.evaluate(&expr)
            }
        }
    }

    fn deeper(&self, name: &str) -> Result<Self, EstimatorError> {
        let depth = self.depth.saturating_add(1);
        if depth > DEEPEST {
            return Err(self.internal(format!("`{name}` refers to itself")));
        }
        Ok(Self { depth, ..*self })
    }

    /// A field's value; a list gives this layer's item.
    fn read(&self, name: &str, value: &Value) -> Result<ExprValue, EstimatorError> {
        match value {
            Value::Null => self.derived(name),
            Value::Bool(b) => Ok(boolean(*b)),
            Value::String(word) => Ok(ExprValue::Word(word.clone())),
            Value::Number(_) => size_of(name, value).map(ExprValue::Size),
            Value::Array(items) => match self.layer {
                Some(layer) => match item(items, layer) {
                    Some(Value::Array(_)) | None => Err(bad(name, value, &no_item(layer))),
                    Some(value) => self.read(name, value),
                },
                None => Err(bad(name, value, "one number is needed, not a list")),
            },
            Value::Object(_) => Err(bad(name, value, "a whole number is needed")),
        }
    }

    fn binary(
        &self,
        operator: Operator,
        left: &Expr,
        right: &Expr,
    ) -> Result<ExprValue, EstimatorError> {
        match operator {
            Operator::Otherwise => match self.evaluate(left)? {
                ExprValue::Absent => self.evaluate(right),
                found => Ok(found),
            },
            Operator::And => Ok(boolean(self.holds(left)? && self.holds(right)?)),
            Operator::Or => Ok(boolean(self.holds(left)? || self.holds(right)?)),
            Operator::Equal
            | Operator::Unequal
            | Operator::Less
            | Operator::AtMost
            | Operator::Greater
            | Operator::AtLeast => self.compare(operator, left, right),
            Operator::Add
            | Operator::Subtract
            | Operator::Multiply
            | Operator::Divide
            | Operator::Remainder => {
                let result = self.checked(operator, self.size(left)?, self.size(right)?)?;
                Ok(ExprValue::Size(result))
            }
        }
    }

    fn compare(
        &self,
        operator: Operator,
        left: &Expr,
        right: &Expr,
    ) -> Result<ExprValue, EstimatorError> {
        let (Some(a), Some(b)) = (self.optional(left)?, self.optional(right)?) else {
            return Ok(boolean(operator == Operator::Unequal));
        };
        Ok(boolean(match operator {
            Operator::Equal => a == b,
            Operator::Unequal => a != b,
            Operator::Less => a < b,
            Operator::AtMost => a <= b,
            Operator::Greater => a > b,
            _ => a >= b,
        }))
    }

    pub(super) fn checked(
        &self,
        operator: Operator,
        a: u64,
        b: u64,
    ) -> Result<u64, EstimatorError> {
        let result = match operator {
            Operator::Add => a.checked_add(b),
            Operator::Subtract => a.checked_sub(b),
            Operator::Multiply => a.checked_mul(b),
            Operator::Divide => a.checked_div(b),
            _ => a.checked_rem(b),
        };
        result.ok_or_else(|| EstimatorError::BadField {
            field: format!("{a} {operator:?} {b}"),
            value: "not a size".to_owned(),
            reason: "sizes in this configuration contradict each other".to_owned(),
        })
    }

    fn missing(&self, expr: &Expr) -> EstimatorError {
        let field = self.first_absent(expr).unwrap_or_else(|| describe(expr));
        EstimatorError::MissingField { field, model_type: self.family.name.clone() }
    }

    /// The first field of `expr` without a value, which the configuration would have to give.
    fn first_absent(&self, expr: &Expr) -> Option<String> {
        match expr {
            Expr::Name(name) => match self.defined(|family| &family.lets, name) {
                Some(inner) => self.deeper(name).ok()?.first_absent(inner),
                None => matches!(self.name(name), Ok(ExprValue::Absent)).then(|| name.clone()),
            },
            Expr::Binary(_, a, b) => self.first_absent(a).or_else(|| self.first_absent(b)),
            _ => None,
        }
    }

    /// The first field of `expr` that holds a word.
    fn first_word(&self, expr: &Expr) -> Option<String> {
        match expr {
            Expr::Name(name) => match self.defined(|family| &family.lets, name) {
                Some(inner) => self.deeper(name).ok()?.first_word(inner),
                None => matches!(self.name(name), Ok(ExprValue::Word(_))).then(|| name.clone()),
            },
            Expr::Binary(_, a, b) => self.first_word(a).or_else(|| self.first_word(b)),
            Expr::Call(_, arguments) => arguments.iter().find_map(|inner| self.first_word(inner)),
            _ => None,
        }
    }

    pub(crate) fn internal(&self, reason: String) -> EstimatorError {
        EstimatorError::Family { family: self.family.name.clone(), line: 0, reason }
    }
}

pub(super) fn item(items: &[Value], position: u64) -> Option<&Value> {
    usize::try_from(position).ok().and_then(|n| items.get(n))
}

pub(super) fn no_item(layer: u64) -> String {
    format!("it has no usable entry for layer {layer}")
}

pub(super) fn boolean(holds: bool) -> ExprValue {
    ExprValue::Size(u64::from(holds))
}

fn size_of(name: &str, value: &Value) -> Result<u64, EstimatorError> {
    if let Some(n) = value.as_u64() {
        return Ok(n);
    }
    match value.as_f64() {
        Some(x) if x < 0.0 => Err(bad(name, value, "a size cannot be negative")),
        Some(x) if x.fract() == 0.0 => {
            floor_u64(x).ok_or_else(|| bad(name, value, "that is too large for a size"))
        }
        _ => Err(bad(name, value, "a size cannot be fractional")),
    }
}

/// The whole part of `x` where an `f64` holds it exactly.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked, and dropping the fraction is the purpose"
)]
pub(super) fn floor_u64(x: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (0.0..=EXACT).contains(&x).then_some(x as u64)
}

pub(super) fn bad(field: &str, value: &dyn std::fmt::Display, reason: &str) -> EstimatorError {
    EstimatorError::BadField {
        field: field.to_owned(),
        value: shortened(&value.to_string()),
        reason: reason.to_owned(),
    }
}

/// Names an expression in an error.
fn describe(expr: &Expr) -> String {
    match expr {
        Expr::Int(n) => n.to_string(),
        Expr::Word(name) | Expr::Name(name) | Expr::Call(name, _) => name.clone(),
        Expr::Not(inner) => describe(inner),
        Expr::Binary(_, a, b) => format!("{} … {}", describe(a), describe(b)),
    }
}
