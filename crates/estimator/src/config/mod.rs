//! `config.json` as fields: lookup of a name under its aliases and in nested objects.
//!
//! This file knows that one quantity has many names and that the language part may be nested;
//! it does not know any family. Class defaults belong to `families/`, see [`crate::family`].

mod check;
mod resolved;

use serde_json::{Map, Value};

pub use self::check::check_config;
pub use self::resolved::resolved_config;
use crate::{EstimatorError, json};

/// Keys of a nested language part.
const TEXT_KEYS: [&str; 7] = [
    "text_config",
    "language_config",
    "llm_config",
    "language_model_config",
    "thinker_config",
    "language_model",
    "llm",
];

/// Keys of an image encoder.
const VISION_KEYS: [&str; 8] = [
    "vision_config",
    "vision_model_config",
    "vision_encoder_config",
    "vision_tower_config",
    "vit_config",
    "img_processor",
    "visual",
    "vision_model",
];

/// The usual name of a quantity, and the other names that families give it.
const ALIASES: [(&str, &[&str]); 12] = [
    ("hidden_size", &["d_model", "n_embd", "n_embed", "model_dim", "dim"]),
    ("num_hidden_layers", &["n_layer", "n_layers", "num_layers"]),
    ("num_attention_heads", &["n_head", "n_heads", "num_heads"]),
    (
        "num_key_value_heads",
        &[
            "n_head_kv",
            "n_kv_heads",
            "num_kv_heads",
            "multi_query_group_num",
            "attn_config.kv_n_heads",
            "num_query_groups",
        ],
    ),
    ("head_dim", &["kv_channels", "attention_head_dim", "head_size"]),
    ("intermediate_size", &["ffn_hidden_size", "n_inner", "ffn_dim", "d_ff"]),
    ("vocab_size", &["padded_vocab_size", "embedding_size"]),
    (
        "max_position_embeddings",
        &[
            "n_positions",
            "max_sequence_length",
            "max_seq_len",
            "seq_length",
            "n_ctx",
            "max_seq_length",
            "model_max_length",
        ],
    ),
    (
        "num_experts",
        &["num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts"],
    ),
    ("moe_intermediate_size", &["expert_ffn_hidden_size", "moe_ffn_hidden_size"]),
    ("tie_word_embeddings", &["weight_tying", "tie_embedding"]),
    ("sliding_window", &["attention_window_size", "sliding_window_size"]),
];

/// Value of one field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Field<'a> {
    /// Not given: the class default applies.
    Absent,
    /// `null`, which switches a feature off or asks for the derived value.
    Null,
    /// A value.
    Present(&'a Value),
}

/// A parsed `config.json`.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    root: Map<String, Value>,
    text_path: Vec<&'static str>,
    vision_key: Option<&'static str>,
}

impl Fields {
    /// Reads the text of a `config.json`.
    pub(crate) fn parse(text: &str) -> Result<Self, EstimatorError> {
        Ok(Self::of(json::parse_object(text, "config.json")?))
    }

    /// Takes an object that is parsed already.
    pub(crate) fn of(root: Map<String, Value>) -> Self {
        let text_path = text_path(&root);
        let vision_key = VISION_KEYS.into_iter().find(|key| is_described(root.get(*key)));
        Self { root, text_path, vision_key }
    }

    /// The language part: nested, or the whole object.
    pub(crate) fn text(&self) -> &Map<String, Value> {
        self.text_path
            .iter()
            .fold(&self.root, |map, key| map.get(*key).and_then(Value::as_object).unwrap_or(map))
    }

    /// Reports whether the language part is nested in a wrapper.
    pub(crate) fn is_nested(&self) -> bool {
        !self.text_path.is_empty()
    }

    /// Reports whether an image encoder is described.
    pub(crate) fn has_vision(&self) -> bool {
        self.vision_key.is_some()
    }

    /// The wrapper's, or else the only, `model_type`.
    pub(crate) fn root_type(&self) -> Option<&str> {
        self.root.get("model_type").and_then(Value::as_str)
    }

