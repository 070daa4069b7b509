//! Checks of a `config.json` of any family, before a tensor is read.
//!
//! Owns the bounds of sizes, so that products of them cannot overflow, and the agreement of lists
//! with the number of layers. Fields of one family alone are checked where they are read.

use serde_json::Value;

use super::config::MAX_SIZE;
use crate::{Error, Result};

/// More layers than any model has.
const MAX_LAYERS: usize = 10_000;

/// Sizes that are whole numbers from 1 to a largest value wherever they are given.
const SIZES: [(&str, usize); 8] = [
    ("hidden_size", MAX_SIZE),
    ("intermediate_size", MAX_SIZE),
    ("vocab_size", MAX_SIZE),
    ("num_attention_heads", MAX_SIZE),
    ("num_key_value_heads", MAX_SIZE),
    ("head_dim", MAX_SIZE),
    ("max_position_embeddings", usize::MAX),
    ("num_hidden_layers", MAX_LAYERS),
];

/// Refuses a size that is no whole number, zero, or larger than any model's.
pub(super) fn sizes(config: &Value) -> Result<()> {
    for (name, largest) in SIZES {
        let Some(value) = config.get(name).filter(|value| !value.is_null()) else { continue };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        if !size.is_some_and(|size| (1..=largest).contains(&size)) {
            return Err(Error::config(format!("{name} is {value}, which is out of range")));
        }
    }
    Ok(())
}

/// Refuses a `layer_types` that does not name one type per layer.
pub(super) fn layer_types(config: &Value) -> Result<()> {
    let types = config.get("layer_types").and_then(Value::as_array).map(Vec::len);
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64);
    match (types, layers) {
        (Some(types), Some(layers)) if types as u64 != layers => Err(Error::config(format!(
            "layer_types has {types} entries, but num_hidden_layers is {layers}"
        ))),
        _ => Ok(()),
    }
}

/// Lists of layers by their number, counted from 0.
const NUMBERED: [&str; 4] =
    ["full_attn_idxs", "attn_layer_indices", "mlp_only_layers", "cross_attention_layers"];

/// Refuses a list that names a missing layer, such as one that counts from 1.
pub(super) fn numbered_layers(config: &Value) -> Result<()> {
    let Some(layers) = config.get("num_hidden_layers").and_then(Value::as_u64) else {
        return Ok(());
    };
    for name in NUMBERED {
        let Some(numbers) = config.get(name).and_then(Value::as_array) else { continue };
        let wrong = numbers.iter().find(|number| number.as_u64().is_none_or(|n| n >= layers));
        if let Some(wrong) = wrong {
            return Err(Error::config(format!(
                "{name} names layer {wrong}, but the {layers} layers are numbered from 0 to {}",
                layers.saturating_sub(1)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(config: &Value) -> Option<String> {
        sizes(config).and_then(|()| layer_types(config)).err().map(|error| error.to_string())
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert_eq!(message(&json!({"hidden_size": 64, "head_dim": null})), None);
        for size in [json!(0), json!(-1), json!(1.5), json!("64"), json!(1_u64 << 60)] {
            let error = message(&json!({"intermediate_size": size})).unwrap();
            assert!(error.contains(&format!("intermediate_size is {size}")), "{error}");
        }
        let error = message(&json!({"num_hidden_layers": 1_000_000})).unwrap();
        assert!(error.contains("num_hidden_layers is 1000000"), "{error}");
    }

    #[test]
    fn one_type_per_layer() {
        let types = json!(["full_attention", "sliding_attention"]);
        assert_eq!(message(&json!({"num_hidden_layers": 2, "layer_types": types})), None);
        for layers in [1, 3] {
            let error = message(&json!({"num_hidden_layers": layers, "layer_types": types}));
            assert!(error.unwrap().contains("layer_types has 2 entries"));
        }
    }

    #[test]
    fn missing_layers_are_refused() {
        let message = |list: Value| {
            let config = json!({"num_hidden_layers": 3, "full_attn_idxs": list});
            numbered_layers(&config).err().map(|error| error.to_string())
        };
        assert_eq!(message(json!([0, 2])), None);
        assert_eq!(message(Value::Null), None);
        let error = message(json!([1, 2, 3])).unwrap();
        assert!(error.contains("full_attn_idxs names layer 3"), "{error}");
        assert!(error.contains("the 3 layers are numbered from 0 to 2"), "{error}");
        assert!(message(json!([-1])).unwrap().contains("names layer -1"));
    }
}
