//! Headroom for the runtime, and the source of its factor.
//!
//! `runtime_headroom = (factor − 1) × (weights + kv)`. 1.20 is the middle of the 1.10 to 1.25
//! measured for peak ÷ (weights + KV) on Apple silicon; `MLXCEL_HEADROOM_FACTOR` overrides it,
//! and a calibration file replaces it for its backend. A factor that is not above 1, or not a
//! number at all, gives no headroom. This crate reads neither the environment nor the file
//! itself: callers pass the text.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{EstimatorError, shortened};
use crate::machine::Backend;

/// Environment variable that overrides the factor.
pub const HEADROOM_VARIABLE: &str = "MLXCEL_HEADROOM_FACTOR";

/// Factor without a calibration.
pub const DEFAULT_HEADROOM_FACTOR: f64 = 1.20;

/// Error band of the expected peak without a calibration.
pub const DEFAULT_ERROR_BAND: f64 = 0.05;

/// Schema of calibration files.
pub const CALIBRATION_SCHEMA: &str = "mlxcel.calibration/1";

/// Path of the user's calibration file: `mlxcel/calibration.json` in the data folder. `variable` looks
/// environment variables up; nothing is read here.
#[must_use]
pub fn calibration_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let below =
        if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" };
    let data = non_empty(variable("XDG_DATA_HOME"))
        .or_else(|| Some(non_empty(variable("HOME"))?.join(below)));
    data.map(|folder| folder.join("mlxcel/calibration.json"))
}

/// A folder from an environment variable; an empty value counts as unset.
fn non_empty(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Source of the factor. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HeadroomSource {
    /// The default.
    Default,
    /// `MLXCEL_HEADROOM_FACTOR`.
    Environment,
    /// A calibration file.
    Calibration,
}

/// Share of memory that is kept free for the runtime.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headroom {
    /// `peak ÷ (weights + kv)`.
    pub factor: f64,
    /// Largest expected deviation of a measured peak, as a fraction of the expected one.
    pub error_band: f64,
    /// Source of the factor.
    pub source: HeadroomSource,
}

impl Default for Headroom {
    fn default() -> Self {
        Self {
            factor: DEFAULT_HEADROOM_FACTOR,
            error_band: DEFAULT_ERROR_BAND,
            source: HeadroomSource::Default,
        }
    }
}

impl Headroom {
    /// Chooses between the variable's text, a calibration and the default, in this order. The
    /// error band is the calibration's where there is one.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`] where the variable holds no number.
    pub fn choose(
        variable: Option<&str>,
        calibration: Option<&Calibration>,
        backend: Backend,
    ) -> Result<Self, EstimatorError> {
        let measured = calibration.and_then(|c| c.latest(backend));
        let base = measured.map_or_else(Self::default, |entry| Self {
            factor: entry.factor,
            error_band: entry.error_band,
            source: HeadroomSource::Calibration,
        });
        let Some(text) = variable else { return Ok(base) };
        let factor = text.trim().parse().map_err(|_| EstimatorError::BadValue {
            name: HEADROOM_VARIABLE.to_owned(),
            value: shortened(text),
            reason: "a number such as 1.2 is needed".to_owned(),
        })?;
        Ok(Self { factor, source: HeadroomSource::Environment, ..base })
    }

    /// Bytes to keep free over `base` bytes of weights and cache.
    #[must_use]
    pub fn bytes(&self, base: u64) -> u64 {
        fraction_of(base, self.factor - 1.0)
    }

    /// `peak` plus the error band.
    #[must_use]
    pub fn banded(&self, peak: u64) -> u64 {
        peak.saturating_add(fraction_of(peak, self.error_band))
    }

    /// Warning for a factor that gives no headroom.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        (parts_per_million(self.factor - 1.0) == 0).then(|| {
            format!("a headroom factor of {} keeps nothing free for the runtime", self.factor)
        })
    }
}

/// Upper bound of a fraction, so that it fits an integer; nothing sensible is above 1000.
const LARGEST_FRACTION: f64 = 1000.0;
const MILLION: f64 = 1e6;

/// `base × fraction` to a millionth, saturating; 0 for a fraction that is not a positive number.
fn fraction_of(base: u64, fraction: f64) -> u64 {
    let product = u128::from(base).saturating_mul(u128::from(parts_per_million(fraction)));
    let bytes = product.checked_div(1_000_000).unwrap_or(0);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range is checked: 0 to 10⁹"
)]
fn parts_per_million(fraction: f64) -> u64 {
    if !fraction.is_finite() || fraction <= 0.0 {
        return 0;
    }
    (fraction.min(LARGEST_FRACTION) * MILLION).round() as u64
}

/// Factors measured by `cargo xtask calibrate-headroom`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// [`CALIBRATION_SCHEMA`].
    pub schema: String,
    /// One entry per backend and MLX version.
    pub entries: Vec<CalibrationEntry>,
}

/// One measured factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationEntry {
    /// Backend that was measured.
    pub backend: Backend,
    /// MLX version, as `0.32.4`.
    pub mlx_version: String,
    /// Date, as `2026-11-20`.
    pub date: String,
    /// Number of loads that were measured.
    pub samples: u64,
    /// The factor that covers them.
    pub factor: f64,
    /// The largest relative difference between measured and expected peak.
    pub error_band: f64,
}

