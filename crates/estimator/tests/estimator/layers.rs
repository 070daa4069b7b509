//! Sizes of single layers, against published configurations and against the tensors' shapes.

use mlxcel_estimator::{
    AttentionShape, LayerSpec, Mixer, ModelSpec, TensorSpec, WeightFootprint, tensors,
};

fn layers(config: &str) -> Vec<LayerSpec> {
    ModelSpec::from_config(config).unwrap().layers.unwrap()
}

#[test]
fn qwen2_is_grouped_query_attention_and_a_gated_mlp() {
    let config = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": true}"#;
    let spec = ModelSpec::from_config(config).unwrap();
    assert_eq!((spec.hidden_size, spec.vocab_size, spec.tied_head), (896, 151_936, Some(true)));
    for layer in spec.layers.unwrap() {
        assert_eq!(layer.mixers, [Mixer::Attention(AttentionShape::new(14, 2, 64))]);
        let dense = layer.dense().unwrap();
        assert_eq!((dense.width, dense.gated, layer.feed_forward.len()), (4864, true, 1));
    }
}

#[test]
fn gemma_3_has_five_windows_to_one_global_layer() {
    let config = r#"{"model_type": "gemma3_text", "num_hidden_layers": 12,
        "sliding_window": 512, "max_position_embeddings": 32768}"#;
    let windows = layers(config).iter().map(|l| l.attention().unwrap().window).collect::<Vec<_>>();
    assert_eq!(windows[..6], [Some(512), Some(512), Some(512), Some(512), Some(512), None]);
    assert_eq!(windows[6..], windows[..6]);
}

