//! Which description belongs to which `model_type`.

use super::Family;
use crate::EstimatorError;
use crate::config::Fields;

/// Model types and the description that they share.
type Entry = (&'static [&'static str], &'static str, &'static str);

/// `(&["model_type", …], "file" => families/file.txt)`.
macro_rules! families {
    ($($types:expr => $file:literal),* $(,)?) => {
        &[$((&$types, $file, include_str!(concat!("../../families/", $file, ".txt")))),*]
    };
}

/// Language models.
const TEXT: &[Entry] = families![
    ["llama"] => "llama",
    ["mistral"] => "mistral",
    ["qwen2"] => "qwen2",
    ["qwen3"] => "qwen3",
    ["phi3"] => "phi3",
    ["smollm3"] => "smollm3",
];

/// Wrappers that join a language model to an image encoder.
const WRAPPERS: &[Entry] = families![];

/// Pieces that several descriptions share.
const FRAGMENTS: &[(&str, &str)] = &[
    ("ends", include_str!("../../families/fragments/ends.txt")),
    ("gqa", include_str!("../../families/fragments/gqa.txt")),
    ("gated_mlp", include_str!("../../families/fragments/gated_mlp.txt")),
    ("pre_norms", include_str!("../../families/fragments/pre_norms.txt")),
];

/// The text of a fragment.
pub(crate) fn fragment(name: &str) -> Option<&'static str> {
    FRAGMENTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The descriptions that one configuration needs.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub(crate) text: Family,
    pub(crate) wrapper: Option<Family>,
}

/// Chooses by the language part's type, the wrapper's type, and the wrapper's usual language
/// model, in this order.
pub(crate) fn choose(fields: &Fields) -> Result<Chosen, EstimatorError> {
    let root = fields.root_type().unwrap_or_default();
    let wrapper = find(WRAPPERS, root)?;
    let implied = wrapper.as_ref().and_then(|w| w.text.clone()).unwrap_or_default();
    let stated = fields.text_type().unwrap_or_default();
    for name in [stated, implied.as_str(), root] {
        if let Some(text) = find(TEXT, name)? {
            return Ok(Chosen { text, wrapper });
        }
    }
    Err(EstimatorError::MissingField {
        field: "model_type".to_owned(),
        model_type: crate::error::shortened(stated),
    })
}

fn find(table: &[Entry], model_type: &str) -> Result<Option<Family>, EstimatorError> {
    match table.iter().find(|(types, _, _)| types.contains(&model_type)) {
        None => Ok(None),
        Some((_, name, text)) => Family::parse(name, text).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_description_parses() {
        for (_, name, text) in TEXT.iter().chain(WRAPPERS) {
            let family = Family::parse(name, text).unwrap();
            assert!(!family.sections.is_empty(), "{name}");
            let rows = family.sections.iter().flat_map(|s| &s.rows);
            for row in rows {
                assert!(
                    !row.name.contains('<'),
                    "{name}: a parameter of `{}` is not given",
                    row.name
                );
            }
        }
    }

    #[test]
    fn no_model_type_is_claimed_twice() {
        for table in [TEXT, WRAPPERS] {
            let mut types: Vec<_> = table.iter().flat_map(|(types, _, _)| *types).collect();
            types.sort_unstable();
            let all = types.len();
            types.dedup();
            assert_eq!(types.len(), all);
        }
    }
}
