//! The figures that the design promises, from configurations written down by their published
//! fields.

use mlxcel_estimator::{
    Architecture, AvailableSource, Backend, KvMode, Machine, ModelSpec, Phase, Sequence, Solver,
    Term, WeightFootprint, WeightQuant, Workload, estimate_total_memory, verdict,
};

const MIB: u64 = 1 << 20;

const QWEN_2_5_HALF_B: &str = r#"{"model_type": "qwen2", "hidden_size": 896,
    "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": true,
    "max_position_embeddings": 32768, "use_sliding_window": false, "sliding_window": 32768,
    "torch_dtype": "bfloat16"}"#;

/// 64 layers, every fourth one attends: 24 query heads and 4 key-value heads of 256.
const QWEN_3_8_27B: &str = r#"{"model_type": "qwen3_5_text", "hidden_size": 5120,
    "intermediate_size": 17408, "num_hidden_layers": 64, "num_attention_heads": 24,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320,
    "linear_num_value_heads": 48, "max_position_embeddings": 262144}"#;

fn spec(config: &str) -> ModelSpec {
    ModelSpec::from_config(config).unwrap()
}

fn cpu(available: u64) -> Machine {
    Machine::new(Backend::Cpu).with_available(available, AvailableSource::MemoryLimitVariable)
}

#[test]
fn qwen_2_5_half_b() {
    let spec = spec(QWEN_2_5_HALF_B);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    assert_eq!(spec.architecture, Architecture::Standard);
    let at = |mode| {
        let workload = Workload::uniform(8192, 1).with_kv_mode(mode);
        estimate_total_memory(&spec, &weights, &workload, &cpu(4096 * MIB)).unwrap()
    };
    let fp16 = at(KvMode::Fp16);
    assert_eq!(fp16.weights.bytes / MIB, 942);
    assert_eq!(fp16.kv_cache_bytes, Some(96 * MIB));
    assert_eq!((fp16.kv_bytes_per_token, fp16.kv_scale_bytes), (Some(12288), Some(0)));
    let int8 = at(KvMode::Int8);
    assert_eq!((int8.kv_bytes_per_token, int8.kv_cache_bytes), (Some(6144), Some(48 * MIB)));
    assert_eq!(int8.kv_scale_bytes, Some(24 * 2 * 2 * 2 * 8192));
}

#[test]
fn six_hundred_twenty_two_point_four() {
    let spec = spec(QWEN_2_5_HALF_B);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    for backend in Backend::ALL {
        let machine = Machine::new(backend).with_available(512 * MIB, AvailableSource::WhatIf);
        let workload = Workload::uniform(8 + 6, 1);
        let estimate = estimate_total_memory(&spec, &weights, &workload, &machine).unwrap();
        assert_eq!(verdict(&estimate), "DOES NOT FIT: 622.4 MiB over budget", "{backend:?}");
        assert!(estimate.must_refuse());
    }
    let plenty =
        estimate_total_memory(&spec, &weights, &Workload::uniform(14, 1), &cpu(2048 * MIB));
    assert_eq!(verdict(&plenty.unwrap()), "FITS: 1.11 GiB of 2.00 GiB, 913.6 MiB to spare");
}

/// Published: M5 Max, Qwen3.8-27B-4bit, 131072 tokens, peaks in GB at four chunk sizes.
#[test]
fn published_peaks_of_a_wide_head() {
    let spec = spec(QWEN_3_8_27B);
    let weights = WeightFootprint::stated(16_052_440_269);
    let machine = Machine::new(Backend::Metal);
    for (chunk, published_gb) in [(2048, 39.78), (1024, 32.26), (512, 28.54), (256, 26.52)] {
        let workload = Workload::uniform(131_072, 1).with_prefill_chunk(chunk);
        let estimate = estimate_total_memory(&spec, &weights, &workload, &machine).unwrap();
        assert_eq!(estimate.kv_bytes_per_token, Some(65_536));
        assert_eq!(estimate.peak_phase, Phase::Prefill);
        let off = estimate.expected_peak_bytes as f64 / (published_gb * 1e9) - 1.0;
        assert!(off.abs() < 0.03, "chunk {chunk}: {off:+.4}");
        assert!(estimate.total_bytes as f64 > published_gb * 1e9, "chunk {chunk}");
    }
}

