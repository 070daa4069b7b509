//! Tests of the summary, the calibration file and the journal.

use super::*;

fn sample(base: u64, expected: u64, measured: u64) -> Sample {
    Sample {
        name: "m".into(),
        mode: "fp16".into(),
        context: 1,
        chunk: 1,
        base,
        expected,
        total: expected + 10,
        measured,
    }
}

#[test]
fn the_band_covers_every_sample() {
    let samples = [sample(100, 100, 98), sample(100, 100, 104), sample(50, 100, 111)];
    let band = Band::of(&samples);
    assert!((band.error - 0.11).abs() < 1e-9 && (band.factor - 1.04).abs() < 1e-9);
    assert!((band.factors.0 - 0.98).abs() < 1e-9 && (band.factors.1 - 2.22).abs() < 1e-9);
    assert_eq!(band.above_total, 1);
}

#[test]
fn an_entry_replaces_the_same_backend_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mlxcel/calibration.json");
    let samples = [sample(100, 100, 104)];
    let cpu = entry(Backend::Cpu, &samples, &Band::of(&samples));
    assert!((cpu.factor - 1.04).abs() < 1e-9 && (cpu.error_band - 0.04).abs() < 2e-3);
    save(&path, cpu.clone()).unwrap();
    save(&path, CalibrationEntry { backend: Backend::Metal, ..cpu.clone() }).unwrap();
    save(&path, CalibrationEntry { samples: 7, ..cpu }).unwrap();
    let read = Calibration::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let seen: Vec<_> = read.entries.iter().map(|e| (e.backend, e.samples)).collect();
    assert_eq!(seen, [(Backend::Metal, 1), (Backend::Cpu, 7)]);
}

#[test]
fn an_interrupted_run_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let load = |context| matrix::Load {
        name: "m".into(),
        folder: PathBuf::new(),
        mode: mlxcel_estimator::KvMode::Fp16,
        context,
        chunk: 1,
    };
    let take = |resume, context, measured| {
        let mut journal = Journal::open(folder.path(), resume).unwrap();
        let fresh = || Ok(Sample { context, ..sample(100, 100, measured) });
        journal.get_or_measure(&load(context), fresh).unwrap().measured
    };
    assert_eq!((take(false, 1, 104), take(true, 1, 5), take(true, 2, 6)), (104, 104, 6));
    let file = folder.path().join("samples.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() - 9]).unwrap();
    assert_eq!(
        (take(true, 2, 7), take(true, 1, 8)),
        (7, 104),
        "the truncated line is measured again"
    );
    assert_eq!(take(false, 1, 9), 9, "a new run starts over");
}

#[test]
fn the_plot_has_a_dot_per_sample() {
    let svg = plot::render(&[sample(1, 100, 90), sample(1, 100, 110)]).unwrap();
    assert_eq!(svg.matches("<circle").count(), 3, "two dots and the key");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}
