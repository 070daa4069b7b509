//! The field `prompt` of a completion: one text or several, one list of tokens or several.
//!
//! Deserialized by hand: serde's untagged enums first keep every number of a list as a value of 32
//! bytes, sixteen times the size of the body.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// One prompt or several.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PromptField {
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<Vec<u32>>),
}

/// An element of a list.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

struct PromptsVisitor;
struct ElementVisitor;

impl<'de> Deserialize<'de> for PromptField {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PromptsVisitor)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ElementVisitor)
    }
}

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = PromptField;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`prompt` as a text or a list of texts, of tokens, or of lists of tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PromptField, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<PromptField, E> {
        Ok(PromptField::Texts(vec![text]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<PromptField, A::Error> {
        Ok(match list.next_element()? {
            None => PromptField::Texts(Vec::new()),
            Some(Element::Text(text)) => PromptField::Texts(rest(text, list)?),
            Some(Element::Token(token)) => PromptField::Tokens(vec![rest(token, list)?]),
            Some(Element::Tokens(tokens)) => PromptField::Tokens(rest(tokens, list)?),
        })
    }
}

/// Collects `first` and the rest of the list, which must be of the same type.
fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut list: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a token or a list of tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
        Ok(Element::Text(text))
    }

    fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
        let token_id = u32::try_from(token).map(Element::Token);
        token_id.map_err(|_| E::custom(format!("{token} is not a token id")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
        Ok(Element::Tokens(match list.next_element()? {
            Some(first) => rest(first, list)?,
            None => Vec::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::PromptField::{Texts, Tokens};
    use super::*;

    #[test]
    fn every_form_is_read() {
        let read = |json: &str| serde_json::from_str::<PromptField>(json).unwrap();
        assert_eq!(read(r#""a\n""#), Texts(vec!["a\n".into()]));
        assert_eq!(read(r#"["a", "b"]"#), Texts(vec!["a".into(), "b".into()]));
        assert_eq!(read("[1, 2]"), Tokens(vec![vec![1, 2]]));
        assert_eq!(read("[[1, 2], [], [3]]"), Tokens(vec![vec![1, 2], vec![], vec![3]]));
        assert_eq!(read("[]"), Texts(vec![]));
    }

    #[test]
    fn other_forms_are_refused() {
        for json in [
            "1",
            "null",
            "{}",
            r#"[1, "a"]"#,
            r#"["a", 1]"#,
            "[[1], 2]",
            "[-1]",
            "[1.5]",
            "[4294967296]",
            "[[[1]]]",
        ] {
            assert!(serde_json::from_str::<PromptField>(json).is_err(), "{json}");
        }
    }
}
