//! Stored measurements of a model's KV cache modes, for the advisor:
//! `mlxcel/measurements/FINGERPRINT.json` in the user's data folder (`$XDG_DATA_HOME`, or else
//! `~/.local/share`).
//!
//! A new measurement replaces the previous one of the same model, since figures over different texts
//! or window lengths are not comparable.

use std::path::{Path, PathBuf};

use mlxcel_estimator::KvMode;
use serde::{Deserialize, Serialize};

use super::comparison::ModeScore;
use crate::error::FileProblem;
use crate::loading::Fingerprint;
use crate::{Error, Result, disk};

/// Schema of a stored measurement.
pub const SCHEMA: &str = "mlxcel.measurement/1";

/// Quality of the KV cache modes of one model, measured by `mlxcel eval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvMeasurement {
    /// Schema name, [`SCHEMA`].
    pub schema: String,
    /// Fingerprint of the model, in the text form of [`Fingerprint`].
    pub fingerprint: String,
    /// Folder or name of the model, for display.
    pub model: String,
    /// Tokens per window.
    pub window: usize,
    /// Number of positions scored per mode.
    pub scored_tokens: usize,
    /// Figures of each mode, fp16 first.
    pub modes: Vec<ModeRow>,
}

/// Figures of one mode; the stored form of [`ModeScore`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeRow {
    /// Name of the mode.
    pub kv_mode: String,
    /// Nats per token.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Perplexity relative to that of fp16, minus 1; `null` for fp16.
    pub perplexity_change: Option<f64>,
    /// Mean of KL(fp16 ‖ mode) in nats; `null` for fp16.
    pub mean_kl_nats: Option<f64>,
    /// Fraction of positions with the most likely token of fp16; `null` for fp16.
    pub top1_agreement: Option<f64>,
    /// Cache size per token over all layers.
    pub bytes_per_token: u64,
}

impl From<&ModeScore> for ModeRow {
    fn from(score: &ModeScore) -> Self {
        Self {
            kv_mode: score.mode.to_string(),
            loss: score.loss,
            perplexity: score.perplexity,
            perplexity_change: score.perplexity_change,
            mean_kl_nats: score.mean_kl,
            top1_agreement: score.top1_agreement,
            bytes_per_token: score.bytes_per_token,
        }
    }
}

impl KvMeasurement {
    /// Figures of `mode`, if it was measured.
    #[must_use]
    pub fn mode(&self, mode: KvMode) -> Option<&ModeRow> {
        self.modes.iter().find(|row| row.kv_mode == mode.name())
    }

    /// Writes the measurement below `data` and returns the path of its file.
    ///
    /// # Errors
    /// Failure to write the folder or the file.
    pub fn store(&self, data: &Path) -> Result<PathBuf> {
        let path = file(data, &self.fingerprint);
        let folder = path.parent().unwrap_or(data);
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let text = serde_json::to_string_pretty(self).expect("a measurement is plain JSON");
        disk::write_atomically(&path, &(text + "\n")).map_err(|error| Error::io(&path, error))?;
        Ok(path)
    }

    /// Reads the measurement of a model below `data`; `None` if there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or has another schema or model.
    pub fn load(data: &Path, fingerprint: Fingerprint) -> Result<Option<Self>> {
        let path = file(data, &fingerprint.to_string());
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let found: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid_file(&path, FileProblem::Json(error)))?;
        let fingerprint = fingerprint.to_string();
        if found.schema != SCHEMA || found.fingerprint != fingerprint {
            let problem = FileProblem::OtherMeasurement { schema: SCHEMA, fingerprint };
            return Err(Error::invalid_file(&path, problem));
        }
        Ok(Some(found))
    }
}

/// Folder for the user's data: `$XDG_DATA_HOME/mlxcel`, or else `~/.local/share/mlxcel`. `None` if
/// neither `XDG_DATA_HOME` nor `HOME` is set.
///
/// `variable` returns an environment variable; an empty value counts as unset.
pub fn data_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(data) = variable("XDG_DATA_HOME").filter(|value| !value.as_os_str().is_empty()) {
        return Some(data.join("mlxcel"));
    }
    let home = variable("HOME").filter(|value| !value.as_os_str().is_empty())?;
    Some(home.join(".local/share/mlxcel"))
}

fn file(data: &Path, fingerprint: &str) -> PathBuf {
    data.join("measurements").join(format!("{fingerprint}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ModelSource;

    fn example() -> KvMeasurement {
        let score = ModeScore {
            mode: KvMode::Fp16Turbo4,
            loss: Some(3.5),
            perplexity: Some(33.1),
            perplexity_change: Some(0.001),
            mean_kl: Some(2e-3),
            top1_agreement: Some(0.96),
            bytes_per_token: 1234,
        };
        KvMeasurement {
            schema: SCHEMA.into(),
            fingerprint: Fingerprint::of(&ModelSource::BuiltIn).unwrap().to_string(),
            model: "built-in".into(),
            window: 512,
            scored_tokens: 511,
            modes: vec![ModeRow::from(&score)],
        }
    }

    #[test]
    fn a_measurement_round_trips() {
        let data = tempfile::tempdir().unwrap();
        let model = Fingerprint::of(&ModelSource::BuiltIn).unwrap();
        assert_eq!(KvMeasurement::load(data.path(), model).unwrap(), None);
        let path = example().store(data.path()).unwrap();
        assert_eq!(path.parent().unwrap(), data.path().join("measurements"));
        assert_eq!(KvMeasurement::load(data.path(), model).unwrap(), Some(example()));
        assert_eq!(example().mode(KvMode::Fp16Turbo4).unwrap().bytes_per_token, 1234);
        assert_eq!(example().mode(KvMode::Int8), None);
    }

    #[test]
    fn another_schema_and_broken_files_are_errors() {
        let data = tempfile::tempdir().unwrap();
        let model = Fingerprint::of(&ModelSource::BuiltIn).unwrap();
        let path =
            KvMeasurement { schema: "other/2".into(), ..example() }.store(data.path()).unwrap();
        let error = KvMeasurement::load(data.path(), model).unwrap_err().to_string();
        assert!(error.contains("is not a mlxcel.measurement/1"), "{error}");
        std::fs::write(&path, "{").unwrap();
        assert!(KvMeasurement::load(data.path(), model).is_err());
    }

    #[test]
    fn the_data_folder_follows_xdg() {
        let with = |set: &'static [(&str, &str)]| {
            data_folder(move |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("XDG_DATA_HOME", "/d"), ("HOME", "/h")]), Some("/d/mlxcel".into()));
        assert_eq!(
            with(&[("XDG_DATA_HOME", ""), ("HOME", "/h")]),
            Some("/h/.local/share/mlxcel".into())
        );
        assert_eq!(with(&[]), None);
    }
}
