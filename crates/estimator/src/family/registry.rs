//! The registry of descriptions by `model_type`.

use super::{Family, SectionPlace};
use crate::EstimatorError;
use crate::config::{Field, Fields};

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
    ["qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl", "mimo"] => "qwen2",
    ["qwen3", "qwen3_vl_text"] => "qwen3",
    ["phi3", "phi3_v"] => "phi3",
    ["smollm3"] => "smollm3",
    ["qwen2_moe"] => "qwen2_moe",
    ["qwen3_moe", "qwen3_vl_moe_text", "qwen3_vl_moe"] => "qwen3_moe",
    ["qwen3_next"] => "qwen3_next",
    ["qwen3_5_text", "qwen3_5"] => "qwen3_5",
    ["qwen3_5_moe_text", "qwen3_5_moe"] => "qwen3_5_moe",
    ["deepseek_v2"] => "deepseek_v2",
    ["deepseek_v3", "kimi_k2"] => "deepseek_v3",
    ["glm_moe_dsa"] => "glm_moe_dsa",
    ["deepseek_v4", "deepseek_ref"] => "deepseek_v4",
    ["gemma"] => "gemma",
    ["gemma2"] => "gemma2",
    ["gemma3_text", "gemma3"] => "gemma3",
    ["gemma4_text", "gemma4"] => "gemma4",
    ["gpt_oss"] => "gpt_oss",
    ["granite"] => "granite",
    ["granitemoehybrid"] => "granitemoehybrid",
    ["falcon_h1"] => "falcon_h1",
    ["nemotron_h"] => "nemotron_h",
    ["mamba", "falcon_mamba"] => "mamba",
    ["mamba2"] => "mamba2",
    ["jamba"] => "jamba",
    ["mixtral"] => "mixtral",
    ["llama4_text", "llama4"] => "llama4",
    ["mllama_text_model"] => "mllama_text",
    ["step3p5", "step3p7"] => "step3p5",
    ["minimax_m3", "minimax_m3_vl_text"] => "minimax_m3",
    ["exaone"] => "exaone",
    ["qwen"] => "qwen",
    ["chatglm"] => "chatglm",
    ["baichuan"] => "baichuan",
    ["hf_olmo"] => "hf_olmo",
    ["molmo"] => "molmo",
    ["phi"] => "phi",
    ["phi-msft"] => "phi_msft",
    ["gpt2"] => "gpt2",
    ["gpt_bigcode"] => "gpt_bigcode",
    ["gpt_neox"] => "gpt_neox",
    ["mpt"] => "mpt",
    ["falcon"] => "falcon",
    ["olmo2", "olmo3"] => "olmo2",
    ["olmoe"] => "olmoe",
    ["starcoder2"] => "starcoder2",
    ["glm", "glm4", "glm4v_text"] => "glm4",
    ["lfm2", "lfm2_moe"] => "lfm2",
    ["yi", "aquila", "internlm", "xverse"] => "llama_like",
    ["seed_oss"] => "seed_oss",
    ["ernie4_5"] => "ernie4_5",
    ["internlm3"] => "internlm3",
    ["ministral3"] => "ministral3",
    ["helium"] => "helium",
    ["cohere", "cohere2"] => "cohere",
    ["stablelm", "stablelm_epoch"] => "stablelm",
    ["gptj", "codegen"] => "gptj",
    ["gpt_neo"] => "gpt_neo",
    ["opt"] => "opt",
    ["bloom"] => "bloom",
    ["olmo"] => "olmo",
    ["phimoe"] => "phimoe",
    ["glm4_moe", "glm4v_moe_text"] => "glm4_moe",
    ["exaone4"] => "exaone4",
    ["ernie4_5_moe"] => "ernie4_5_moe",
    ["minimax_m2"] => "minimax_m2",
    ["minimax", "minimax_text_01", "minimax_m1"] => "minimax",
    ["bamba"] => "bamba",
    ["granitemoe", "granitemoeshared"] => "granitemoe",
    ["nemotron", "arcee", "apertus"] => "ungated",
    ["recurrent_gemma"] => "recurrent_gemma",
    ["rwkv"] => "rwkv",
    ["hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan"] => "hunyuan",
    ["kimi_linear"] => "kimi_linear",
    ["gemma3n_text", "gemma3n"] => "gemma3n",
    ["dbrx"] => "dbrx",
    ["internlm2"] => "internlm2",
    ["minicpm"] => "minicpm",
    ["minicpm3"] => "minicpm3",
    ["deepseek_v32"] => "deepseek_v32",
];

