//! Encoding of prompts, and missing or invalid files.

use super::*;

/// A word-level tokenizer with the ids 0 `<s>`, 1 `</s>`, 2 `a`, 3 `b`, 4 `<end>`; `more` replaces
/// keys of `tokenizer.json`.
fn json(more: serde_json::Value) -> String {
    let mut json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated",
            "invert": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "decoder": {"type": "Fuse"},
        "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true},
            {"id": 4, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false}],
        "model": {"type": "WordLevel", "unk_token": "a",
            "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<end>": 4}},
    });
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    json.to_string()
}

fn load(files: &[(&str, &str)]) -> Result<Tokenizer, TextError> {
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    Tokenizer::load(&TextFiles::Embedded(&files))
}

fn plain() -> String {
    json(serde_json::json!({}))
}

#[test]
fn only_plain_prompts_get_a_bos_token() {
    let config = ("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    let tokenizer = load(&[("tokenizer.json", &plain()), config]).unwrap();
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [0, 2, 3]);
    assert_eq!(tokenizer.encode_prompt("<s>ab").unwrap(), [0, 2, 3]);
    assert_eq!(tokenizer.encode_verbatim("ab").unwrap(), [2, 3]);
    assert_eq!(tokenizer.encode_verbatim("a<end>b").unwrap(), [2, 4, 3]);
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [0]);
}

#[test]
fn truncation_and_padding_are_ignored() {
    let json = json(serde_json::json!({
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"},
    }));
    let tokenizer = load(&[("tokenizer.json", &json)]).unwrap();
    assert_eq!(tokenizer.encode_prompt("abab").unwrap(), [0, 2, 3, 2, 3]);
}

#[test]
fn eos_tokens_come_from_all_files() {
    let json = plain();
    let tokenizer = ("tokenizer.json", json.as_str());
    let named = ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}}"#);
    let config = ("config.json", r#"{"eos_token_id": 3}"#);
    let nested = ("config.json", r#"{"eos_token_id": null, "text_config": {"eos_token_id": [2]}}"#);
    let generation = ("generation_config.json", r#"{"eos_token_id": [4, 0]}"#);
    let no_eos = ("generation_config.json", r#"{"temperature": 0.5}"#);
    let eos = |files: &[(&str, &str)]| load(files).unwrap().eos_tokens().collect::<Vec<_>>();
    assert_eq!(eos(&[tokenizer, named, config, generation]), [0, 1, 4]);
    assert_eq!(eos(&[tokenizer, named, config, no_eos]), [1, 3]);
    assert_eq!(eos(&[tokenizer, nested]), [2]);
    assert_eq!(eos(&[tokenizer]), Vec::<u32>::new());
    let tokenizer = load(&[tokenizer, named]).unwrap();
    assert!(tokenizer.is_eos(1) && !tokenizer.is_eos(0));
}

#[test]
fn a_named_special_token_is_special() {
    let named = ("tokenizer_config.json", r#"{"eos_token": "</s>", "pad_token": "<absent>"}"#);
    let tokenizer = load(&[("tokenizer.json", &plain()), named]).unwrap();
    assert!(tokenizer.is_special(0) && tokenizer.is_special(1));
    assert!(!tokenizer.is_special(4), "an added token that is not special");
    assert_eq!(tokenizer.encode_verbatim("a</s>").unwrap(), [2, 1]);
    assert_eq!(tokenizer.decode(&[2, 1, 4], SpecialTokens::Skip), "a<end>");
    assert_eq!(tokenizer.vocab_size(), 5);
    assert_eq!(tokenizer.token_bytes(4).as_deref(), Some(&b"<end>"[..]));
    assert_eq!(tokenizer.token_bytes(5), None);
}

#[test]
fn errors_name_the_file() {
    let json = plain();
    let wrong_decoder = self::json(serde_json::json!({
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}
    }));
    let tokenizer = ("tokenizer.json", json.as_str());
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], "built-in/tokenizer.json is missing"),
        (&[("tokenizer.json", "{")], "built-in/tokenizer.json does not describe a tokenizer"),
        (&[("tokenizer.json", "{}")], "built-in/tokenizer.json does not describe a tokenizer"),
        (&[("tokenizer.json", &wrong_decoder)], "the decoder {\"type\":\"WordPiece\""),
        (
            &[tokenizer, ("tokenizer_config.json", "[]")],
            "built-in/tokenizer_config.json is not valid",
        ),
        (
            &[tokenizer, ("generation_config.json", r#"{"eos_token_id": "x"}"#)],
            "built-in/generation_config.json is not valid",
        ),
        (
            &[tokenizer, ("tokenizer_config.json", r#"{"eos_token": "<no>"}"#)],
            "eos_token is \"<no>\", which is not in the vocabulary",
        ),
    ];
    for (files, expected) in cases {
        let error = load(files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(&TextFiles::Folder(folder.path())).unwrap_err();
    let file = folder.path().join("tokenizer.json").display().to_string();
    assert!(error.to_string().starts_with(&file), "{error}");
    std::fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::load(&TextFiles::Folder(folder.path())).unwrap_err();
    assert!(matches!(error, TextError::Unreadable { .. }));
}
