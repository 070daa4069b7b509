//! What must hold for every input: sizes grow with what is asked, nothing panics, and a solution
//! fits where one more does not.

use std::path::Path;

use mlxcel_estimator::headers::parse_header;
use mlxcel_estimator::report::Report;
use mlxcel_estimator::{
    AvailableSource, Backend, KV_BLOCK_TOKENS, KvMode, Machine, MemoryEstimate, ModelSpec, Solver,
    WeightFootprint, WeightQuant, Workload, estimate_total_memory, format_bytes, kv_cache_bytes,
    parse_bytes,
};
use proptest::prelude::*;

fn config(layers: u64, kv_heads: u64, window: u64) -> String {
    format!(
        r#"{{"model_type": "mistral", "hidden_size": 1024, "intermediate_size": 2048,
            "num_hidden_layers": {layers}, "num_attention_heads": 16, "head_dim": 64,
            "num_key_value_heads": {kv_heads}, "vocab_size": 32000, "sliding_window": {window}}}"#
    )
}

fn estimate(config: &str, workload: &Workload, machine: &Machine) -> MemoryEstimate {
    let spec = ModelSpec::from_config(config).unwrap();
    let weights = WeightFootprint::analytical(&spec).unwrap();
    estimate_total_memory(&spec, &weights, workload, machine).unwrap()
}

fn any_machine() -> impl Strategy<Value = Machine> {
    (prop::sample::select(Backend::ALL.to_vec()), any::<u64>()).prop_map(|(backend, bytes)| {
        Machine::new(backend).with_available(bytes, AvailableSource::WhatIf)
    })
}

fn any_mode() -> impl Strategy<Value = KvMode> {
    prop::sample::select(KvMode::ALL.to_vec())
}

