//! A tokenizer for a model that has none: byte-level BPE whose first tokens are the 256
//! bytes, so that any text can be encoded, and whose remaining ids are short pseudo-words, so
//! that any id a random model produces can be decoded.

use crate::{Result, TestingError};
use serde_json::{Map, Value, json};

/// Ids of the special tokens. They are below the size of the vocabulary, except an image token, which
/// may follow it (as in Llama 3.2 Vision).
pub(super) struct Specials {
    pub(super) bos: u64,
    pub(super) eos: u64,
    /// Image tokens, if the model has any.
    image: Vec<(u64, &'static str)>,
}

/// Keys of a configuration that name an image token, and the text of that token in published models.
const IMAGE_TOKENS: [(&str, &str); 6] = [
    ("boi_token_index", "<start_of_image>"),
    ("eoi_token_index", "<end_of_image>"),
    ("image_token_index", "<image_soft_token>"),
    ("vision_start_token_id", "<|vision_start|>"),
    ("vision_end_token_id", "<|vision_end|>"),
    ("image_token_id", "<|image_pad|>"),
];

impl Specials {
    /// Special tokens of `config`, or one token with id 0 for ids outside the vocabulary.
    pub(super) fn of_config(config: &Value, vocab_size: u64) -> Self {
        let bos = token_id(config, "bos_token_id").filter(|id| *id < vocab_size);
        let eos = token_id(config, "eos_token_id").filter(|id| *id < vocab_size).unwrap_or(0);
        let is_llama = config["model_type"] == "mllama";
        let mut image = Vec::new();
        for (key, content) in IMAGE_TOKENS {
            let Some(id) = token_id(config, key) else { continue };
            if id < vocab_size || (is_llama && id == vocab_size) {
                image.push((id, if is_llama { "<|image|>" } else { content }));
            }
        }
        Self { bos: bos.unwrap_or(eos), eos, image }
    }

    fn content(&self, id: u64) -> Option<&'static str> {
        match id {
            _ if id == self.eos => Some("<|endoftext|>"),
            _ if id == self.bos => Some("<|begin|>"),
            _ => {
                let known = self.image.iter().find(|(image, _)| *image == id);
                known.map(|(_, content)| *content)
            }
        }
    }
}

/// Id at `key` of a configuration, or the first of several.
fn token_id(config: &Value, key: &str) -> Option<u64> {
    let value = &config[key];
    let first = value.as_array().map_or(value, |list| list.first().unwrap_or(value));
    first.as_u64()
}

fn byte_level(add_prefix_space: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": true,
    })
}

/// `tokenizer.json` with `vocab_size` tokens.
pub(super) fn tokenizer(vocab_size: u64, specials: &Specials) -> Result<Value> {
    if vocab_size < 256 + 2 {
        return Err(TestingError::SmallVocabulary { tokens: vocab_size });
    }
    let mut words = byte_letters().map(String::from).chain((0u64..).map(pseudo_word));
    let mut vocab = Map::new();
    let mut added = Vec::new();
    let behind = specials.image.iter().map(|(id, _)| *id).filter(|id| *id >= vocab_size);
    for id in (0..vocab_size).chain(behind) {
        let token = if let Some(content) = specials.content(id) {
            added.push(json!({
                "id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            }));
            content.to_string()
        } else {
            words.next().expect("pseudo-words never end")
        };
        vocab.insert(token, json!(id));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level(false), "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    }))
}

/// `tokenizer_config.json` to go with it.
pub(super) fn tokenizer_config(config: &Value, specials: &Specials) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": specials.content(specials.bos),
        "eos_token": specials.content(specials.eos),
        "model_max_length": config["max_position_embeddings"].as_u64().unwrap_or(2048),
        "clean_up_tokenization_spaces": false,
    })
}

/// Characters of byte-level BPE for all bytes: printable Latin-1 characters for themselves, characters
/// from U+0100 on for the other bytes, in order.
fn byte_letters() -> impl Iterator<Item = char> {
    let mut stand_ins = '\u{100}'..;
    (0u8..=255).map(move |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => stand_ins.next().expect("there are more characters than bytes"),
    })
}

/// A space and the number in bijective base 26 with at least two letters: “ aa”, “ ab”, ….
fn pseudo_word(mut number: u64) -> String {
    number += 26;
    let mut letters = Vec::new();
    loop {
        let digit = u8::try_from(number % 26).expect("a remainder of 26");
        letters.push(char::from(b'a' + digit));
        number /= 26;
        if number == 0 {
            break;
        }
        number -= 1;
    }
    letters.push('\u{120}'); // the letter of the space
    letters.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn letters_are_distinct_and_those_of_byte_level_bpe() {
        let letters: Vec<char> = byte_letters().collect();
        assert_eq!(letters.iter().collect::<BTreeSet<_>>().len(), 256);
        assert_eq!((letters[0], letters[32], letters[b'A' as usize]), ('Ā', 'Ġ', 'A'));
        assert_eq!((letters[10], letters[173], letters[255]), ('Ċ', 'Ń', 'ÿ'));
    }

    #[test]
    fn pseudo_words_are_distinct() {
        let words: BTreeSet<String> = (0..100_000).map(pseudo_word).collect();
        assert_eq!(words.len(), 100_000);
        assert_eq!(pseudo_word(0), "Ġaa");
    }

    #[test]
    fn every_id_has_a_token_and_the_specials_are_the_configs() {
        let config = json!({ "bos_token_id": 300, "eos_token_id": [301, 302] });
        let specials = Specials::of_config(&config, 512);
        let json = tokenizer(512, &specials).unwrap();
        let ids: BTreeSet<u64> = json["model"]["vocab"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(Value::as_u64)
            .collect();
        assert_eq!(ids, (0..512).collect());
        assert_eq!(json["model"]["vocab"]["<|begin|>"], 300);
        assert_eq!(json["model"]["vocab"]["<|endoftext|>"], 301);
    }

    #[test]
    fn special_ids_beyond_the_vocabulary_fall_back_to_zero() {
        let config = json!({ "bos_token_id": 128_000, "eos_token_id": 128_001 });
        let specials = Specials::of_config(&config, 512);
        assert_eq!((specials.bos, specials.eos), (0, 0));
        assert!(tokenizer(257, &specials).is_err());
    }
}