    /// The language part's own `model_type`.
    pub(crate) fn text_type(&self) -> Option<&str> {
        self.text().get("model_type").and_then(Value::as_str)
    }

    /// Looks `name` up: `v.x` in the image encoder's object, everything else in the language
    /// part and then in the wrapper, each under every alias. Dots descend into objects.
    pub(crate) fn get(&self, name: &str) -> Field<'_> {
        if let Some(name) = name.strip_prefix("v.") {
            let vision = self.vision_key.and_then(|key| self.root.get(key));
            return vision.and_then(Value::as_object).map_or(Field::Absent, |m| find(m, name));
        }
        match find_alias(self.text(), name) {
            Field::Absent if self.is_nested() => find_alias(&self.root, name),
            found => found,
        }
    }

    /// Looks `name` up in the wrapper first, for fields of the whole checkpoint.
    pub(crate) fn get_outer(&self, name: &str) -> Field<'_> {
        match find(&self.root, name) {
            Field::Absent => find(self.text(), name),
            found => found,
        }
    }
}

fn text_path(root: &Map<String, Value>) -> Vec<&'static str> {
    const DEEPEST: usize = 3;
    let mut path = Vec::new();
    let mut map = root;
    while path.len() < DEEPEST {
        let key = TEXT_KEYS.into_iter().find(|key| is_described(map.get(*key)));
        let Some(key) = key else { break };
        let Some(next) = map.get(key).and_then(Value::as_object) else { break };
        path.push(key);
        map = next;
    }
    path
}

/// Reports whether `value` is a non-empty object.
fn is_described(value: Option<&Value>) -> bool {
    value.and_then(Value::as_object).is_some_and(|map| !map.is_empty())
}

fn find_alias<'a>(map: &'a Map<String, Value>, name: &str) -> Field<'a> {
    let others = ALIASES.iter().find(|(usual, _)| *usual == name).map_or(&[][..], |(_, o)| *o);
    let mut found = Field::Absent;
    for candidate in std::iter::once(&name).chain(others) {
        match find(map, candidate) {
            Field::Absent => {}
            Field::Null => found = Field::Null,
            present @ Field::Present(_) => return present,
        }
    }
    found
}

fn find<'a>(map: &'a Map<String, Value>, path: &str) -> Field<'a> {
    // Most names have no dot, and this is where reading a configuration spends its time.
    let value = if path.as_bytes().contains(&b'.') { at_path(map, path) } else { map.get(path) };
    match value {
        None => Field::Absent,
        Some(Value::Null) => Field::Null,
        Some(value) => Field::Present(value),
    }
}

/// The value at a dotted path.
fn at_path<'a>(map: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => map.get(path),
        Some((outer, inner)) => at_path(map.get(outer)?.as_object()?, inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &str, name: &str, expected: &str) {
        let fields = Fields::parse(config).unwrap();
        let got = match fields.get(name) {
            Field::Absent => "absent".to_owned(),
            Field::Null => "null".to_owned(),
            Field::Present(value) => value.to_string(),
        };
        assert_eq!(got, expected, "{name} in {config}");
    }

    #[test]
    fn aliases_and_null() {
        check(r#"{"n_embd": 768}"#, "hidden_size", "768");
        check(r#"{"head_dim": null}"#, "head_dim", "null");
        check(r#"{"head_dim": null, "kv_channels": 128}"#, "head_dim", "128");
        check(r#"{}"#, "head_dim", "absent");
        check(r#"{"attn_config": {"kv_n_heads": 8}}"#, "num_key_value_heads", "8");
    }

    #[test]
    fn the_language_part_comes_first() {
        let nested = r#"{"thinker_config": {"text_config": {"hidden_size": 8}},
                         "hidden_size": 9, "tie_word_embeddings": true,
                         "vision_config": {"hidden_size": 3}}"#;
        check(nested, "hidden_size", "8");
        check(nested, "tie_word_embeddings", "true");
        check(nested, "v.hidden_size", "3");
        check(r#"{"text_config": {}, "hidden_size": 9}"#, "hidden_size", "9");
        check(r#"{"text_config": null, "hidden_size": 9}"#, "hidden_size", "9");
    }
}
