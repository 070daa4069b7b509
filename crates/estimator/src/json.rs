//! Reads a JSON object as the Python tools write it, and nothing looser.
//!
//! Two things differ from plain `serde_json`: `Infinity`, `-Infinity` and `NaN` (which Python
//! writes and JSON forbids) are read as strings, so that such a field is present but is no size;
//! and a duplicate key is an error, because it is not clear which value is meant.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::EstimatorError;

/// Reads `text` as one JSON object; `document` names it in errors.
///
/// # Errors
/// [`EstimatorError::Json`]: no JSON, no object, or a key given twice.
pub fn parse_object(text: &str, document: &str) -> Result<Map<String, Value>, EstimatorError> {
    read_object(text)
        .map_err(|reason| EstimatorError::Json { document: document.to_owned(), reason })
}

fn read_object(text: &str) -> Result<Map<String, Value>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let suspect = text.contains("Infinity") || text.contains("NaN");
    let text = if suspect { Cow::Owned(quote_non_finite(text)) } else { Cow::Borrowed(text) };
    let StrictValue(value) = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(format!("it holds {} instead of an object", kind_of(&other))),
    }
}

/// Name of this kind of value in error messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Quotes the three words outside of strings that JSON does not know.
fn quote_non_finite(text: &str) -> String {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|w| !in_string && rest.starts_with(**w));
        let taken = match (word, first) {
            (Some(word), _) => {
                out.extend(["\"", word, "\""]);
                word.len()
            }
            (None, '\\') if in_string => {
                let escaped = rest.chars().nth(1).map_or(0, char::len_utf8);
                let taken = escaped.saturating_add(1);
                out.push_str(rest.get(..taken).unwrap_or(rest));
                taken
            }
            (None, c) => {
                in_string ^= c == '"';
                out.push(c);
                c.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

/// A JSON value without duplicate keys.
struct StrictValue(Value);

impl<'de> Deserialize<'de> for StrictValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(StrictValue)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(StrictValue(item)) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let key = crate::error::shortened(&key);
                return Err(A::Error::custom(format_args!("key `{key}` is given twice")));
            }
            let StrictValue(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = match parse_object(text, "config.json") {
            Ok(map) => Value::Object(map).to_string(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{text}: {got}");
    }

    #[test]
    fn reads_what_python_writes() {
        check(r#"{"a": [0.0, Infinity], "b": -Infinity, "c": NaN}"#, r#"{"a":[0.0,"Infinity"]"#);
        check(r#"{"a": "say \"NaN\" twice: NaN"}"#, r#"twice: NaN"}"#);
        check("\u{feff}{\"a\": 1}", r#"{"a":1}"#);
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        check(r#"{"a": 1, "a": 2}"#, "key `a` is given twice");
        check(r#"{"t": {"a": 1, "a": 2}}"#, "key `a` is given twice");
        check("{\"a\": 1", "EOF while parsing");
        check("[1]", "a list instead of an object");
        check(&"[".repeat(100_000), "recursion limit");
        check("", "EOF while parsing");
        check(r#"{"a": 1e999}"#, "number out of range");
    }
}
