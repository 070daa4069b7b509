//! Refusals and their proposals, on a small model of known size.

use super::*;
use mlxcel_estimator::{
    AvailableSource, DEFAULT_VISION_THRESHOLD, KvMode, WeightQuant, estimate_total_memory,
};

const QWEN: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": true, "max_position_embeddings": 32768}"#;

fn model(config: &str) -> ModelFootprint {
    let spec = ModelSpec::from_config(config).unwrap();
    let weights = WeightFootprint::analytical(&spec).unwrap();
    ModelFootprint { name: "model".to_owned(), spec, weights }
}

fn machine(bytes: u64) -> Machine {
    Machine::new(Backend::Cpu).with_available(bytes, AvailableSource::WhatIf).with_total(bytes)
}

fn load(context: u64, policy: Policy) -> LoadRequest {
    LoadRequest {
        workload: Workload::uniform(context, 1),
        min_context_tokens: 9,
        vision_threshold: DEFAULT_VISION_THRESHOLD,
        policy,
    }
}

fn refusal(context: u64, available: u64) -> Refusal {
    match check(&model(QWEN), &load(context, Policy::Refuse), &machine(available)).unwrap() {
        FitCheck::Refused(refusal) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_reference_refusal() {
    let refusal = refusal(14, 512 << 20);
    assert_eq!(refusal.message, "DOES NOT FIT: 622.4 MiB over budget");
    let [proposal] = &refusal.would_fit[..] else { panic!("{refusal:?}") };
    assert_eq!((proposal.quant, proposal.kv_mode), (Some(WeightQuant::Int4), None));
}

/// Every proposal fits, and one more token than a proposed context does not.
#[test]
fn proposals_fit() {
    let (available, model) = (1300 << 20, model(QWEN));
    let refusal = refusal(32_768, available);
    assert_eq!(refusal.would_fit[0].kv_mode, Some(KvMode::Turbo4));
    assert!(refusal.would_fit.iter().any(|proposal| proposal.context_tokens.is_some()));
    let fits = |workload: &Workload| {
        let load = LoadRequest { workload: workload.clone(), ..load(1, Policy::Refuse) };
        matches!(check(&model, &load, &machine(available)).unwrap(), FitCheck::Fits)
    };
    for proposal in &refusal.would_fit {
        let workload = proposal.apply(&Workload::uniform(32_768, 1));
        assert!(fits(&workload), "{proposal:?}");
        if proposal.context_tokens.is_some() {
            assert!(!fits(&workload.with_shape(workload.context_tokens() + 1, 1)), "{proposal:?}");
        }
    }
}

/// A proposed shorter context still contains the images and the memory of their encoder.
#[test]
fn proposals_keep_the_images() {
    let model = model(
        r#"{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text",
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "vocab_size": 262208}, "vision_config": {"model_type": "siglip_vision_model",
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "image_size": 896, "patch_size": 14}}"#,
    );
    let mut load = load(120_000, Policy::Refuse);
    load.workload.sequences[0].new_tokens -= 512;
    load.workload.sequences[0].image_tokens = 512;
    let available = 12 << 30;
    let outcome = check(&model, &load, &machine(available)).unwrap();
    let FitCheck::Refused(refusal) = outcome else { panic!("{outcome:?}") };
    let shorter = refusal.would_fit.iter().find(|proposal| proposal.context_tokens.is_some());
    let workload = shorter.unwrap().apply(&load.workload);
    assert_eq!(workload.sequences[0].image_tokens, 512);
    let ModelFootprint { spec, weights, .. } = &model;
    let estimate = estimate_total_memory(spec, weights, &workload, &machine(available)).unwrap();
    assert_eq!(estimate.vision_bytes, spec.vision.unwrap().image_bytes(512, machine(0).kernels));
    assert_eq!((estimate.fits, estimate.total_bytes), (Some(true), shorter.unwrap().total_bytes));
}

#[test]
fn nothing_is_proposed_where_nothing_fits() {
    assert_eq!(refusal(14, 1 << 20).would_fit, []);
}

#[test]
fn warn_and_force_do_not_refuse() {
    for policy in [Policy::Warn, Policy::Force] {
        let outcome = check(&model(QWEN), &load(14, policy), &machine(512 << 20)).unwrap();
        assert!(matches!(&outcome, FitCheck::Warning(text) if text.contains("622.4 MiB")));
    }
    let outcome = check(&model(QWEN), &load(14, Policy::Refuse), &machine(4 << 30)).unwrap();
    assert!(matches!(outcome, FitCheck::Fits));
}

/// An assumed size never refuses: the size of an unknown architecture is a guess.
#[test]
fn an_assumed_size_only_warns() {
    let unknown = model(r#"{"model_type": "martian"}"#);
    let outcome = check(&unknown, &load(14, Policy::Refuse), &machine(1 << 30)).unwrap();
    assert!(matches!(outcome, FitCheck::Warning(_)), "{outcome:?}");
}

#[test]
fn the_built_in_model_is_sized_from_its_header() {
    let model = ModelFootprint::read(&ModelSource::BuiltIn).unwrap();
    assert_eq!(model.weights.source, mlxcel_estimator::WeightSource::Headers);
    assert!(model.weights.bytes < builtin::WEIGHTS.len() as u64);
    assert!(model.weights.bytes + 65_536 > builtin::WEIGHTS.len() as u64);
}

#[test]
fn a_comparison_names_the_counter() {
    let usage = MemoryUsage { peak_resident_bytes: Some(3 << 20), ..MemoryUsage::default() };
    let line = compare_peak(4 << 20, Some(1 << 20), &usage);
    assert_eq!(
        line,
        "expected peak 4.0 MiB, measured 2.0 MiB (resident, without the 1.0 MiB before the load): \
         50 % of it"
    );
    let line = compare_peak(4 << 20, None, &MemoryUsage::default());
    assert_eq!(line, "expected peak 4.0 MiB, measured: nothing on this platform");
}