/// JSON with the field names that matter, and values that should not be there.
fn any_config() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (0_u64..200).prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|x| format!("{x:?}")),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("\"auto\"".to_owned()),
        Just("[]".to_owned()),
        Just("[1, \"mamba\", null]".to_owned()),
        Just("{\"hidden_size\": 7}".to_owned()),
    ];
    let name = prop::sample::select(vec![
        "hidden_size",
        "num_hidden_layers",
        "n_layer",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "intermediate_size",
        "sliding_window",
        "layer_types",
        "text_config",
        "vision_config",
        "kv_lora_rank",
        "q_lora_rank",
        "num_experts",
        "hybrid_override_pattern",
        "mamba_d_state",
        "quantization",
        "tie_word_embeddings",
        "max_position_embeddings",
        "no_rope_layers",
        "compress_ratios",
        "expansion_ratio",
    ]);
    let model = prop::sample::select(vec![
        "llama",
        "qwen3_moe",
        "deepseek_v3",
        "deepseek_v4",
        "gemma3",
        "nemotron_h",
        "jamba",
        "falcon_h1",
        "llama4",
        "mllama",
        "lfm2",
        "mpt",
        "falcon",
        "llava",
        "qwen2_5_vl",
        "unheard_of",
    ]);
    (model, prop::collection::btree_map(name, value, 0..12)).prop_map(|(model, fields)| {
        let fields: String = fields.iter().map(|(k, v)| format!(", \"{k}\": {v}")).collect();
        format!("{{\"model_type\": \"{model}\"{fields}}}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn estimates_grow(
        layers in 1_u64..40, heads in 1_u64..16, window in 0_u64..5000,
        context in 0_u64..200_000, more in 0_u64..200_000, batch in 1_u64..9, mode in any_mode(),
        machine in any_machine(),
    ) {
        let config = config(layers, heads, window);
        let at = |context, batch| estimate(&config, &Workload::uniform(context, batch).with_kv_mode(mode), &machine);
        let base = at(context, batch);
        for larger in [at(context + more, batch), at(context, batch + 1)] {
            prop_assert!(larger.total_bytes >= base.total_bytes);
            prop_assert!(larger.expected_peak_bytes >= base.expected_peak_bytes);
            prop_assert!(larger.kv_cache_bytes >= base.kv_cache_bytes);
        }
        prop_assert!(base.total_bytes >= base.expected_peak_bytes);
    }

    #[test]
    fn more_bits_take_more_bytes(
        layers in 1_u64..40, heads in 1_u64..16, context in 1_u64..100_000, machine in any_machine(),
    ) {
        let config = config(layers, heads, 0);
        let kv = |mode| estimate(&config, &Workload::uniform(context, 1).with_kv_mode(mode), &machine).kv_cache_bytes;
        let weights = |quant| estimate(&config, &Workload::uniform(context, 1).with_quant(quant), &machine).weights.bytes;
        prop_assert!(kv(KvMode::Turbo4) < kv(KvMode::Int8Turbo4));
        prop_assert!(kv(KvMode::Int8Turbo4) < kv(KvMode::Int8));
        prop_assert!(kv(KvMode::Int8) < kv(KvMode::Fp16Turbo3));
        prop_assert!(kv(KvMode::Fp16Turbo3) < kv(KvMode::Fp16Turbo4));
        prop_assert!(kv(KvMode::Fp16Turbo4) < kv(KvMode::Fp16));
        prop_assert_eq!(kv(KvMode::Int8).map(|n| n * 2), kv(KvMode::Fp16));
        prop_assert!(weights(WeightQuant::Int4) < weights(WeightQuant::Int8));
        prop_assert!(weights(WeightQuant::Int8) < weights(WeightQuant::Fp16));
    }

    #[test]
    fn a_block_is_a_block(
        layers in 1_u64..99, heads in 1_u64..99, dim in 1_u64..999, block in 0_u64..9999, inside in 1_u64..=KV_BLOCK_TOKENS,
    ) {
        let at = |tokens| kv_cache_bytes(layers, heads, dim, 2, tokens, 1);
        prop_assert_eq!(at(block * KV_BLOCK_TOKENS + inside), at((block + 1) * KV_BLOCK_TOKENS));
        prop_assert_eq!(at(inside), layers * heads * dim * 4 * KV_BLOCK_TOKENS);
        prop_assert_eq!(at(inside), 2 * kv_cache_bytes(layers, heads, dim, 1, inside, 1));
    }

    #[test]
    fn the_plain_formula_never_overflows(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) {
        let plain = kv_cache_bytes(a, b, c, d, e, f);
        prop_assert!(plain >= kv_cache_bytes(a, b, c, d, e.saturating_sub(1), f));
    }

    #[test]
    fn a_solution_fits_and_one_more_does_not(
        layers in 1_u64..40, heads in 1_u64..16, mode in any_mode(), gib in 1_u64..64, batch in 1_u64..5,
        backend in prop::sample::select(Backend::ALL.to_vec()),
    ) {
        let spec = ModelSpec::from_config(&config(layers, heads, 0)).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        let machine = Machine::new(backend).with_available(gib << 30, AvailableSource::WhatIf);
        let solver = Solver { spec: &spec, weights: &weights, machine: &machine };
        let template = Workload::uniform(8192, batch).with_kv_mode(mode);
        let fits = |workload: &Workload| estimate_total_memory(&spec, &weights, workload, &machine).unwrap().fits;
        let context = solver.max_context(&template, batch).unwrap().value.unwrap();
        // 0 is also the answer where not even the weights fit.
        prop_assert!(context == 0 || fits(&template.with_shape(context, batch)) == Some(true));
        prop_assert_eq!(fits(&template.with_shape(context + 1, batch)), Some(false));
        let most = solver.max_batch(&template, 8192).unwrap().value.unwrap();
        prop_assert_eq!(fits(&template.with_shape(8192, most + 1)), Some(false));
        prop_assert!(most == 0 || fits(&template.with_shape(8192, most)) == Some(true));
    }

    #[test]
    fn no_configuration_panics(config in any_config(), context: u64, batch: u64, mode in any_mode(), machine in any_machine()) {
        if let Ok(spec) = ModelSpec::from_config(&config) {
            let workload = Workload::uniform(context, batch).with_kv_mode(mode);
            if let Ok(weights) = WeightFootprint::analytical(&spec) {
                let report = Report::new("m", &spec, &weights, &workload, &machine);
                if let Ok(report) = report {
                    prop_assert!(!report.to_text().is_empty());
                    prop_assert!(report.weights_bytes > 0 || report.parameters == Some(0));
                }
            }
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ModelSpec::from_config(&text);
        let _ = parse_bytes("X", &text);
        let _ = KvMode::choose(Some(&text), Some(&text), None);
        let _ = parse_header(Path::new("f"), &bytes, bytes.len() as u64);
    }

    #[test]
    fn no_header_panics(name in "[a-z_.]{0,9}", dtype in "(F32|BF16|U32|F4|X)", dims in prop::collection::vec(any::<u64>(), 0..4), begin: u64, end: u64, len: u64) {
        let json = format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":{dims:?},"data_offsets":[{begin},{end}]}}}}"#);
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        if let Ok(header) = parse_header(Path::new("f"), &bytes, len) {
            prop_assert!(header.total_bytes() <= len);
        }
    }

    #[test]
    fn sizes_read_back(bytes in 1_u64..u64::MAX) {
        prop_assert_eq!(parse_bytes("X", &bytes.to_string()).unwrap(), bytes);
        let read = parse_bytes("X", &format_bytes(bytes)).unwrap_or(u64::MAX) as f64;
        prop_assert!((read / bytes as f64 - 1.0).abs() < 0.06);
    }
}