#[test]
fn deepseek_v3_has_latents_and_experts_behind_three_dense_layers() {
    let layers = layers(r#"{"model_type": "deepseek_v3", "num_experts_per_tok": 8}"#);
    let latent = layers[0].latent().unwrap();
    assert_eq!(
        (latent.query_heads, latent.query_rank, latent.cached_dim()),
        (128, Some(1536), 576)
    );
    assert_eq!((latent.nope_dim, latent.rope_dim, latent.value_dim), (128, 64, 128));
    assert_eq!(layers[2].dense().unwrap().width, 18_432);
    assert!(layers[2].experts().is_none() && layers[3].dense().is_none());
    let experts = layers[3].experts().unwrap();
    assert_eq!((experts.count, experts.active, experts.width), (256, Some(8), 2048));
    assert_eq!((experts.shared_width, experts.gated), (2048, true));
}

#[test]
fn an_absent_number_of_active_experts_is_none() {
    let layers = layers(r#"{"model_type": "deepseek_v3"}"#);
    assert_eq!(layers[3].experts().unwrap().active, None);
}

#[test]
fn hybrids_mix_recurrences_and_attention() {
    let qwen = layers(r#"{"model_type": "qwen3_next", "num_experts_per_tok": 10}"#);
    let Mixer::GatedDelta(delta) = qwen[0].mixers[0] else { panic!("{:?}", qwen[0]) };
    assert_eq!((delta.key_heads, delta.value_heads, delta.channels()), (16, 32, 8192));
    assert_eq!(qwen[3].attention().unwrap().query_heads, 16);
    let falcon = layers(r#"{"model_type": "falcon_h1", "num_hidden_layers": 1}"#);
    let [Mixer::Mamba2(mamba), Mixer::Attention(_)] = falcon[0].mixers[..] else {
        panic!("{:?}", falcon[0])
    };
    assert_eq!((mamba.inner, mamba.heads, mamba.head_dim(), mamba.groups), (1024, 128, Some(8), 1));
    let nemotron = layers(r#"{"model_type": "nemotron_h", "hybrid_override_pattern": "M-*E"}"#);
    let parts = nemotron.iter().map(|l| (l.mixers.len(), l.feed_forward.len()));
    assert_eq!(parts.collect::<Vec<_>>(), [(1, 0), (0, 1), (1, 0), (0, 1)]);
    assert!(!nemotron[1].dense().unwrap().gated && !nemotron[3].experts().unwrap().gated);
}

#[test]
fn cross_attention_stands_in_every_fifth_layer() {
    let layers = layers(
        r#"{"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"},
            "vision_config": {"image_size": 560}}"#,
    );
    let crossing: Vec<_> =
        (0..layers.len()).filter(|l| layers[*l].cross_attention().is_some()).collect();
    assert_eq!(crossing, [3, 8, 13, 18, 23, 28, 33, 38]);
    assert_eq!(layers[3].cross_attention().unwrap().image_tokens, 6404);
}

#[test]
fn shared_caches_belong_to_an_earlier_layer() {
    let layers = layers(r#"{"model_type": "gemma3n_text"}"#);
    let shares = layers.iter().map(|l| l.attention().unwrap().shares_cache);
    assert_eq!(shares.filter(|shares| *shares).count(), 15);
    assert_eq!(layers[34].states().count(), 0);
}

/// Elements of the tensors of layer `layer` whose names end with one of `suffixes`.
fn elements(tensors: &[TensorSpec], layer: usize, suffixes: &[&str]) -> u64 {
    let prefix = format!(".layers.{layer}.");
    let matching = tensors.iter().filter(|tensor| {
        tensor.name.contains(&prefix) && suffixes.iter().any(|end| tensor.name.ends_with(end))
    });
    matching.map(|tensor| tensor.elements().unwrap()).sum()
}

/// A layer's sizes and the shapes of its tensors are separate statements of a description.
#[test]
fn sizes_agree_with_the_shapes_of_tensors() {
    let common = r#""hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 96, "intermediate_size": 2304, "vocab_size": 512,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 320"#;
    for model_type in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "smollm3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "olmo2",
        "stablelm",
        "cohere",
        "helium",
        "seed_oss",
        "ministral3",
        "internlm3",
        "exaone4",
        "mixtral",
        "olmoe",
        "qwen3_moe",
        "qwen2_moe",
        "glm4_moe",
        "phimoe",
        "minimax_m2",
        "minicpm",
        "ernie4_5",
        "ernie4_5_moe",
        "hunyuan",
        "jamba",
        "llama4_text",
        "lfm2_moe",
        "generic_decoder",
    ] {
        let config = format!(r#"{{"model_type": "{model_type}", {common}}}"#);
        let tensors = tensors(&config).unwrap();
        for (index, layer) in layers(&config).iter().enumerate() {
            let hidden = 1024;
            if let Some(a) = layer.attention() {
                let query = elements(&tensors, index, &["attn.q_proj.weight"]);
                assert_eq!(a.query_heads * a.key_dim * hidden, query, "{model_type} {index}");
                let key = elements(&tensors, index, &["attn.k_proj.weight"]);
                assert_eq!(a.kv_heads * a.key_dim * hidden, key, "{model_type} {index}");
            }
            let mut expected = 0;
            if let Some(dense) = layer.dense() {
                expected += dense.width;
            }
            if let Some(experts) = layer.experts() {
                expected += experts.count * experts.width + experts.shared_width;
            }
            let down = ["down_proj.weight", "w2.weight", "experts.down_proj"];
            assert_eq!(expected * hidden, elements(&tensors, index, &down), "{model_type} {index}");
        }
    }
}

/// The inventory and the layers come from one description: both are there or neither is.
#[test]
fn an_unknown_model_has_neither_layers_nor_tensors() {
    let spec = ModelSpec::from_config(r#"{"model_type": "martian"}"#).unwrap();
    assert!(spec.layers.is_none() && spec.tensors.is_none());
    assert_eq!((spec.hidden_size, spec.vocab_size, spec.tied_head), (0, 0, None));
    assert!(WeightFootprint::analytical(&spec).is_ok());
}
