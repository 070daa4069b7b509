//! Measured modes of one model, kept for the advisor: `mlxcel/measurements/FINGERPRINT.json` in the
//! user's data folder (`$XDG_DATA_HOME`, else `~/.local/share`).
//!
//! A measurement is stored whole: a new one of the same model replaces the old, since figures over
//! different texts or windows do not compare.

use std::path::{Path, PathBuf};

use mlxcel_estimator::KvMode;
use serde::{Deserialize, Serialize};

use super::compare::ModeScore;
use crate::loading::Fingerprint;
use crate::{Error, Result};

/// The schema of a stored measurement.
pub const SCHEMA: &str = "mlxcel.measurement/1";

/// What `mlxcel eval` found out about the cache modes of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// [`SCHEMA`].
    pub schema: String,
    /// The model, as [`Fingerprint`] writes itself.
    pub fingerprint: String,
    /// The folder or name under which it was loaded, for people.
    pub model: String,
    /// Tokens per window.
    pub window: usize,
    /// Positions scored per mode.
    pub scored_tokens: usize,
    /// One row per mode, fp16 first.
    pub modes: Vec<ModeRow>,
}

/// One mode's figures; the fields of [`ModeScore`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModeRow {
    /// The mode's name.
    pub kv_mode: String,
    /// Nats per token.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Relative to fp16, less 1; `null` for fp16.
    pub perplexity_change: Option<f64>,
    /// Mean KL(fp16 ‖ mode), nats; `null` for fp16.
    pub mean_kl_nats: Option<f64>,
    /// Share of positions with fp16's most likely token; `null` for fp16.
    pub top1_agreement: Option<f64>,
    /// Bytes per token in all layers.
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

impl Measurement {
    /// The row of `mode`, if it was measured.
    #[must_use]
    pub fn mode(&self, mode: KvMode) -> Option<&ModeRow> {
        self.modes.iter().find(|row| row.kv_mode == mode.name())
    }

    /// Writes the measurement under `data` and returns the file.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub fn store(&self, data: &Path) -> Result<PathBuf> {
        let path = file(data, &self.fingerprint);
        let failed = |source| Error::Io { path: path.clone(), source };
        let folder = path.parent().unwrap_or(data);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(e.into()))?;
        crate::disk::replace(&path, &(text + "\n")).map_err(failed)?;
        Ok(path)
    }

    /// The measurement of a model under `data`; `None` when there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or is no measurement of this schema and model.
    pub fn load(data: &Path, fingerprint: Fingerprint) -> Result<Option<Self>> {
        let path = file(data, &fingerprint.to_string());
        let failed = |source| Error::Io { path: path.clone(), source };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let found: Self = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
        if found.schema != SCHEMA || found.fingerprint != fingerprint.to_string() {
            let what = format!("not a {SCHEMA} of model {fingerprint}: delete the file");
            return Err(failed(std::io::Error::other(what)));
        }
        Ok(Some(found))
    }
}

/// mlxcel's folder for the user's data: `$XDG_DATA_HOME/mlxcel`, else `~/.local/share/mlxcel`.
///
/// `variable` looks a variable up; an empty one counts as unset. `None` without either.
pub fn data_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.as_os_str().is_empty());
    let data = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("mlxcel"))
}

fn file(data: &Path, fingerprint: &str) -> PathBuf {
    data.join("measurements").join(format!("{fingerprint}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ModelSource;

    fn example() -> Measurement {
        let score = ModeScore {
            mode: KvMode::Fp16Turbo4,
            loss: Some(3.5),
            perplexity: Some(33.1),
            perplexity_change: Some(0.001),
            mean_kl: Some(2e-3),
            top1_agreement: Some(0.96),
            bytes_per_token: 1234,
        };
        Measurement {
            schema: SCHEMA.into(),
            fingerprint: Fingerprint::of(&ModelSource::BuiltIn).unwrap().to_string(),
            model: "built-in".into(),
            window: 512,
            scored_tokens: 511,
            modes: vec![ModeRow::from(&score)],
        }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let data = tempfile::tempdir().unwrap();
        let model = Fingerprint::of(&ModelSource::BuiltIn).unwrap();
        assert_eq!(Measurement::load(data.path(), model).unwrap(), None);
        let path = example().store(data.path()).unwrap();
        assert_eq!(path.parent().unwrap(), data.path().join("measurements"));
        assert_eq!(Measurement::load(data.path(), model).unwrap(), Some(example()));
        assert_eq!(example().mode(KvMode::Fp16Turbo4).unwrap().bytes_per_token, 1234);
        assert_eq!(example().mode(KvMode::Int8), None);
    }

    #[test]
    fn another_schema_and_broken_files_are_errors() {
        let data = tempfile::tempdir().unwrap();
        let model = Fingerprint::of(&ModelSource::BuiltIn).unwrap();
        let path =
            Measurement { schema: "other/2".into(), ..example() }.store(data.path()).unwrap();
        let error = Measurement::load(data.path(), model).unwrap_err().to_string();
        assert!(error.contains("not a mlxcel.measurement/1"), "{error}");
        std::fs::write(&path, "{").unwrap();
        assert!(Measurement::load(data.path(), model).is_err());
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
