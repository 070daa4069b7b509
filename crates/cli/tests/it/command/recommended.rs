//! Whatever cache mode the advisor recommends for a family, `generate` runs.

use mlxcel_advisor::{Class, ContextRange};
use mlxcel_estimator::{KvMode, ModelSpec};

use super::support::mlxcel;

/// The modes that the advisor may name for the model in `folder`, each once.
fn recommended(folder: &std::path::Path) -> Vec<KvMode> {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let class = Class::of(&ModelSpec::from_config(&config).unwrap());
    let mut modes = Vec::new();
    for range in ContextRange::ALL {
        let advice = class.recommend(range, None);
        modes.extend([Some(advice.mode), advice.alternative].into_iter().flatten());
    }
    modes.extend(class.offered_modes(None));
    modes.sort_by_key(|mode| mode.name());
    modes.dedup();
    modes
}

#[test]
fn every_recommended_mode_runs_on_every_family() {
    let q4 = mlxcel_testing::golden::VARIANTS.iter().find(|variant| variant.name == "q4").unwrap();
    let bases = |name: &String| !name.contains('-');
    for name in mlxcel_testing::golden::configurations().unwrap().into_iter().filter(bases) {
        let folder = tempfile::tempdir().unwrap();
        mlxcel_testing::golden::checkpoint(&name, q4, folder.path()).unwrap();
        let dir = folder.path().to_str().unwrap();
        let modes = recommended(folder.path());
        assert!(modes.contains(&KvMode::Fp16), "{name}: {modes:?}");
        for mode in modes {
            let mode = mode.name();
            let flags = ["generate", "-m", dir, "-p", "hello", "-n", "3", "--ignore-eos"];
            let output = mlxcel(&[&flags[..], &["--kv-cache-mode", mode]].concat());
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name} {mode}: {log}");
            assert!(log.contains(mode), "{name}: {mode} is not what ran: {log}");
        }
    }
}
