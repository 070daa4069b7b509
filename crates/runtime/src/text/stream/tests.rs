//! Streamed text, compared with the `tokenizers` crate.

use proptest::prelude::*;

use super::*;
use crate::text::TextFiles;

/// A tokenizer with byte tokens, words and the given `decoder`.
///
/// Ids: 0 `<s>` (special), 1–256 `<0x00>`–`<0xFF>`, then the words.
fn tokenizer(words: &[&str], decoder: &str) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let words = words.iter().map(|word| (*word).to_owned());
    for (id, token) in std::iter::once("<s>".to_owned()).chain(bytes).chain(words).enumerate() {
        vocab.insert(token, id.into());
    }
    let decoder: serde_json::Value = serde_json::from_str(decoder).unwrap();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    let json = json.to_string();
    Tokenizer::load(&TextFiles::Embedded(&[("tokenizer.json", json.as_bytes())])).unwrap()
}

const LLAMA: &str = r#"{"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#;
const GEMMA: &str = r#"{"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}]}"#;
const METASPACE: &str =
    r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#;
const BYTE_LEVEL: &str =
    r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;

const WORDS: [&str; 6] = ["▁the", "▁", "▁▁", "x", "é▁€", "\n"];
const FIRST_WORD: u32 = 257;

fn pieces(mut stream: Detokenizer, tokens: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = tokens.iter().filter_map(|token| stream.push(*token)).collect();
    pieces.push(stream.finish());
    pieces
}

fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    pieces(Detokenizer::new(tokenizer.clone(), SpecialTokens::Skip), tokens).concat()
}

/// Text decoded by the `tokenizers` crate.
fn reference_text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    tokenizer.reference().decode(tokens, true).unwrap()
}

fn byte_tokens(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| 1 + u32::from(byte)).collect()
}

#[test]
fn only_complete_characters_are_emitted() {
    let tokenizer = tokenizer(&WORDS, LLAMA);
    let mut stream = Detokenizer::new(tokenizer, SpecialTokens::Skip);
    let outputs: Vec<Option<String>> =
        byte_tokens("aé😀").into_iter().map(|token| stream.push(token)).collect();
    let expected = [Some("a"), None, Some("é"), None, None, None, Some("😀")];
    assert_eq!(outputs, expected.map(|text| text.map(str::to_owned)));
    assert_eq!(stream.finish(), "");
}

#[test]
fn an_incomplete_end_becomes_one_replacement_character() {
    let tokenizer = tokenizer(&WORDS, GEMMA);
    let mut tokens = byte_tokens("a😀");
    tokens.pop();
    assert_eq!(streamed(&tokenizer, &tokens), "a\u{fffd}");
}

#[test]
fn a_word_after_an_incomplete_character_is_kept() {
    let tokenizer = tokenizer(&WORDS, GEMMA);
    assert_eq!(streamed(&tokenizer, &[1 + 0xE2, 1 + 0x82, FIRST_WORD]), "\u{fffd} the");
}

#[test]
fn a_leading_space_is_stripped_only_at_the_start() {
    for decoder in [LLAMA, METASPACE] {
        let tokenizer = tokenizer(&WORDS, decoder);
        let tokens = [FIRST_WORD, FIRST_WORD];
        assert_eq!(streamed(&tokenizer, &tokens), "the the");
        let stream = Detokenizer::new(tokenizer, SpecialTokens::Skip).continuing();
        assert_eq!(pieces(stream, &tokens).concat(), " the the");
    }
}

#[test]
fn special_tokens_are_skipped_or_kept_and_unknown_ones_have_no_text() {
    let tokenizer = tokenizer(&WORDS, GEMMA);
    let tokens = [0, FIRST_WORD + 3, 99_999];
    assert_eq!(tokenizer.decode(&tokens, SpecialTokens::Skip), "x");
    assert_eq!(tokenizer.decode(&tokens, SpecialTokens::Keep), "<s>x");
}

#[test]
fn pending_bytes_are_bounded() {
    let tokenizer = tokenizer(&WORDS, GEMMA);
    let mut stream = Detokenizer::new(tokenizer, SpecialTokens::Skip);
    for token in (0..100_000).map(|index| 1 + (index * 7) % 256) {
        stream.push(token);
        assert!(stream.pending.len() <= 3, "{:?}", stream.pending);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Words, and characters spelled in byte tokens.
    #[test]
    fn streamed_text_equals_decoded_text(
        parts in prop::collection::vec(prop_oneof![
            (FIRST_WORD..FIRST_WORD + 6).prop_map(|word| vec![word]),
            any::<char>().prop_map(|c| byte_tokens(&c.to_string())),
            Just(vec![0]),
            Just(vec![99_999]),
        ], 0..20),
        decoder in prop::sample::select(vec![LLAMA, GEMMA]),
    ) {
        let tokenizer = tokenizer(&WORDS, decoder);
        let tokens = parts.concat();
        prop_assert_eq!(streamed(&tokenizer, &tokens), reference_text(&tokenizer, &tokens));
    }

    #[test]
    fn metaspace_text_equals_decoded_text(
        tokens in prop::collection::vec(FIRST_WORD..FIRST_WORD + 6, 0..10),
    ) {
        let tokenizer = tokenizer(&WORDS, METASPACE);
        prop_assert_eq!(streamed(&tokenizer, &tokens), reference_text(&tokenizer, &tokens));
    }

    /// Arbitrary bytes in GPT-2's alphabet, U+FFFD included.
    #[test]
    fn byte_level_text_equals_decoded_text(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80..0xC0_u8, 0xE0..0xF5_u8], 0..40),
        cuts in prop::collection::vec(1..4_usize, 40),
    ) {
        let mut rest = &bytes[..];
        let mut words = vec!["<not latin: 語>".to_owned()];
        for cut in cuts {
            let (word, after) = rest.split_at(cut.min(rest.len()));
            words.push(word.iter().map(|byte| byte_level_form(*byte)).collect());
            rest = after;
        }
        words.retain(|word| !word.is_empty());
        let mut seen = std::collections::HashSet::new();
        let order: Vec<String> = words.clone();
        words.retain(|word| seen.insert(word.clone()));
        let forms: Vec<&str> = words.iter().map(String::as_str).collect();
        let tokenizer = tokenizer(&forms, BYTE_LEVEL);
        let tokens: Vec<u32> =
            order.iter().filter_map(|word| tokenizer.token_id(word)).collect();
        prop_assert_eq!(tokens.len(), order.len());
        prop_assert_eq!(streamed(&tokenizer, &tokens), reference_text(&tokenizer, &tokens));
    }

    /// Arbitrary bytes through byte fallback.
    #[test]
    fn byte_fallback_text_equals_the_bytes(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80..0xC0_u8, 0xE0..0xF5_u8], 0..40),
    ) {
        let tokenizer = tokenizer(&WORDS, GEMMA);
        let tokens: Vec<u32> = bytes.iter().map(|byte| 1 + u32::from(*byte)).collect();
        prop_assert_eq!(streamed(&tokenizer, &tokens), String::from_utf8_lossy(&bytes));
    }
}

/// A byte in GPT-2's alphabet, by definition.
fn byte_level_form(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count();
    char::from_u32(256 + u32::try_from(before).unwrap()).unwrap()
}
