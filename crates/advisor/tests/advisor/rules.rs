//! Every combination that the rules are keyed by, measured and not.

use mlxcel_advisor::{
    ADVISED_MODES, ContextRange, Measurements, ModeMeasurement, Recommendation,
    RecommendationSource, recommend_kv_cache_mode, recommend_measured, symmetric_turbo4,
};
use mlxcel_estimator::{Architecture, KvMode};

const ARCHITECTURES: [Architecture; 6] = [
    Architecture::Standard,
    Architecture::SlidingWindow,
    Architecture::Mla,
    Architecture::Hybrid,
    Architecture::Ssm,
    Architecture::Unknown,
];

/// Allowlisted types first; look-alikes of them among the others.
const FAMILIES: [&str; 18] = [
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "qwen3",
    "qwen3_moe",
    "qwen2",
    "llama",
    "mistral",
    "gemma3_text",
    "gemma4",
    "phi",
    "mpt",
    "olmo",
    "deepseek_v3",
    "mamba2",
    "",
];

const HEADS: [u64; 15] = [0, 1, 4, 8, 32, 64, 72, 80, 96, 112, 128, 192, 256, 512, u64::MAX];

/// Calls `check` with every combination.
fn every(check: &dyn Fn(Architecture, &str, u64, ContextRange)) {
    for architecture in ARCHITECTURES {
        for family in FAMILIES {
            for head in HEADS {
                for range in ContextRange::ALL {
                    check(architecture, family, head, range);
                }
            }
        }
    }
}

fn modes(recommendation: &Recommendation) -> impl Iterator<Item = KvMode> {
    [Some(recommendation.mode), recommendation.alternative].into_iter().flatten()
}

/// What holds whatever was measured.
fn invariants(architecture: Architecture, head: u64, got: &Recommendation) {
    let keyed = format!("{architecture:?} {head}: {got:?}");
    let plain = [KvMode::Fp16, KvMode::Int8];
    for mode in modes(got) {
        assert!(ADVISED_MODES.contains(&mode) && mode != KvMode::Turbo4Delegated, "{keyed}");
        let heads = [8, 32, 64, 128, 256, 512].contains(&head);
        let cached = !matches!(architecture, Architecture::Mla | Architecture::Ssm);
        assert!(plain.contains(&mode) || (heads && cached), "{keyed}");
        if matches!(architecture, Architecture::Ssm | Architecture::Unknown) {
            assert_eq!(mode, KvMode::Fp16, "{keyed}");
        }
    }
    assert_ne!(Some(got.mode), got.alternative, "{keyed}");
    assert!(!got.reason.is_empty(), "{keyed}");
    let classified = architecture != Architecture::Unknown;
    assert_eq!(got.source == RecommendationSource::CannotClassify, !classified, "{keyed}");
}

/// The table of the design, written a second time.
fn expected(
    architecture: Architecture,
    family: &str,
    head: u64,
    range: ContextRange,
) -> (KvMode, Option<KvMode>) {
    use ContextRange::{Long, Medium, Short};
    let listed = family.starts_with("qwen3_5") || family == "qwen3_next";
    let turbo = [8, 32, 64, 128, 256, 512].contains(&head);
    match (architecture, range) {
        (Architecture::Ssm | Architecture::Unknown, _) | (_, Short) => (KvMode::Fp16, None),
        (Architecture::Mla, _) => (KvMode::Int8, None),
        _ if !turbo => (KvMode::Int8, None),
        (_, Medium) => (KvMode::Fp16Turbo4, Some(KvMode::Int8)),
        (_, Long) if listed => (KvMode::Turbo4, Some(KvMode::Fp16Turbo4)),
        (_, Long) => (KvMode::Fp16Turbo4, Some(KvMode::Fp16Turbo3)),
    }
}

#[test]
fn every_combination_follows_the_table() {
    every(&|architecture, family, head, range| {
        let got = recommend_kv_cache_mode(architecture, family, head, range);
        invariants(architecture, head, &got);
        let keyed = format!("{architecture:?} {family} {head} {range:?}: {got:?}");
        assert_eq!(
            (got.mode, got.alternative),
            expected(architecture, family, head, range),
            "{keyed}"
        );
        let upstream = got.source == RecommendationSource::ReportedUpstream;
        assert_eq!(upstream, modes(&got).any(|mode| mode == KvMode::Turbo4), "{keyed}");
        assert_eq!(
            upstream,
            got.reason.contains("reported upstream, not measured here"),
            "{keyed}"
        );
    });
}

#[test]
fn only_three_types_are_allowlisted() {
    let listed: Vec<_> = FAMILIES.into_iter().filter(|f| symmetric_turbo4(f).is_some()).collect();
    assert_eq!(listed, FAMILIES[..5]);
}

/// Figures that every threshold accepts.
fn good(mode: &str) -> ModeMeasurement {
    ModeMeasurement {
        kv_mode: mode.to_owned(),
        perplexity_change: Some(0.001),
        mean_kl_nats: Some(0.002),
        top1_agreement: Some(0.97),
    }
}

fn bad(mode: &str) -> ModeMeasurement {
    ModeMeasurement { mean_kl_nats: Some(0.2), ..good(mode) }
}

