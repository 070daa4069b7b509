//! Quantisation of a checkpoint's weights, as `config.json` states it.

use serde_json::{Map, Value};

use crate::config::{Field, Fields};

/// Bits and groups of one kind of quantised tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantFormat {
    /// Bits of an element.
    pub bits: u64,
    /// Elements that share a scale; 0 where one scale serves the whole tensor.
    pub group_elems: u64,
    /// Bytes that a group shares: scale and, in MLX's affine format, bias.
    pub group_bytes: u64,
}

impl QuantFormat {
    /// MLX's affine format: an fp16 scale and an fp16 bias per group.
    #[must_use]
    pub fn affine(bits: u64, group_elems: u64) -> Self {
        Self { bits, group_elems, group_bytes: 4 }
    }

    /// Bytes of `elements` elements. Saturates.
    #[must_use]
    pub fn bytes(self, elements: u64) -> u64 {
        let codes = elements.saturating_mul(self.bits).div_ceil(8);
        let groups = elements.checked_div(self.group_elems).unwrap_or(0);
        codes.saturating_add(groups.saturating_mul(self.group_bytes))
    }
}

/// Quantisation of a checkpoint's weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantization {
    /// Format of most quantised tensors.
    pub format: QuantFormat,
    /// Name of the method: `mlx-affine`, `fp8`, `nvfp4`, ….
    pub method: String,
    /// Tensors that it applies to.
    pub scope: QuantScope,
    /// Modules (a tensor's name without `.weight`) that differ: another format, or none.
    pub overrides: Vec<(String, Option<QuantFormat>)>,
}

/// Tensors that a quantisation applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantScope {
    /// Every quantisable matrix, embedding and head too: MLX.
    All,
    /// Matrices of layers, neither embedding nor head.
    Layers,
    /// Experts only.
    Experts,
}

impl Quantization {
    pub(crate) fn read(fields: &Fields) -> Option<Self> {
        if let Field::Present(Value::Object(map)) = fields.get_outer("quantization") {
            return Self::mlx(map);
        }
        match fields.get_outer("quantization_config") {
            Field::Present(Value::Object(map)) if map.contains_key("quant_method") => {
                Self::other(map)
            }
            Field::Present(Value::Object(map)) => Self::mlx(map),
            _ => None,
        }
    }

    /// `{"group_size": 64, "bits": 4, "some.module": {"bits": 8, …} | false}`.
    fn mlx(map: &Map<String, Value>) -> Option<Self> {
        let format = mlx_format(map)?;
        let mode = map.get("mode").and_then(Value::as_str).unwrap_or("affine");
        let overrides = map.iter().filter_map(|(name, value)| match value {
            Value::Object(inner) => Some((name.clone(), Some(mlx_format(inner)?))),
            Value::Bool(false) => Some((name.clone(), None)),
            _ => None,
        });
        Some(Self {
            format,
            method: format!("mlx-{mode}"),
            scope: QuantScope::All,
            overrides: overrides.collect(),
        })
    }

    /// Formats of other tools, as far as sizes need them.
    fn other(map: &Map<String, Value>) -> Option<Self> {
        let method = word_of(map, "quant_method");
        let algorithm = word_of(map, "quant_algo");
        let named = format!("{method} {algorithm}").to_lowercase();
        let (method, format, scope) = known_format(&named, map)?;
        let lists = ["modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules"];
        let plain = lists.into_iter().filter_map(|key| map.get(key)?.as_array()).flatten();
        let overrides = plain.filter_map(|name| Some((name.as_str()?.to_owned(), None))).collect();
        Some(Self { format, method: method.to_owned(), scope, overrides })
    }

    /// The format of one tensor, or `None` where it is stored unquantised. `module` is its name
    /// without `.weight`.
    #[must_use]
    pub fn format_of(&self, module: &str) -> Option<QuantFormat> {
        let found = self.overrides.iter().find(|(pattern, _)| covers(pattern, module));
        found.map_or(Some(self.format), |(_, format)| *format)
    }
}

