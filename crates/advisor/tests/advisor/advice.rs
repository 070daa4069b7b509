//! Advice about models written down by their published fields.

use mlxcel_advisor::{
    Advice, Class, ContextRange, Measurements, ModeMeasurement, RecommendationSource,
    StoredPrecision, WeightAdvice, advise,
};
use mlxcel_estimator::{
    Architecture, AttentionShape, AvailableSource, Backend, KvMode, LayerSpec, Machine, Mixer,
    ModelSpec, RecurrentShape, WeightFootprint, WeightQuant, Workload, estimate_total_memory,
};

/// Llama 3.1 8B.
const LLAMA_8B: &str = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "max_position_embeddings": 131072, "torch_dtype": "bfloat16"}"#;

const QWEN_3_5: &str = r#"{"model_type": "qwen3_5_text", "hidden_size": 4096,
    "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
    "linear_num_value_heads": 32, "max_position_embeddings": 262144}"#;

fn spec(config: &str) -> ModelSpec {
    ModelSpec::from_config(config).unwrap()
}

fn gib(gib: u64) -> Machine {
    Machine::new(Backend::Metal).with_available(gib << 30, AvailableSource::WhatIf)
}

fn ask(config: &str, machine: &Machine, context: u64) -> Advice {
    let spec = spec(config);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    advise(&spec, &weights, machine, &Workload::uniform(context, 1), None).unwrap()
}

fn weights(advice: &Advice) -> &WeightAdvice {
    advice.weights.as_ref().unwrap()
}

/// `config` with one more field.
fn with(config: &str, field: &str) -> String {
    format!("{}, {field}}}", config.strip_suffix('}').unwrap())
}

#[test]
fn eight_billion_on_24_gb() {
    let short = ask(LLAMA_8B, &gib(24), 8192);
    assert_eq!(weights(&short).quant, WeightQuant::Fp16);
    assert_eq!(weights(&short).considered[0].weights_bytes, 16_060_522_496);
    assert_eq!(weights(&short).would_fit, None);
    let long = ask(LLAMA_8B, &gib(24), 131_072);
    let advice = weights(&long);
    assert_eq!(advice.quant, WeightQuant::Int4);
    let fits: Vec<_> = advice.considered.iter().map(|step| step.fits).collect();
    assert_eq!(fits, [Some(false); 3]);
    assert!(advice.reason.starts_with("the last resort: not even int4 fits"), "{}", advice.reason);
    let would = advice.would_fit.as_ref().unwrap();
    let names: Vec<_> = would.kv_modes.iter().map(|fit| fit.kv_mode.name()).collect();
    assert_eq!(names, ["fp16+turbo4", "fp16+turbo3", "int8"]);
    assert!(would.kv_modes.iter().all(|fit| fit.fits == Some(true)), "{would:?}");
    let reach = would.max_context_tokens.unwrap();
    assert!((120_000..131_072).contains(&reach), "{reach}");
    let wider: Vec<_> = advice.wider_with_smaller_cache.iter().map(|f| f.quant).collect();
    assert_eq!(wider, [WeightQuant::Int8], "int8 weights fit with a smaller cache");
}

#[test]
fn every_step_between() {
    let at = |machine: u64| weights(&ask(LLAMA_8B, &gib(machine), 8192)).quant.name();
    assert_eq!([20, 19, 12, 10, 7, 4].map(at), ["fp16", "int8", "int8", "int4", "int4", "int4"]);
    let tight = ask(LLAMA_8B, &gib(2), 8192);
    let would = weights(&tight).would_fit.as_ref().unwrap();
    assert_eq!((would.max_context_tokens, would.prefill_chunk_tokens), (Some(0), None));
    assert!(tight.to_text().contains("no context: the weights alone leave no room"));
    let unknown = ask(LLAMA_8B, &Machine::new(Backend::Cpu), 8192);
    assert_eq!(weights(&unknown).quant, WeightQuant::Fp16);
    assert!(weights(&unknown).reason.contains("memory is not known"));
}

