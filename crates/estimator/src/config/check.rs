//! Checks of a configuration before a model is built from it: bounds of sizes, lengths and words of
//! per-layer lists, numbers of layers.
//!
//! An estimate is more lenient: it sizes as much of a configuration as it understands.

use serde_json::{Map, Value};

use super::{Field, Fields};
use crate::error::{EstimatorError, shortened};
use crate::family::eval::Scope;
use crate::family::registry;
use crate::tensors;

/// Largest value of a size; products of two stay within 64 bits.
const MAX_SIZE: u64 = 1 << 28;

/// Most layers of a model.
const MAX_LAYERS: u64 = 10_000;

/// Sizes that are whole numbers from 1 to a largest value wherever they are given.
const SIZES: [(&str, u64); 35] = [
    ("hidden_size", MAX_SIZE),
    ("intermediate_size", MAX_SIZE),
    ("vocab_size", MAX_SIZE),
    ("num_attention_heads", MAX_SIZE),
    ("num_key_value_heads", MAX_SIZE),
    ("head_dim", MAX_SIZE),
    ("max_position_embeddings", u64::MAX),
    ("num_hidden_layers", MAX_LAYERS),
    ("kv_lora_rank", MAX_SIZE),
    ("q_lora_rank", MAX_SIZE),
    ("qk_nope_head_dim", MAX_SIZE),
    ("qk_rope_head_dim", MAX_SIZE),
    ("v_head_dim", MAX_SIZE),
    ("linear_num_key_heads", MAX_SIZE),
    ("linear_num_value_heads", MAX_SIZE),
    ("linear_key_head_dim", MAX_SIZE),
    ("linear_value_head_dim", MAX_SIZE),
    ("linear_conv_kernel_dim", MAX_SIZE),
    ("full_attention_interval", MAX_SIZE),
    ("num_heads", MAX_SIZE),
    ("n_groups", MAX_SIZE),
    ("state_size", MAX_SIZE),
    ("ssm_state_size", MAX_SIZE),
    ("conv_kernel", MAX_SIZE),
    ("conv_L_cache", MAX_SIZE),
    ("mamba_num_heads", MAX_SIZE),
    ("mamba_head_dim", MAX_SIZE),
    ("mamba_n_heads", MAX_SIZE),
    ("mamba_d_head", MAX_SIZE),
    ("mamba_n_groups", MAX_SIZE),
    ("mamba_d_state", MAX_SIZE),
    ("mamba_d_conv", MAX_SIZE),
    ("mamba_d_ssm", MAX_SIZE),
    ("block_ff_dim", MAX_SIZE),
    ("block_multiple_of", MAX_SIZE),
];

/// Lists with one entry per layer.
const PER_LAYER: [&str; 3] = ["layer_types", "layers_block_type", "no_rope_layers"];

/// Lists of layers by their number, counted from 0.
const NUMBERED: [&str; 4] =
    ["full_attn_idxs", "attn_layer_indices", "mlp_only_layers", "cross_attention_layers"];

/// Checks `config`, a parsed `config.json`, before a model is built from it.
///
/// # Errors
/// A size that is no whole number, is zero or is larger than any model's; head counts that do not
/// divide; a per-layer list of another length than the model or with an unknown word; a list that
/// numbers a layer which does not exist.
pub fn check_config(config: &Map<String, Value>) -> Result<(), EstimatorError> {
    let fields = Fields::of(config.clone());
    check_sizes(&fields)?;
    let Some(families) = registry::select(&fields)? else { return Ok(()) };
    let scope = Scope::new(&fields, &families.text);
    check_heads(&scope)?;
    let layers = tensors::layers(&scope)?;
    check_lengths(&fields, layers)?;
    check_numbers(&fields, layers)?;
    check_words(&fields, &families.text.words)
}

fn check_sizes(fields: &Fields) -> Result<(), EstimatorError> {
    for (name, largest) in SIZES {
        let Field::Present(value) = fields.get(name) else { continue };
        if !value.as_u64().is_some_and(|size| (1..=largest).contains(&size)) {
            let value = shortened(&value.to_string());
            return Err(EstimatorError::SizeOutOfRange { field: name.to_owned(), value, largest });
        }
    }
    Ok(())
}

fn check_heads(scope: &Scope<'_>) -> Result<(), EstimatorError> {
    let query_heads = scope.named("num_attention_heads").ok().flatten();
    let kv_heads = scope.named("num_key_value_heads").ok().flatten();
    match (query_heads, kv_heads) {
        (Some(query_heads), Some(kv_heads)) if query_heads.checked_rem(kv_heads) != Some(0) => {
            Err(EstimatorError::UnevenHeads { query_heads, kv_heads })
        }
        _ => Ok(()),
    }
}

