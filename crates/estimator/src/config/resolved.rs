//! A flat configuration for loaders, under the usual names and with the class defaults of sizes.

use serde_json::{Map, Value};

use super::{ALIASES, Field, Fields};
use crate::EstimatorError;
use crate::family::eval::Scope;
use crate::family::registry;

/// Flattens `config`, a parsed `config.json`: fields of the language part override those of the
/// wrapper, except `model_type`; fields under an alias are repeated under their usual name (`n_embd` is
/// `hidden_size`), and sizes that are left out get their class default.
///
/// Stated values are unchanged. An unknown model type gets no defaults.
///
/// # Errors
/// A size that a default depends on and that is no whole number.
///
/// ```
/// let config = serde_json::json!({"model_type": "gemma3", "vision_config": {"hidden_size": 1152},
///     "text_config": {"hidden_size": 2560, "num_hidden_layers": 34}});
/// let config = mlxcel_estimator::resolved_config(config.as_object().expect("an object"))?;
/// assert_eq!(config["model_type"], "gemma3");
/// assert_eq!(config["hidden_size"], 2560);
/// assert_eq!(config["num_attention_heads"], 8);
/// # Ok::<(), mlxcel_estimator::EstimatorError>(())
/// ```
pub fn resolved_config(config: &Map<String, Value>) -> Result<Map<String, Value>, EstimatorError> {
    let fields = Fields::of(config.clone());
    let mut resolved = fields.root.clone();
    if fields.is_nested() {
        resolved.extend(fields.text().clone());
        if let Some(model_type) = fields.root_type() {
            resolved.insert("model_type".to_owned(), model_type.into());
        }
    }
    let families = registry::select(&fields)?;
    for (name, _) in ALIASES {
        let value = match (fields.get(name), &families) {
            (Field::Present(value), _) => Some(value.clone()),
            (field, Some(families)) => default(&fields, families, name, field)?,
            (_, None) => None,
        };
        if let Some(value) = value {
            resolved.insert(name.to_owned(), value);
        }
    }
    Ok(resolved)
}

/// The class default of a size that is absent, or that is null and derived from others.
fn default(
    fields: &Fields,
    families: &registry::SelectedFamilies,
    name: &str,
    field: Field<'_>,
) -> Result<Option<Value>, EstimatorError> {
    let text = &families.text;
    let defaulted = field == Field::Absent && text.defaults.contains_key(name);
    if name == "tie_word_embeddings" || !(defaulted || text.derives.contains_key(name)) {
        return Ok(None);
    }
    let size = Scope::new(fields, text).named(name)?.filter(|size| *size > 0);
    Ok(size.map(Value::from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolved(config: &Value) -> Map<String, Value> {
        resolved_config(config.as_object().unwrap()).unwrap()
    }

    #[test]
    fn usual_names_and_derived_sizes() {
        let config = resolved(&json!({"model_type": "gpt2", "n_embd": 768, "n_inner": null,
            "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}));
        let size = |name: &str| config.get(name).and_then(Value::as_u64);
        assert_eq!(size("hidden_size"), Some(768));
        assert_eq!(size("intermediate_size"), Some(4 * 768));
        assert_eq!(size("max_position_embeddings"), Some(1024));
        assert_eq!(size("head_dim"), None);
    }

    #[test]
    fn what_is_stated_stays() {
        let stated = json!({"model_type": "llama", "hidden_size": 64, "head_dim": null,
            "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": false});
        let config = resolved(&stated);
        for (name, value) in stated.as_object().unwrap() {
            assert_eq!(&config[name], value, "{name}");
        }
        assert_eq!(resolved(&json!({"model_type": "abacus"})).len(), 1);
    }
}