impl CalibrationEntry {
    fn is_plausible(&self) -> bool {
        (1.0..10.0).contains(&self.factor) && (0.0..1.0).contains(&self.error_band)
    }
}

impl Calibration {
    /// Reads a calibration file's text.
    ///
    /// # Errors
    /// [`EstimatorError::Json`] for text that is none, another schema, or a factor or band that
    /// cannot have been measured.
    pub fn parse(text: &str) -> Result<Self, EstimatorError> {
        Self::read(text).map_err(|reason| EstimatorError::Json {
            document: "the calibration file".to_owned(),
            reason,
        })
    }

    fn read(text: &str) -> Result<Self, String> {
        let calibration: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if calibration.schema != CALIBRATION_SCHEMA {
            let schema = shortened(&calibration.schema);
            return Err(format!("its schema is `{schema}`, not `{CALIBRATION_SCHEMA}`"));
        }
        match calibration.entries.iter().find(|entry| !entry.is_plausible()) {
            None => Ok(calibration),
            Some(entry) => Err(format!(
                "factor {} with band {} cannot have been measured",
                entry.factor, entry.error_band
            )),
        }
    }

    /// The entry of `backend` with the latest date.
    #[must_use]
    pub fn latest(&self, backend: Backend) -> Option<&CalibrationEntry> {
        self.entries.iter().filter(|e| e.backend == backend).max_by(|a, b| a.date.cmp(&b.date))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(variable: &str) -> u64 {
        Headroom::choose(Some(variable), None, Backend::Cpu).unwrap().bytes(1000)
    }

    #[test]
    fn factors_that_mean_nothing_keep_nothing() {
        assert_eq!(Headroom::default().bytes(1000), 200);
        assert_eq!((bytes("1.5"), bytes("1"), bytes("0.5"), bytes("-3")), (500, 0, 0, 0));
        assert_eq!((bytes("NaN"), bytes("inf"), bytes("-inf")), (0, 0, 0));
        assert_eq!(bytes("1e300"), 1_000_000);
        assert_eq!(Headroom::default().bytes(u64::MAX), u64::MAX / 5);
        let nan = Headroom::choose(Some("NaN"), None, Backend::Cpu).unwrap();
        assert!(nan.warning().unwrap().contains("NaN keeps nothing free"));
        assert_eq!(Headroom::default().warning(), None);
        let error = Headroom::choose(Some("a lot"), None, Backend::Cpu).unwrap_err();
        assert_eq!(
            error.to_string(),
            "MLXCEL_HEADROOM_FACTOR=a lot: a number such as 1.2 is needed"
        );
    }

    #[test]
    fn a_calibration_serves_its_backend() {
        let text = r#"{"schema": "mlxcel.calibration/1", "entries": [
            {"backend": "cpu", "mlx_version": "0.32.4", "date": "2026-11-20", "samples": 90, "factor": 1.04, "error_band": 0.02},
            {"backend": "cpu", "mlx_version": "0.32.2", "date": "2026-09-01", "samples": 9, "factor": 1.5, "error_band": 0.3}]}"#;
        let calibration = Calibration::parse(text).unwrap();
        let cpu = Headroom::choose(None, Some(&calibration), Backend::Cpu).unwrap();
        assert_eq!(
            (cpu.bytes(1000), cpu.banded(1000), cpu.source),
            (40, 1020, HeadroomSource::Calibration)
        );
        let metal = Headroom::choose(None, Some(&calibration), Backend::Metal).unwrap();
        assert_eq!(metal, Headroom::default());
        let both = Headroom::choose(Some("1.1"), Some(&calibration), Backend::Cpu).unwrap();
        assert_eq!((both.bytes(1000), both.banded(1000)), (100, 1020));
    }

    #[test]
    fn the_calibration_lies_in_the_data_folder() {
        let path = |data: &str, home: &str| {
            let (data, home) = (data.to_owned(), home.to_owned());
            calibration_path(move |name| match name {
                "XDG_DATA_HOME" => Some(OsString::from(&data)),
                "HOME" => Some(OsString::from(&home)),
                _ => None,
            })
        };
        assert_eq!(path("/data", "/me"), Some("/data/mlxcel/calibration.json".into()));
        assert!(path("", "/me").unwrap().ends_with("mlxcel/calibration.json"));
        assert!(path("", "/me").unwrap().starts_with("/me"));
        assert_eq!(path("", ""), None);
    }

    #[test]
    fn a_calibration_that_cannot_be() {
        let check = |text: &str, expected: &str| {
            let error = Calibration::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("{}", "missing field `schema`");
        check(r#"{"schema": "other/1", "entries": []}"#, "its schema is `other/1`");
        check(
            r#"{"schema": "mlxcel.calibration/1", "entries": [{"backend": "cpu", "mlx_version": "1",
                "date": "", "samples": 1, "factor": 0.2, "error_band": 0}]}"#,
            "cannot have been measured",
        );
    }
}