/// Reports whether a pattern names `module`: a prefix with `*`, or whole components at either end.
fn covers(pattern: &str, module: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('*') {
        return module.starts_with(prefix);
    }
    let before = module.strip_suffix(pattern);
    let after = module.strip_prefix(pattern);
    before.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        || after.is_some_and(|rest| rest.starts_with('.'))
}

fn word_of<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number_of(map: &Map<String, Value>, key: &str) -> Option<u64> {
    map.get(key).and_then(Value::as_u64)
}

/// Bits of an element, if they are stated and plausible.
fn bits_of(map: &Map<String, Value>) -> Option<u64> {
    number_of(map, "bits").filter(|bits| (1..=16).contains(bits))
}

fn mlx_format(map: &Map<String, Value>) -> Option<QuantFormat> {
    let bits = bits_of(map)?;
    let group = number_of(map, "group_size").unwrap_or(64).max(1);
    match map.get("mode").and_then(Value::as_str) {
        Some("mxfp4" | "mxfp8" | "nvfp4") => {
            Some(QuantFormat { bits, group_elems: group, group_bytes: 1 })
        }
        _ => Some(QuantFormat::affine(bits, group)),
    }
}

/// A format by a word of its name.
fn known_format(
    named: &str,
    map: &Map<String, Value>,
) -> Option<(&'static str, QuantFormat, QuantScope)> {
    let group = number_of(map, "group_size").unwrap_or(128).max(1);
    let bits = bits_of(map).unwrap_or(4);
    let four_bits = QuantFormat { bits: 4, group_elems: 16, group_bytes: 1 };
    let grouped = QuantFormat { bits, group_elems: group, group_bytes: 4 };
    let mxfp4 = QuantFormat { group_elems: 32, ..four_bits };
    let fp8 = QuantFormat { bits: 8, group_elems: 128 * 128, group_bytes: 4 };
    let all = [
        ("mxfp4", mxfp4, QuantScope::Experts),
        ("nvfp4", four_bits, QuantScope::Layers),
        ("modelopt_fp4", four_bits, QuantScope::Layers),
        ("fp8", fp8, QuantScope::Layers),
        ("gptq", grouped, QuantScope::Layers),
        ("awq", grouped, QuantScope::Layers),
        ("bitsandbytes", QuantFormat::affine(4, 64), QuantScope::Layers),
        ("modelopt", four_bits, QuantScope::Layers),
    ];
    all.into_iter().find(|(word, ..)| named.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Quantization> {
        Quantization::read(&Fields::parse(json).unwrap())
    }

    #[test]
    fn mlx_with_overrides() {
        let quant = read(
            r#"{"quantization": {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 8},
                "model.layers.0.mlp.gate": false}}"#,
        )
        .unwrap();
        assert_eq!(quant.format_of("model.layers.1.mlp.up_proj"), Some(QuantFormat::affine(4, 64)));
        assert_eq!(quant.format_of("lm_head"), Some(QuantFormat::affine(8, 32)));
        assert_eq!(quant.format_of("model.layers.0.mlp.gate"), None);
        assert_eq!(
            quant.format_of("model.layers.0.mlp.gate_proj"),
            Some(QuantFormat::affine(4, 64))
        );
        assert_eq!(QuantFormat::affine(4, 64).bytes(640), 320 + 40);
    }

    #[test]
    fn other_tools() {
        let quant = read(
            r#"{"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}}"#,
        );
        let quant = quant.unwrap();
        assert_eq!((quant.method.as_str(), quant.format.bits), ("fp8", 8));
        assert_eq!(quant.format_of("lm_head"), None);
        assert!(read(r#"{"quantization_config": {"quant_method": "what"}}"#).is_none());
        assert!(read(r#"{"quantization": {"bits": -4}}"#).is_none());
        assert!(read("{}").is_none());
    }
}
