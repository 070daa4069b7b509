//! Files of the demo model, compiled into the program so that it runs without a download.
//!
//! They are those of `models/demo` in the repository; its README describes them.

/// `config.json`.
pub(crate) const CONFIG: &[u8] = include_bytes!("../../../models/demo/config.json");
/// `model.safetensors`.
pub(crate) static WEIGHTS: &[u8] = include_bytes!("../../../models/demo/model.safetensors");

/// The configuration and text files, by name.
pub(crate) const FILES: &[(&str, &[u8])] = &[
    ("config.json", CONFIG),
    ("generation_config.json", include_bytes!("../../../models/demo/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../models/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/demo/tokenizer_config.json")),
];
