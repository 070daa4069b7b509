//! One published model per family: parameters, cache class, bytes per token and fixed state.
//!
//! The configurations hold the fields that the published ones give; what is left out is meant to
//! come from the class defaults. Counts are of the published checkpoints, less what their
//! architecture does not have (a tied head stored twice, causal-mask buffers).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use mlxcel_estimator::{Architecture, ComputeDtype, KvMode, ModelSpec, kv_bytes_per_token};

#[track_caller]
fn check(config: &str, parameters: u64, architecture: Architecture, per_token: u64, state: u64) {
    let spec = ModelSpec::from_config(config).unwrap();
    assert_eq!(spec.parameters().unwrap(), Some(parameters));
    let layers = spec.layers.unwrap();
    let fixed: u64 = layers
        .iter()
        .flat_map(|l| &l.kept)
        .map(|kept| kept.state_bytes(ComputeDtype::Checkpoint))
        .sum();
    let growth = kv_bytes_per_token(&layers, KvMode::Fp16).unwrap();
    assert_eq!((spec.architecture, growth, fixed), (architecture, per_token, state));
}

use Architecture::{Hybrid, Mla, SlidingWindow, Ssm, Standard};

#[test]
fn llama_3_2_1b() {
    check(
        r#"{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64,
            "vocab_size": 128256, "tie_word_embeddings": true}"#,
        1_235_814_400,
        Standard,
        32_768,
        0,
    );
}

#[test]
fn mistral_7b_has_a_window_everywhere() {
    check(
        r#"{"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}"#,
        7_241_732_096,
        SlidingWindow,
        0,
        0,
    );
}

#[test]
fn phi_4_mini_has_a_window_longer_than_its_context() {
    check(
        r#"{"model_type": "phi3", "num_attention_heads": 24, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "sliding_window": 262144, "vocab_size": 200064,
            "tie_word_embeddings": true}"#,
        3_836_021_760,
        Standard,
        131_072,
        0,
    );
}

#[test]
fn qwen3_30b_a3b() {
    check(
        r#"{"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128,
            "use_sliding_window": false, "sliding_window": 4096}"#,
        30_532_122_624,
        Standard,
        98_304,
        0,
    );
}

#[test]
fn deepseek_v2_lite_projects_queries_directly() {
    check(
        r#"{"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
            "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
            "first_k_dense_replace": 1, "q_lora_rank": null}"#,
        15_706_484_224,
        Mla,
        31_104,
        0,
    );
}

#[test]
fn gemma_2_2b_alternates() {
    check(r#"{"model_type": "gemma2"}"#, 2_614_341_888, SlidingWindow, 53_248, 0);
}

#[test]
fn gemma_3_4b_is_mostly_class_defaults() {
    let config = r#"{"model_type": "gemma3",
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
            "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
            "model_type": "siglip_vision_model", "num_attention_heads": 16,
            "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}}"#;
    check(config, 4_300_079_472, SlidingWindow, 20_480, 0);
    assert_eq!(ModelSpec::from_config(config).unwrap().vision.unwrap().patches, 4096);
}

#[test]
fn gpt_oss_20b_alternates() {
    check(
        r#"{"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32}"#,
        20_914_757_184,
        SlidingWindow,
        24_576,
        0,
    );
}

#[test]
fn llama_4_scout_attends_globally_every_fourth_layer() {
    check(
        r#"{"model_type": "llama4", "text_config": {"model_type": "llama4_text",
                "max_position_embeddings": 10485760, "no_rope_layers": []},
            "vision_config": {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096}}"#,
        108_641_793_536,
        SlidingWindow,
        49_152,
        0,
    );
}

#[test]
fn llama_3_2_vision_crosses_every_fifth_layer() {
    check(
        r#"{"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"},
            "vision_config": {"image_size": 560}}"#,
        10_670_220_835,
        Standard,
        131_072,
        0,
    );
}