fn check_lengths(fields: &Fields, layers: u64) -> Result<(), EstimatorError> {
    for field in PER_LAYER {
        let Field::Present(Value::Array(items)) = fields.get(field) else { continue };
        check_length(field, items.len(), layers)?;
    }
    let Field::Present(Value::String(letters)) = fields.get("hybrid_override_pattern") else {
        return Ok(());
    };
    let Field::Present(stated) = fields.get("num_hidden_layers") else { return Ok(()) };
    let stated = stated.as_u64().unwrap_or(layers);
    check_length("hybrid_override_pattern", letters.chars().count(), stated)
}

fn check_length(field: &str, entries: usize, layers: u64) -> Result<(), EstimatorError> {
    if u64::try_from(entries) == Ok(layers) {
        return Ok(());
    }
    Err(EstimatorError::WrongLength { field: field.to_owned(), entries, layers })
}

fn check_numbers(fields: &Fields, layers: u64) -> Result<(), EstimatorError> {
    for field in NUMBERED {
        let Field::Present(Value::Array(numbers)) = fields.get(field) else { continue };
        let stray = numbers.iter().find(|number| number.as_u64().is_none_or(|n| n >= layers));
        if let Some(number) = stray {
            return Err(EstimatorError::NoSuchLayer {
                field: field.to_owned(),
                number: shortened(&number.to_string()),
                layers,
            });
        }
    }
    Ok(())
}

/// Checks the words of per-layer lists and patterns against those that the family knows.
fn check_words(fields: &Fields, known: &[(String, Vec<String>)]) -> Result<(), EstimatorError> {
    for (field, known) in known {
        let words: Vec<String> = match fields.get(field) {
            Field::Present(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
            }
            Field::Present(Value::String(letters)) => letters.chars().map(String::from).collect(),
            _ => continue,
        };
        let stray = words.iter().enumerate().find(|(_, word)| !known.contains(word));
        if let Some((layer, word)) = stray {
            return Err(EstimatorError::UnknownLayerType {
                field: field.clone(),
                layer,
                word: shortened(word),
                known: known.join(", "),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(model_type: &str, fields: Value) -> Option<String> {
        let mut config = fields;
        config["model_type"] = json!(model_type);
        check_config(config.as_object().unwrap()).err().map(|error| error.to_string())
    }

    #[track_caller]
    fn refused(model_type: &str, fields: Value, expected: &str) {
        let message = message(model_type, fields).unwrap_or_default();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn sizes_out_of_range() {
        assert_eq!(message("llama", json!({"hidden_size": 64, "head_dim": null})), None);
        for size in [json!(0), json!(-1), json!(1.5), json!("64"), json!(1_u64 << 60)] {
            let expected = format!("intermediate_size is {size}");
            refused("llama", json!({"intermediate_size": size}), &expected);
        }
        refused("llama", json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers is 1000000");
        refused("gpt2", json!({"n_embd": 0}), "hidden_size is 0");
        let heads = json!({"num_attention_heads": 8, "num_key_value_heads": 3});
        refused("llama", heads, "not a multiple of num_key_value_heads (3)");
    }

    #[test]
    fn one_known_type_per_layer() {
        let types = json!(["full_attention", "sliding_attention"]);
        let config = |layers| json!({"num_hidden_layers": layers, "layer_types": types});
        assert_eq!(message("llama", config(2)), None);
        refused("llama", config(1), "layer_types has 2 entries, but the model has 1 layers");
        refused("llama", config(3), "layer_types has 2 entries");
        let config = json!({"num_hidden_layers": 2, "layer_types": ["conv", "mamba"]});
        refused(
            "lfm2",
            config,
            "layer_types says \"mamba\" of layer 1 (known: full_attention, conv)",
        );
        let pattern = json!({"num_hidden_layers": 2, "hybrid_override_pattern": "M-*"});
        refused("nemotron_h", pattern, "hybrid_override_pattern has 3 entries");
        refused("nemotron_h", json!({"hybrid_override_pattern": "M?"}), "says \"?\" of layer 1");
    }

    #[test]
    fn numbers_of_layers_that_do_not_exist() {
        let config = |list: Value| json!({"num_hidden_layers": 3, "full_attn_idxs": list});
        assert_eq!(message("lfm2", config(json!([0, 2]))), None);
        assert_eq!(message("lfm2", config(Value::Null)), None);
        let expected = "full_attn_idxs names layer 3, but the 3 layers are numbered from 0 to 2";
        refused("lfm2", config(json!([1, 2, 3])), expected);
        refused("lfm2", config(json!([-1])), "names layer -1");
    }
}
