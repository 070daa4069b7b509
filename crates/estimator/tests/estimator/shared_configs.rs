//! Every configuration of `../shared/model-configs` against its row of `EXPECTED.csv`.
//!
//! Ignored by default: the folder stays outside the repository. `MLXCEL_SHARED` names it where
//! it is not beside the checkout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlxcel_estimator::{Architecture, KvMode, LayerSpec, ModelSpec};

type Row = BTreeMap<String, String>;

fn folder() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    std::env::var_os("MLXCEL_SHARED").map_or(beside, PathBuf::from).join("model-configs")
}

/// Splits one line at the commas that are in no quotes.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().unwrap().push(c),
        }
    }
    cells
}

fn rows() -> Vec<(Row, ModelSpec)> {
    let folder = folder();
    let text = std::fs::read_to_string(folder.join("EXPECTED.csv")).unwrap();
    let mut lines = text.lines();
    let names = cells(lines.next().unwrap());
    lines
        .map(|line| {
            let row: Row = names.iter().cloned().zip(cells(line)).collect();
            let path = folder.join(row["model"].replace('/', "__")).join("config.json");
            let spec = ModelSpec::from_config(&std::fs::read_to_string(&path).unwrap());
            let spec = spec.unwrap_or_else(|e| panic!("{}: {e}", row["model"]));
            (row, spec)
        })
        .collect()
}

fn per_token(spec: &ModelSpec) -> u64 {
    let states = spec.layers.iter().flatten().flat_map(LayerSpec::states);
    states.map(|state| state.bytes_per_token(KvMode::Fp16).unwrap()).sum()
}

/// The architecture's unique parameters, by the published count and the note about it.
fn unique(row: &Row) -> Option<i128> {
    let published: i128 = row["published_parameters"].parse().ok()?;
    let note = &row["parameter_note"];
    let delta = note.split(':').next().and_then(|n| n.parse::<i128>().ok()).unwrap_or(0);
    Some(published - delta)
}

#[test]
#[ignore = "needs ../shared"]
fn shared_architecture_and_vision_of_every_row() {
    let rows = rows();
    assert_eq!(rows.len(), 102);
    let wrong: Vec<_> = rows
        .iter()
        .filter(|(row, spec)| {
            let vision = if spec.vision.is_some() { "yes" } else { "no" };
            row["architecture"] != spec.architecture.name() || row["vision"] != vision
        })
        .map(|(row, spec)| format!("{}: {:?}", row["model"], spec.architecture))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every row that states a figure. DeepSeek V4's rows state none: what it keeps per token is a
/// share of a compressed memory, not a whole vector.
#[test]
#[ignore = "needs ../shared"]
fn shared_kv_bytes_per_token_of_every_row() {
    let mut compared = 0;
    let mut wrong = Vec::new();
    for (row, spec) in rows() {
        let Ok(expected) = row["kv_bytes_per_token_fp16_global_layers"].parse::<u64>() else {
            assert!(row["model"].contains("DeepSeek-V4"), "{}", row["model"]);
            continue;
        };
        compared += 1;
        if per_token(&spec) != expected {
            wrong.push(format!("{}: {} instead of {expected}", row["model"], per_token(&spec)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(compared, 98);
}

/// Rows whose published count differs from the architecture's, with the cause. Everything else
/// is exact.
const INEXACT: [(&str, &str); 3] = [
    ("XiaomiMiMo/MiMo-7B-Base", "the published count has 210790400 of an extra prediction layer"),
    (
        "MiniMaxAI/MiniMax-M3",
        "865567232 of an image encoder that the config lacks, 57 × 128 of router biases",
    ),
    (
        "stepfun-ai/Step-3.7-Flash-FP8",
        "the config's vocabulary is 81 rows larger than the class default",
    ),
];

#[test]
#[ignore = "needs ../shared"]
fn shared_parameters_of_every_row_with_a_published_count() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (row, spec) in rows() {
        let Some(expected) = unique(&row) else { continue };
        compared += 1;
        let counted = i128::from(spec.parameters().unwrap().unwrap());
        let off = counted - expected;
        if off != 0 && INEXACT.iter().all(|(model, _)| *model != row["model"]) {
            let percent = off as f64 / expected as f64 * 100.0;
            wrong.push(format!("{}: {counted} is off by {off} ({percent:.3} %)", row["model"]));
        }
    }
    assert!(wrong.is_empty(), "{compared} compared: {wrong:#?}");
}

#[test]
#[ignore = "needs ../shared"]
fn shared_nothing_is_unknown() {
    for (row, spec) in rows() {
        assert_ne!(spec.architecture, Architecture::Unknown, "{}", row["model"]);
        assert!(spec.layers.is_some() && spec.tensors.is_some(), "{}", row["model"]);
    }
}