#[test]
fn falcon_7b_has_one_key_head_without_saying_so() {
    check(r#"{"model_type": "falcon"}"#, 6_921_720_704, Standard, 8_192, 0);
}

#[test]
fn gpt_2() {
    check(r#"{"model_type": "gpt2"}"#, 124_439_808, Standard, 36_864, 0);
}

#[test]
fn mamba_2_8b() {
    let state = 64 * (3 * 5120 * 2 + 5120 * 16 * 4);
    check(
        r#"{"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64}"#,
        2_768_345_600,
        Ssm,
        0,
        state,
    );
}

#[test]
fn jamba_mini_attends_every_eighth_layer() {
    check(r#"{"model_type": "jamba"}"#, 51_570_323_328, Hybrid, 16_384, 16_056_320);
}

#[test]
fn granite_4_h_micro() {
    let attends = |l| l % 10 == 5;
    let types: Vec<_> =
        (0..40).map(|l| if attends(l) { "\"attention\"" } else { "\"mamba\"" }).collect();
    let config = format!(
        r#"{{"model_type": "granitemoehybrid", "hidden_size": 2048, "intermediate_size": 8192,
            "shared_intermediate_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_local_experts": 0, "mamba_n_heads": 64,
            "mamba_d_state": 128, "vocab_size": 100352, "tie_word_embeddings": true,
            "layer_types": [{}]}}"#,
        types.join(",")
    );
    // The published 38 688 768 counts a state of 16 bits; mlx-lm keeps it in fp32, and so it runs here.
    let state = 36 * (3 * (4096 + 2 * 128) * 2 + 4096 * 128 * 4);
    check(&config, 3_191_396_096, Hybrid, 8_192, state);
}

#[test]
fn nemotron_h_56b_is_spelt_in_letters() {
    let pattern = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-\
                   M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-";
    let config = format!(
        r#"{{"model_type": "nemotron_h", "hidden_size": 8192, "intermediate_size": 32768,
            "attention_head_dim": 128, "num_attention_heads": 64, "mamba_num_heads": 256,
            "ssm_state_size": 256, "num_hidden_layers": 118, "time_step_limit": [0.0, Infinity],
            "hybrid_override_pattern": "{pattern}"}}"#
    );
    let state = 54 * (3 * 20_480 * 2 + 256 * 64 * 256 * 4);
    check(&config, 56_324_350_464, Hybrid, 40_960, state);
}

#[test]
fn qwen3_5_9b_without_its_encoder() {
    check(
        r#"{"model_type": "qwen3_5_text"}"#,
        9_409_813_744 - 456_010_480,
        Hybrid,
        32_768,
        51_511_296,
    );
}

#[test]
fn decoys_and_nulls() {
    let per_token = |config: &str| {
        let spec = ModelSpec::from_config(config).unwrap();
        kv_bytes_per_token(&spec.layers.unwrap(), KvMode::Fp16).unwrap()
    };
    let llama = |extra: &str| {
        format!(
            r#"{{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
                "num_hidden_layers": 32, "num_key_value_heads": 8{extra}}}"#
        )
    };
    assert_eq!(per_token(&llama("")), 131_072);
    assert_eq!(per_token(&llama(r#", "head_dim": null"#)), 131_072);
    assert_eq!(per_token(&llama(r#", "head_dim": 64"#)), 65_536);
    assert_eq!(per_token(&llama(r#", "head_dim": 64.0"#)), 65_536);
    let nulled = llama("").replace(r#""num_key_value_heads": 8"#, r#""num_key_value_heads": null"#);
    assert_eq!(per_token(&nulled), 524_288);
}

#[test]
fn an_unheard_of_decoder_is_sized_and_says_so() {
    let config = r#"{"model_type": "zorglub", "hidden_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 4096,
        "vocab_size": 32000, "sliding_window": 512, "use_sliding_window": false}"#;
    check(config, 126_362_624, Standard, 4 * 2 * 2 * 128 * 2, 0);
    let spec = ModelSpec::from_config(config).unwrap();
    assert!(spec.assumptions[0].contains("`zorglub` is not known: sized by its field names"));
}
