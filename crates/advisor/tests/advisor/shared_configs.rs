//! Advice, or an explicit "cannot classify", for every configuration of
//! `../shared/model-configs`.
//!
//! Ignored by default: the folder stays outside the repository. `MLXCEL_SHARED` names it where
//! it is not beside the checkout.

use std::path::{Path, PathBuf};

use mlxcel_advisor::{ADVISED_MODES, Advice, advise, symmetric_turbo4};
use mlxcel_estimator::{
    Architecture, AvailableSource, Backend, KvMode, Machine, Workload, read_dir,
};

fn folders() -> Vec<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let shared = std::env::var_os("MLXCEL_SHARED").map_or(beside, PathBuf::from);
    let entries = std::fs::read_dir(shared.join("model-configs")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.join("config.json").exists()).collect()
}

fn check(name: &str, advice: &Advice) {
    let class = &advice.class;
    let unknown = class.architecture == Architecture::Unknown;
    assert_eq!(advice.cannot_classify.is_some(), unknown, "{name}");
    assert!(advice.weights.is_some() || advice.to_text().contains("cannot classify"), "{name}");
    for range in &advice.kv_cache {
        let recommendation = &range.recommendation;
        for mode in [Some(recommendation.mode), recommendation.alternative].into_iter().flatten() {
            assert!(ADVISED_MODES.contains(&mode), "{name}: {mode}");
            let listed = symmetric_turbo4(&class.model_type).is_some();
            assert!(mode != KvMode::Turbo4 || listed, "{name}: {mode}");
            let heads = !matches!(class.architecture, Architecture::Mla | Architecture::Ssm);
            assert!(!mode.is_turbo() || heads, "{name}: {mode}");
        }
        assert_eq!(range.fp16.kv_mode, KvMode::Fp16);
        assert!(range.fp16.saved_bytes.is_none_or(|saved| saved == 0), "{name}");
    }
    if let Some(weights) = &advice.weights {
        let sizes: Vec<_> = weights.considered.iter().map(|step| step.weights_bytes).collect();
        assert!(sizes.is_sorted_by(|wider, narrower| wider >= narrower), "{name}: {sizes:?}");
    }
    assert!(advice.to_json().unwrap().contains("mlxcel.advice/1"));
}

#[test]
#[ignore = "needs ../shared"]
fn shared_configs_are_advised_or_declined() {
    let folders = folders();
    assert!(folders.len() >= 102, "{}", folders.len());
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (spec, weights) = read_dir(&folder).unwrap();
        for (backend, gib) in [(Backend::Cpu, 8), (Backend::Metal, 64)] {
            let machine = Machine::new(backend).with_available(gib << 30, AvailableSource::WhatIf);
            for context in [2048, 131_072] {
                let workload = Workload::uniform(context, 1);
                let advice = advise(&spec, &weights, &machine, &workload, None)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
                check(&name, &advice.named(&name));
            }
        }
    }
}
