//! `generate --recommend-quant` and `inspect --recommend`: prints recommendations.

use std::path::PathBuf;

use anyhow::Result;
use mlxcel_advisor::{Measurements, advise};
use mlxcel_estimator::{Machine, Workload};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::eval::measurement::{KvMeasurement, data_folder};
use mlxcel_runtime::loading::Fingerprint;
use mlxcel_runtime::preflight::ModelFootprint;

use crate::terminal::{Stdout, note};

/// Prints the advisor's recommendation for `model`. Measurements are looked up by the fingerprint of
/// `files`; there are none for a lone `config.json`.
pub(crate) fn print(
    model: &ModelFootprint,
    files: Option<&ModelSource>,
    workload: &Workload,
    machine: &Machine,
    json: bool,
) -> Result<()> {
    let measured = files.map(measurements).transpose()?.flatten();
    let advice = advise(&model.spec, &model.weights, machine, workload, measured.as_ref())?;
    let advice = advice.named(&model.name);
    let text = if json { advice.to_json()? + "\n" } else { advice.to_text() };
    let mut out = Stdout::new();
    let _ = out.write(&text);
    out.check()
}

/// Loads the measurements that `mlxcel eval` stored for this model. Prints a note for an unreadable file.
fn measurements(source: &ModelSource) -> Result<Option<Measurements>> {
    let Some(data) = data_folder(|name| std::env::var_os(name).map(PathBuf::from)) else {
        return Ok(None);
    };
    // A configuration without weights has no fingerprint and no measurements.
    let Ok(fingerprint) = Fingerprint::of(source) else { return Ok(None) };
    match KvMeasurement::load(&data, fingerprint) {
        Ok(Some(found)) => Ok(Some(Measurements::from_json(&serde_json::to_string(&found)?)?)),
        Ok(None) => Ok(None),
        Err(error) => {
            note(&format!("ignoring the stored measurements: {error}"));
            Ok(None)
        }
    }
}