/// A 4-bit checkpoint would fit many times over in fp16's place; it stays what it is.
#[test]
fn a_quantised_checkpoint_is_never_advised_upwards() {
    for (field, bits, method) in [
        (r#""quantization": {"group_size": 64, "bits": 4}"#, 4, "mlx-affine"),
        (r#""quantization": {"group_size": 32, "bits": 6}"#, 6, "mlx-affine"),
        (r#""quantization_config": {"quant_method": "fp8"}"#, 8, "fp8"),
        (r#""quantization_config": {"quant_method": "awq", "bits": 4}"#, 4, "awq"),
    ] {
        let config = with(LLAMA_8B, field);
        let plenty = ask(&config, &gib(512), 8192);
        let advice = weights(&plenty);
        assert_eq!(advice.stored, StoredPrecision::Quantised { bits, method: method.to_owned() });
        assert_eq!(advice.quant, WeightQuant::Default, "{field}");
        let widths: Vec<_> = advice.considered.iter().map(|s| s.weights_bytes).collect();
        assert!(widths.is_sorted_by(|a, b| a > b), "{field}: {widths:?}");
        assert_eq!(widths.len(), if bits == 4 { 1 } else { 2 }, "{field}");
    }
    let eight = ask(&with(LLAMA_8B, r#""quantization": {"bits": 8}"#), &gib(8), 8192);
    assert_eq!(weights(&eight).quant, WeightQuant::Int4);
    let reason = &weights(&eight).reason;
    assert!(reason.contains("quantise the original weights, not these"), "{reason}");
    let tight = ask(&with(LLAMA_8B, r#""quantization": {"bits": 4}"#), &gib(3), 8192);
    assert!(weights(&tight).reason.contains("nothing narrower"), "{}", weights(&tight).reason);
}

/// The headers of a 4-bit checkpoint whose configuration says nothing.
#[test]
fn a_quantised_checkpoint_is_seen_by_its_size() {
    let spec = spec(LLAMA_8B);
    let full = WeightFootprint::analytical(&spec).unwrap();
    let stored = |quant| StoredPrecision::of(&spec, &full.requantised(quant));
    let by_size = |bits| StoredPrecision::Quantised { bits, method: "by_size".to_owned() };
    assert_eq!(stored(WeightQuant::Default), StoredPrecision::Unquantised);
    assert_eq!(stored(WeightQuant::Int8), by_size(8));
    assert_eq!(stored(WeightQuant::Int4), by_size(4));
    assert_eq!(
        StoredPrecision::of(&spec, &WeightFootprint::stated(5 << 30)),
        StoredPrecision::Unknown
    );
}

/// Sizes are the estimator's own.
#[test]
fn bytes_and_contexts_are_the_estimators() {
    let (spec, machine) = (spec(QWEN_3_5), gib(48));
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let advice = ask(QWEN_3_5, &machine, 8192);
    let long = &advice.kv_cache[2];
    assert_eq!((long.range, long.context_tokens), (ContextRange::Long, 131_072));
    assert_eq!(long.recommendation.mode, KvMode::Turbo4);
    assert_eq!(long.recommendation.source, RecommendationSource::ReportedUpstream);
    let estimate = |mode, context| {
        let workload =
            Workload::uniform(context, 1).with_kv_mode(mode).with_quant(WeightQuant::Fp16);
        estimate_total_memory(&spec, &weights, &workload, &machine).unwrap()
    };
    // 8 attention layers of 4 heads of 256, keys and values: 2 × 2 bytes, or 1 byte and 2 scales.
    let (elems, vectors) = (8 * 4 * 256 * 131_072_u64, 8 * 4 * 131_072_u64);
    assert_eq!(long.fp16.cache_bytes, Some(4 * elems));
    assert_eq!(long.recommended.cache_bytes, Some(elems + 4 * vectors));
    assert_eq!(long.recommended.saved_bytes, Some(3 * elems - 4 * vectors));
    let reach = long.recommended.max_context_tokens.unwrap();
    assert!(reach > long.fp16.max_context_tokens.unwrap());
    assert_eq!(estimate(KvMode::Turbo4, reach).fits, Some(true));
    assert_eq!(estimate(KvMode::Turbo4, reach + 1).fits, Some(false));
}

/// Widths of heads under the field names of other families.
#[test]
fn field_names_of_olmo_and_mpt() {
    let mpt = |d_model, n_heads| {
        format!(
            r#"{{"model_type": "mpt", "d_model": {d_model}, "n_heads": {n_heads}, "n_layers": 48}}"#
        )
    };
    let olmo = r#"{"model_type": "hf_olmo", "d_model": 4096, "n_heads": 32, "n_layers": 32,
        "mlp_hidden_size": 22016, "vocab_size": 50280, "max_sequence_length": 2048}"#;
    let phi = r#"{"model_type": "phi", "hidden_size": 2560, "num_attention_heads": 32,
        "num_hidden_layers": 32, "intermediate_size": 10240, "vocab_size": 51200}"#;
    for (config, head, turbo) in [
        (mpt(7168, 64), 112, false),
        (mpt(4096, 32), 128, true),
        (olmo.into(), 128, true),
        (phi.into(), 80, false),
    ] {
        let class = Class::of(&spec(&config));
        assert_eq!((class.architecture, class.head_dim), (Architecture::Standard, head));
        let advice = ask(&config, &gib(24), 16_384);
        let modes = advice
            .kv_cache
            .iter()
            .flat_map(|range| [Some(range.recommendation.mode), range.recommendation.alternative]);
        assert_eq!(modes.flatten().any(KvMode::is_turbo), turbo, "{config}");
        assert_eq!(class.offered_modes(None).into_iter().any(KvMode::is_turbo), turbo, "{config}");
    }
}

/// The class of a model whose layers have one of `mixers` each, called `architecture`.
fn class_of(architecture: Architecture, mixers: &[Mixer]) -> Class {
    let mut spec = spec(LLAMA_8B);
    spec.architecture = architecture;
    let layers = mixers.iter().map(|mixer| LayerSpec::new(vec![*mixer], Vec::new()));
    spec.layers = Some(layers.collect());
    Class::of(&spec)
}

/// The latent attention of DeepSeek V3.
fn latent() -> Mixer {
    let spec = spec(r#"{"model_type": "deepseek_v3"}"#);
    spec.layers.unwrap()[0].mixers[0]
}

/// One awkward layer decides for all: a mode is chosen once for the whole model.
#[test]
fn mixed_layers() {
    let heads = |key_dim, value_dim| {
        Mixer::Attention(AttentionShape::new(4, 2, key_dim).with_value_dim(value_dim))
    };
    let state = Mixer::Recurrent(RecurrentShape::new(8, 8, 4));
    let head_dim = |mixers: &[Mixer]| class_of(Architecture::Standard, mixers).head_dim;
    assert_eq!(head_dim(&[heads(64, 64), heads(256, 256)]), 256);
    assert_eq!(head_dim(&[heads(256, 256), heads(80, 80)]), 80);
    assert_eq!(head_dim(&[heads(192, 128)]), 192);
    assert_eq!(head_dim(std::slice::from_ref(&state)), 0);
    let latents = [latent(), state, heads(128, 128)];
    let class = class_of(Architecture::Hybrid, &latents);
    assert_eq!(class.architecture, Architecture::Mla);
    assert_eq!(class.recommend(ContextRange::Long, None).mode, KvMode::Int8);
    assert_eq!(class.offered_modes(None), [KvMode::Int8]);
    let unknown = class_of(Architecture::Standard, &[heads(64, 64), Mixer::Unknown]);
    assert_eq!(unknown.architecture, Architecture::Unknown);
    assert_eq!(unknown.offered_modes(None), []);
}

#[test]
fn what_is_unknown_is_said() {
    let advice = ask(r#"{"model_type": "martian"}"#, &gib(24), 8192);
    assert!(advice.weights.is_none());
    assert!(advice.cannot_classify.as_ref().unwrap().starts_with("cannot classify: model type"));
    assert!(advice.kv_cache.iter().all(|range| range.recommendation.mode == KvMode::Fp16));
    let text = advice.to_text();
    assert!(text.contains("weights: cannot classify, their size is not known"), "{text}");
    assert!(text.contains("KV cache: cannot classify: model type `martian`"), "{text}");
}

/// Rows that do not divide into groups: no width is narrower, so none is advised.
#[test]
fn what_cannot_be_quantised_is_not_advised_to_be() {
    let tiny = r#"{"model_type": "phi", "hidden_size": 32, "num_attention_heads": 4,
        "num_hidden_layers": 2, "intermediate_size": 37, "vocab_size": 1024}"#;
    let machine = Machine::new(Backend::Cpu).with_available(1024, AvailableSource::WhatIf);
    let advice = ask(tiny, &machine, 512);
    let widths: Vec<_> = weights(&advice).considered.iter().map(|step| step.quant).collect();
    assert_eq!(widths, [WeightQuant::Fp16]);
    assert!(advice.to_text().contains("no context fits on this machine"), "{}", advice.to_text());
}

#[test]
fn text_and_json() {
    let advice = ask(LLAMA_8B, &gib(21), 32_768).named("Llama-3.1-8B");
    let text = advice.to_text();
    for part in [
        "Llama-3.1-8B: llama (standard)\n32768 tokens × 1 sequence(s), 21.00 GiB available",
        "nothing is applied, no weight is touched, and the default cache stays fp16",
        "weights: int8 (these are unquantised)",
        "* medium, at 32768 tokens: fp16+turbo4",
        "a cache of 2.52 GiB, 1.48 GiB less than fp16; at most",
        "to try it  --kv-cache-mode fp16+turbo4",
        "benchmark  --kv-cache-mode int8 too",
        "rule table; not measured on this model",
        "a cache of 10.06 GiB, which does not fit, 5.94 GiB less than fp16",
        "or           fp16 weights fit with --kv-cache-mode",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = advice.to_json().unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["schema"], "mlxcel.advice/1");
    assert_eq!(value["default_kv_mode"], "fp16");
    assert_eq!(value["architecture"], "standard");
    assert_eq!(value["weights"]["quant"], "int8");
    assert_eq!(value["weights"]["stored"]["kind"], "unquantised");
    assert_eq!(value["kv_cache"][1]["recommendation"]["mode"], "fp16+turbo4");
    assert_eq!(value["kv_cache"][1]["recommendation"]["source"], "table");
    assert_eq!(value["kv_cache"][1]["alternative"]["kv_mode"], "int8");
}

#[test]
fn a_measurement_reaches_the_advice() {
    let spec = spec(LLAMA_8B);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let turbo4 = ModeMeasurement {
        kv_mode: "turbo4".to_owned(),
        perplexity_change: Some(0.004),
        mean_kl_nats: Some(0.006),
        top1_agreement: Some(0.96),
    };
    let found = Measurements {
        scored_tokens: 4096,
        window: 2048,
        modes: vec![turbo4],
        ..Default::default()
    };
    let ask = |found: &Measurements| {
        let workload = Workload::uniform(131_072, 1);
        advise(&spec, &weights, &gib(24), &workload, Some(found)).unwrap()
    };
    let advice = ask(&found);
    assert_eq!(advice.kv_cache[2].recommendation.mode, KvMode::Turbo4);
    assert!(advice.to_text().contains("mean KL 6.00e-3 nats, top-1 96.00 %"));
    let offered = weights_modes(&advice);
    assert!(offered.contains(&KvMode::Turbo4), "{offered:?}");
    let few = ask(&Measurements { scored_tokens: 100, ..found });
    assert_eq!(few.kv_cache[2].recommendation.mode, KvMode::Fp16Turbo4);
    assert!(
        few.notes.iter().any(|note| note.contains("100 tokens were scored")),
        "{:?}",
        few.notes
    );
}

fn weights_modes(advice: &Advice) -> Vec<KvMode> {
    let would = weights(advice).would_fit.as_ref().unwrap();
    would.kv_modes.iter().map(|fit| fit.kv_mode).collect()
}