/// Wrappers that join a language model to an image encoder.
const WRAPPERS: &[Entry] = families![
    ["llava", "llava_next"] => "llava",
    ["qwen2_5_vl"] => "qwen2_5_vl",
    ["qwen2_vl"] => "qwen2_vl",
    ["qwen3_vl"] => "qwen3_vl",
    ["qwen3_vl_moe"] => "qwen3_vl_moe",
    ["qwen3_5"] => "qwen3_5_vl",
    ["qwen3_5_moe"] => "qwen3_5_moe_vl",
    ["mistral3"] => "mistral3",
    ["paligemma"] => "paligemma",
    ["idefics3", "smolvlm"] => "idefics3",
    ["gemma3"] => "gemma3_vl",
    ["mllama"] => "mllama",
    ["llama4"] => "llama4_vl",
    ["kimi_k25"] => "kimi_k25",
    ["gemma4"] => "gemma4_vl",
    ["phi3_v"] => "phi3_v",
    ["step3p7"] => "step3p7",
];

/// `"name"` => `families/fragments/name.txt`.
macro_rules! fragments {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../families/fragments/", $name, ".txt")))),*]
    };
}

/// Pieces that several descriptions share.
const FRAGMENTS: &[(&str, &str)] = fragments![
    "attention",
    "ends",
    "experts",
    "gated_delta",
    "gated_mlp",
    "gqa",
    "indexer",
    "layer_norm_biases",
    "llama_layers",
    "mamba1",
    "mamba2",
    "mla",
    "mllama_block",
    "pixtral",
    "plain_mlp",
    "pre_norms",
    "qk_norm",
    "qwen3_5",
    "qwen3_vl",
    "shared_experts",
    "siglip",
    "swiglu",
    "vit_block",
];

/// The text of a fragment.
pub(crate) fn fragment(name: &str) -> Option<&'static str> {
    FRAGMENTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Description of a model type that has none of its own.
const GENERIC: (&str, &str) = ("generic", include_str!("../../families/generic.txt"));

/// The descriptions that apply to one configuration.
#[derive(Debug, Clone)]
pub(crate) struct SelectedFamilies {
    pub(crate) text: Family,
    pub(crate) wrapper: Option<Family>,
    /// A sentence if the model type has no description and its usual fields are all present.
    pub(crate) guess: Option<String>,
    /// A sentence if a part of the model is not described.
    pub(crate) uncounted: Option<String>,
}

/// Selects by the language part's type, the wrapper's usual language model and the wrapper's own type,
/// in this order; `None` if no description fits and the usual fields are not all present.
pub(crate) fn select(fields: &Fields) -> Result<Option<SelectedFamilies>, EstimatorError> {
    let root = fields.root_type().unwrap_or_default();
    let wrapper = find(WRAPPERS, root)?;
    let implied = wrapper.as_ref().and_then(|w| w.text.clone()).unwrap_or_default();
    let stated = fields.text_type().unwrap_or_default();
    for name in [stated, implied.as_str(), root] {
        if let Some(text) = find(TEXT, name)? {
            return Ok(Some(selected(fields, text, wrapper, None)));
        }
    }
    if !has_usual_fields(fields) {
        return Ok(None);
    }
    let name = crate::error::shortened(stated);
    let guess = format!(
        "model type `{name}` is not known: sized by its field names as a Llama-like decoder"
    );
    let text = Family::parse(GENERIC.0, GENERIC.1)?;
    Ok(Some(selected(fields, text, wrapper, Some(guess))))
}

fn selected(
    fields: &Fields,
    text: Family,
    wrapper: Option<Family>,
    guess: Option<String>,
) -> SelectedFamilies {
    let uncounted = if wrapper.is_none() { uncounted(fields, &text) } else { None };
    SelectedFamilies { text, wrapper, guess, uncounted }
}

/// A sentence about parts beside the language model that no description covers.
fn uncounted(fields: &Fields, text: &Family) -> Option<String> {
    let root = crate::error::shortened(fields.root_type().unwrap_or_default());
    let described = text.sections.iter().any(|section| section.place == SectionPlace::Vision);
    if fields.has_vision() && !described {
        return Some(format!(
            "the image encoder of model type `{root}` is not known and not counted"
        ));
    }
    let nested = fields.is_nested() && !described;
    nested.then(|| format!("of model type `{root}` only the language part is known and counted"))
}

fn has_usual_fields(fields: &Fields) -> bool {
    const USUAL: [&str; 5] = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ];
    USUAL.iter().all(|name| matches!(fields.get(name), Field::Present(_)))
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
        let generic: Entry = (&[], GENERIC.0, GENERIC.1);
        for (_, name, text) in TEXT.iter().chain(WRAPPERS).chain([&generic]) {
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