/// A thousand new tokens over a prefix of 99 thousand: cache for the first, scores for all.
#[test]
fn a_cached_prefix_costs_scores_but_no_cache() {
    let spec = spec(QWEN_3_8_27B);
    let weights = WeightFootprint::stated(0);
    let machine = Machine::new(Backend::Metal);
    let estimate = |cached, new| {
        let sequence = Sequence {
            cached_tokens: cached,
            new_tokens: new,
            image_tokens: 0,
            cross_tokens: 0,
            count: 1,
        };
        let workload = Workload { sequences: vec![sequence], ..Workload::uniform(0, 0) };
        estimate_total_memory(&spec, &weights, &workload, &machine).unwrap()
    };
    let prefix = estimate(99_072, 1_000);
    assert_eq!(prefix.kv_cache_bytes, Some(1024 * 65_536));
    let fresh = estimate(0, 100_072);
    assert_eq!(prefix.prefill_scratch.score_bytes, fresh.prefill_scratch.score_bytes);
    assert_eq!(prefix.prefill_scratch.score_bytes, 24 * 512 * 100_072 * 22 / 10);
}

#[test]
fn what_would_fit() {
    let spec = spec(QWEN_2_5_HALF_B);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let machine = cpu(2048 * MIB);
    let solver = Solver { spec: &spec, weights: &weights, machine: &machine };
    let workload = Workload::uniform(8192, 1);
    let context = solver.max_context(&workload, 1).unwrap();
    assert_eq!(context.binding_term, Term::KvCache);
    let fp16 = context.value.unwrap();
    let modes = solver.modes(&workload).unwrap();
    assert_eq!(modes.len(), 7);
    let int8 = modes.iter().find(|m| m.mode == KvMode::Int8).unwrap().max_context_tokens.unwrap();
    assert!((1.9..2.0).contains(&(int8 as f64 / fp16 as f64)), "{int8} {fp16}");
    let tight = cpu(600 * MIB);
    let solver = Solver { machine: &tight, ..solver };
    assert_eq!(solver.fitting_quant(&workload).unwrap(), Some(WeightQuant::Int4));
    assert_eq!(solver.max_context(&workload, 1).unwrap().value, Some(0));
}

#[test]
fn nothing_grows_in_a_recurrent_model() {
    let spec = spec(r#"{"model_type": "mamba", "hidden_size": 2560, "num_hidden_layers": 64}"#);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let machine = cpu(64 << 30);
    let solver = Solver { spec: &spec, weights: &weights, machine: &machine };
    let workload = Workload::uniform(8192, 1);
    assert_eq!(solver.max_context(&workload, 1).unwrap().value, None);
    let batch = solver.max_batch(&workload, 8192).unwrap();
    assert_eq!(batch.binding_term, Term::RecurrentState);
    let estimate = estimate_total_memory(&spec, &weights, &workload, &machine).unwrap();
    assert_eq!(estimate.kv_bytes_per_token, Some(0));
    assert_eq!(estimate.recurrent_state_bytes, Some(64 * (3 * 5120 * 2 + 16 * 5120 * 4)));
}

#[test]
fn what_is_unknown_is_said_and_never_refuses() {
    let spec = spec(r#"{"model_type": "martian"}"#);
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let estimate =
        estimate_total_memory(&spec, &weights, &Workload::uniform(8192, 1), &cpu(16 * MIB))
            .unwrap();
    assert_eq!((estimate.kv_cache_bytes, estimate.recurrent_state_bytes), (None, None));
    assert_eq!(estimate.fits, Some(false));
    assert!(!estimate.must_refuse());
    assert!(estimate.total_bytes > 14_000_000_000 + (2 << 30));
    let said = estimate.assumptions.join("; ");
    for part in ["`martian` is not known", "7 B parameters", "a flat 2 GiB"] {
        assert!(said.contains(part), "{said}");
    }
}
