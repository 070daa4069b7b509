//! The functions that expressions may call.
//!
//! | call | value |
//! |---|---|
//! | `has(f)`, `given(f)` | the field has a value; the field is present, `null` included |
//! | `is(x, "a", …)` | a word is one of these |
//! | `at(f, "a", …)` | the layer's item of a list, or letter of a string, is one of these; absent if `f` is |
//! | `cycle(f, "a", …)` | like `at`, with a list that repeats |
//! | `in(f)`, `in_from_1(f)` | a list of layer numbers, from 0 or from 1, has this layer; all must exist |
//! | `len(f)` | entries of a list, letters of a string |
//! | `when(c, a, b)` | `a` if `c` holds, else `b` |
//! | `ceil_div(a, b)`, `max(a, b)`, `min(a, b)` | rounded-up quotient, maximum, minimum |
//! | `scaled(f, a)` | `floor(f × a)`; the field may be fractional |

use serde_json::Value;

use super::eval::{ExprValue, Scope, bad, boolean, floor_u64, item, no_item};
use super::expr::{Expr, Operator};
use crate::EstimatorError;
use crate::config::Field;
use crate::tensors;

impl Scope<'_> {
    /// Calls `function`.
    pub(super) fn call(
        &self,
        function: &str,
        arguments: &[Expr],
    ) -> Result<ExprValue, EstimatorError> {
        match (function, arguments) {
            ("has", [Expr::Name(field)]) => {
                Ok(boolean(matches!(self.fields.get(field), Field::Present(_))))
            }
            ("given", [Expr::Name(field)]) => {
                Ok(boolean(!matches!(self.fields.get(field), Field::Absent)))
            }
            ("is", [field, words @ ..]) => {
                let value = self.evaluate(field)?;
                Ok(boolean(
                    words.iter().any(
                        |w| matches!((w, &value), (Expr::Word(a), ExprValue::Word(b)) if a == b),
                    ),
                ))
            }
            ("at", [Expr::Name(field), words @ ..]) => self.word_at(field, words, Wrap::No),
            ("cycle", [Expr::Name(field), words @ ..]) => self.word_at(field, words, Wrap::Yes),
            ("in", [Expr::Name(field)]) => self.listed(field, 0),
            ("in_from_1", [Expr::Name(field)]) => self.listed(field, 1),
            ("len", [Expr::Name(field)]) => Ok(self.length(field)),
            ("ceil_div", [a, b]) => {
                let divisor = self.size(b)?;
                let up = self.checked(Operator::Add, self.size(a)?, divisor.saturating_sub(1))?;
                self.checked(Operator::Divide, up, divisor).map(ExprValue::Size)
            }
            ("when", [condition, yes, no]) => {
                self.evaluate(if self.holds(condition)? { yes } else { no })
            }
            ("max", [a, b]) => Ok(ExprValue::Size(self.size(a)?.max(self.size(b)?))),
            ("min", [a, b]) => Ok(ExprValue::Size(self.size(a)?.min(self.size(b)?))),
            ("scaled", [Expr::Name(field), by]) => self.scaled(field, by),
            _ => {
                Err(self
                    .internal(format!("no function `{function}` of {} arguments", arguments.len())))
            }
        }
    }

    /// Tests whether the layer's item of a list, or letter of a string, is one of `words`.
    fn word_at(
        &self,
        field: &str,
        words: &[Expr],
        wrap: Wrap,
    ) -> Result<ExprValue, EstimatorError> {
        let (Field::Present(value), Some(layer)) = (self.fields.get(field), self.layer) else {
            return Ok(ExprValue::Absent);
        };
        let found = match value {
            Value::Array(items) => match item(items, wrap.position(layer, items.len())) {
                Some(Value::String(word)) => Some(word.clone()),
                Some(Value::Number(n)) => Some(n.to_string()),
                _ => None,
            },
            Value::String(letters) => {
                let position = usize::try_from(wrap.position(layer, letters.chars().count())).ok();
                position.and_then(|n| letters.chars().nth(n)).map(String::from)
            }
            _ => None,
        };
        let Some(found) = found else { return Err(bad(field, value, &no_item(layer))) };
        Ok(boolean(words.iter().any(|w| matches!(w, Expr::Word(word) if *word == found))))
    }

    /// Tests whether a list of layer numbers, counted from `first`, has this layer.
    fn listed(&self, field: &str, first: u64) -> Result<ExprValue, EstimatorError> {
        let (Field::Present(value), Some(layer)) = (self.fields.get(field), self.layer) else {
            return Ok(ExprValue::Absent);
        };
        let Value::Array(items) = value else {
            return Err(bad(field, value, "a list of layer numbers is needed"));
        };
        let numbers = first..tensors::layers(self)?.saturating_add(first);
        let stray = items.iter().find(|item| !item.as_u64().is_some_and(|n| numbers.contains(&n)));
        if let Some(stray) = stray {
            let last = numbers.end.saturating_sub(1);
            let reason = format!("layers are counted from {first} to {last} there");
            return Err(bad(field, stray, &reason));
        }
        let this = layer.saturating_add(first);
        Ok(boolean(items.iter().any(|item| item.as_u64() == Some(this))))
    }

    fn length(&self, field: &str) -> ExprValue {
        let length = match self.fields.get(field) {
            Field::Present(Value::Array(items)) => u64::try_from(items.len()).ok(),
            Field::Present(Value::String(letters)) => u64::try_from(letters.chars().count()).ok(),
            _ => None,
        };
        length.map_or(ExprValue::Absent, ExprValue::Size)
    }

    /// `floor(field × by)` of a field that may be fractional, such as `mlp_ratio`.
    fn scaled(&self, field: &str, by: &Expr) -> Result<ExprValue, EstimatorError> {
        let factor = match self.fields.get(field) {
            Field::Present(value) => {
                value.as_f64().ok_or_else(|| bad(field, value, "a number is needed"))?
            }
            _ => return Ok(ExprValue::Absent),
        };
        let by = self.size(by)?;
        let product = factor * by as f64;
        floor_u64(product)
            .map(ExprValue::Size)
            .ok_or_else(|| bad(field, &factor, "no size results"))
    }
}

/// Selects whether a list that is shorter than the layers repeats.
#[derive(Clone, Copy)]
enum Wrap {
    No,
    Yes,
}

impl Wrap {
    fn position(self, layer: u64, length: usize) -> u64 {
        match (self, u64::try_from(length)) {
            (Self::Yes, Ok(length)) => layer.checked_rem(length).unwrap_or(layer),
            _ => layer,
        }
    }
}