fn measured(modes: Vec<ModeMeasurement>) -> Measurements {
    Measurements { window: 512, scored_tokens: 20_000, modes, ..Measurements::default() }
}

/// Every mode, the ones that are never advised included, measured as perfect or as hopeless.
#[test]
fn measurements_never_leave_the_five_modes() {
    for row in [good, bad] {
        let all = measured(KvMode::ALL.map(|mode| row(mode.name())).into());
        every(&|architecture, family, head, range| {
            let got = recommend_measured(architecture, family, head, range, &all);
            invariants(architecture, head, &got);
        });
    }
}

/// Standard architecture, heads of 128, not allowlisted.
fn check(range: ContextRange, rows: Vec<ModeMeasurement>, expected: &str) {
    let got = recommend_measured(Architecture::Standard, "llama", 128, range, &measured(rows));
    let other = got.alternative.map_or("-", KvMode::name);
    let text = format!("{} ({other}) {:?}: {}", got.mode, got.source, got.reason);
    assert!(text.starts_with(expected), "{text}\ninstead of {expected}");
}

#[test]
fn measured_beats_tabled() {
    use ContextRange::{Long, Medium, Short};
    check(Long, vec![], "fp16+turbo4 (fp16+turbo3) Table");
    check(Long, vec![good("turbo4")], "turbo4 (fp16+turbo4) Measured: the smallest cache");
    check(Long, vec![good("turbo4"), good("int8")], "turbo4 (int8) Measured");
    check(Medium, vec![good("int8"), bad("turbo4")], "int8 (fp16+turbo4) Measured");
    check(Long, vec![bad("fp16+turbo4")], "fp16+turbo3 (-) Measured: fp16+turbo4 measured too far");
    check(Long, vec![bad("fp16+turbo4"), bad("fp16+turbo3")], "fp16 (-) Measured: fp16+turbo4");
    check(Long, vec![bad("fp16+turbo3")], "fp16+turbo4 (-) Table");
    check(Short, vec![good("turbo4")], "fp16 (-) Table");
}

#[test]
fn the_figures_are_said() {
    let rows = measured(vec![good("turbo4")]);
    let long = |window| {
        let rows = Measurements { window, ..rows.clone() };
        recommend_measured(Architecture::Standard, "llama", 128, ContextRange::Long, &rows).reason
    };
    let figures = "perplexity +0.10 %, mean KL 2.00e-3 nats, top-1 97.00 % against fp16, \
        over 20000 tokens in windows of 512, shorter than this range";
    assert!(long(512).ends_with(figures), "{}", long(512));
    assert!(long(65_536).ends_with("in windows of 65536"), "{}", long(65_536));
}

#[test]
fn thresholds_and_gaps() {
    let turbo4 = |change: &dyn Fn(&mut ModeMeasurement)| {
        let mut row = good("turbo4");
        change(&mut row);
        measured(vec![row]).accept(KvMode::Turbo4)
    };
    assert!(turbo4(&|row| row.mean_kl_nats = Some(0.01)));
    assert!(!turbo4(&|row| row.mean_kl_nats = Some(0.0101)));
    assert!(!turbo4(&|row| row.mean_kl_nats = Some(f64::NAN)));
    assert!(!turbo4(&|row| row.mean_kl_nats = None));
    assert!(turbo4(&|row| row.top1_agreement = Some(0.95)));
    assert!(!turbo4(&|row| row.top1_agreement = Some(0.949)));
    assert!(!turbo4(&|row| row.perplexity_change = Some(0.02)));
    assert!(turbo4(&|row| row.perplexity_change = Some(-0.02)));
    let few = Measurements { scored_tokens: 999, ..measured(vec![good("turbo4")]) };
    assert!(!few.accept(KvMode::Turbo4) && !few.reject(KvMode::Turbo4));
}

/// A file as `mlxcel eval` stores it, with a field of a future version.
#[test]
fn stored_measurements_are_read() -> Result<(), mlxcel_advisor::AdvisorError> {
    let text = r#"{"schema": "mlxcel.measurement/1", "fingerprint": "ab12", "model": "m",
        "window": 512, "scored_tokens": 5110, "new": 1, "modes": [
        {"kv_mode": "fp16", "loss": 3.5, "perplexity": 33.1, "perplexity_change": null,
         "mean_kl_nats": null, "top1_agreement": null, "bytes_per_token": 2048},
        {"kv_mode": "int8", "loss": 3.5, "perplexity": 33.1, "perplexity_change": 0.0001,
         "mean_kl_nats": 1e-5, "top1_agreement": 0.999, "bytes_per_token": 1040}]}"#;
    let found = Measurements::from_json(text)?;
    assert_eq!((found.fingerprint.as_str(), found.window), ("ab12", 512));
    assert!(found.accept(KvMode::Int8));
    assert!(!found.accept(KvMode::Fp16) && !found.reject(KvMode::Fp16));
    let error = Measurements::from_json("[1").map(|_| ()).map_err(|error| error.to_string());
    assert!(error.is_err_and(|text| text.contains("no measurements of `mlxcel eval`")));
    Ok(())
}
