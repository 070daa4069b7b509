//! The small model inside the program, so that it can show what it does without any download.
//!
//! The files are `models/demo` of the repository; see the README there.

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../../../models/demo/config.json");
/// `model.safetensors`.
pub(crate) const WEIGHTS: &[u8] = include_bytes!("../../../models/demo/model.safetensors");

/// The other files, by name, as a folder would hold them.
pub(crate) const FILES: &[(&str, &[u8])] = &[
    ("config.json", CONFIG),
    ("generation_config.json", include_bytes!("../../../models/demo/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../models/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/demo/tokenizer_config.json")),
];
