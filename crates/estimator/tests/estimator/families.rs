//! One published model per family: parameters, cache class, bytes per token and fixed state.
//!
//! The configurations hold the fields that the published ones give; what is left out is meant to
//! come from the class defaults. Counts are of the published checkpoints, less what their
//! architecture does not have (a tied head stored twice, causal-mask buffers).

use mlxcel_estimator::{
    Architecture, ComputeDtype, KvMode, LayerSpec, ModelSpec, kv_bytes_per_token,
};

#[track_caller]
fn check(config: &str, parameters: u64, architecture: Architecture, per_token: u64, state: u64) {
    let spec = ModelSpec::from_config(config).unwrap();
    assert_eq!(spec.parameters().unwrap(), Some(parameters));
    let layers = spec.layers.unwrap();
    let fixed: u64 = layers
        .iter()
        .flat_map(LayerSpec::states)
        .map(|state| state.state_bytes(ComputeDtype::Checkpoint))
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

#[test]
fn bloom_calls_its_width_n_embed() {
    check(
        r#"{"model_type": "bloom", "n_embed": 1024, "n_layer": 24, "num_attention_heads": 16}"#,
        559_214_592,
        Standard,
        98_304,
        0,
    );
}

#[test]
fn minicpm_ties_its_head_and_minicpm_3_keeps_latents() {
    check(
        r#"{"model_type": "minicpm", "hidden_size": 2304, "intermediate_size": 5760,
            "num_hidden_layers": 40, "num_attention_heads": 36, "num_key_value_heads": 36,
            "vocab_size": 122753}"#,
        2_724_880_896,
        Standard,
        368_640,
        0,
    );
    check(r#"{"model_type": "minicpm3"}"#, 4_073_875_968, Mla, 62 * (256 + 32) * 2, 0);
}

#[test]
fn llava_next_has_one_vector_more() {
    check(
        r#"{"model_type": "llava_next", "image_grid_pinpoints": [[336, 672]],
            "text_config": {"model_type": "mistral", "sliding_window": null, "vocab_size": 32064},
            "vision_config": {"model_type": "clip_vision_model"}}"#,
        7_566_747_648,
        Standard,
        131_072,
        0,
    );
}

#[test]
fn hunyuan_large_shares_every_second_cache() {
    check(
        r#"{"model_type": "hunyuan", "hidden_size": 6400, "intermediate_size": 18304,
            "num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8,
            "num_experts": 16, "tie_word_embeddings": true, "vocab_size": 129024,
            "use_cla": true, "cla_share_factor": 2}"#,
        388_701_402_880,
        Standard,
        32 * 2 * 8 * 80 * 2,
        0,
    );
}

/// The layers of `config` that have a window.
fn windowed(config: &str) -> Vec<usize> {
    let layers = ModelSpec::from_config(config).unwrap().layers.unwrap();
    let has_window = |layer: &LayerSpec| layer.attention().is_some_and(|a| a.window.is_some());
    (0..layers.len()).filter(|index| has_window(&layers[*index])).collect()
}

/// Without `layer_types` each class has a rule of its own, by the configuration classes of transformers.
#[test]
fn windows_without_layer_types() {
    let with = |model_type: &str, rest: &str| {
        windowed(&format!(
            r#"{{"model_type": "{model_type}", "num_hidden_layers": 8, "sliding_window": 64{rest}}}"#
        ))
    };
    let on = r#", "use_sliding_window": true"#;
    assert!(with("smollm3", "").is_empty());
    assert_eq!(with("smollm3", on), [3, 7]);
    assert_eq!(with("smollm3", &format!(r#"{on}, "no_rope_layer_interval": 2"#)), [1, 3, 5, 7]);
    let listed = format!(r#"{on}, "no_rope_layers": [0, 1, 1, 1, 1, 1, 1, 0]"#);
    assert_eq!(with("smollm3", &listed), [0, 7]);
    let later = format!(r#"{on}, "max_window_layers": 5"#);
    assert_eq!(with("qwen2", &later), [5, 6, 7]);
    assert_eq!(with("qwen3", &later), [5, 6, 7]);
    assert_eq!(with("qwen2_moe", &later), [0, 2, 4]);
    assert_eq!(with("qwen3_moe", &later), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(with("qwen2_moe", "").is_empty());
    assert_eq!(with("exaone4", r#", "sliding_window_pattern": 4"#), [0, 1, 2, 4, 5, 6]);
    assert_eq!(with("exaone4", r#", "sliding_window_pattern": "LLG""#), [0, 1, 3, 4, 6]);
}

/// What nobody described is guessed where its fields say enough, and the guess says what is not in it.
#[test]
fn guesses_say_what_they_leave_out() {
    let spec = |model_type: &str, rest: &str| {
        let config = format!(
            r#"{{"model_type": "{model_type}", "hidden_size": 512, "num_hidden_layers": 4,
                "num_attention_heads": 8, "intermediate_size": 1024, "vocab_size": 1000{rest}}}"#
        );
        ModelSpec::from_config(&config).unwrap()
    };
    for (rest, note) in [
        ("", "tie_word_embeddings is not given"),
        (r#", "sliding_window": 64"#, "the sliding window is not counted"),
        (r#", "audio_config": {}"#, "encoders of pictures and sound are not counted"),
        (r#", "vision_config": {"depth": 1}"#, "the image encoder of model type `zorglub`"),
    ] {
        let spec = spec("zorglub", rest);
        assert!(spec.parameters().unwrap().is_some(), "{rest}");
        let said = spec.assumptions.join("; ");
        assert!(said.contains(note) && said.contains("sized by its field names"), "{rest}: {said}");
    }
    for rest in [
        r#", "layers_block_type": ["mamba", "hybrid", "mamba", "mamba"]"#,
        r#", "attn_mode": "chunk""#,
        r#", "is_encoder_decoder": true"#,
        r#", "type_vocab_size": 2"#,
        r#", "zero_expert_num": 2"#,
        r#", "num_swa_attention_heads": 4"#,
    ] {
        let spec = spec("zorglub", rest);
        assert_eq!((spec.parameters().unwrap(), spec.layers), (None, None), "{rest}");
        let said = spec.assumptions.join("; ");
        assert!(said.contains("do not state what every layer caches"), "{rest}: {said}");
        assert!(!said.contains("sized by"), "{rest}: {said}");
    }
    let latent = spec("zorglub", r#", "kv_lora_rank": 64, "qk_rope_head_dim": 8"#);
    assert!(latent.layers.is_none() && latent.assumptions[0].contains("field names fails"));
    let heads = spec("zorglub", r#", "num_key_value_heads_per_layer": [4, 2, 1, 1]"#);
    let growth = kv_bytes_per_token(&heads.layers.unwrap(), KvMode::Fp16).unwrap();
    assert_eq!(growth, 8 * 2 * 64 * 2);
    let flat = r#"{"model_type": "chatglm", "hidden_size": 64, "ffn_hidden_size": 64, "num_layers": 1,
        "num_attention_heads": 2, "padded_vocab_size": 100, "vision_config": {"hidden_size": 8}}"#;
    let said = ModelSpec::from_config(flat).unwrap().assumptions.join("; ");
    assert!(said.contains("the image encoder of model type `chatglm` is not known"), "{said}");
}
