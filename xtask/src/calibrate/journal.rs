//! Samples, stored as they are measured: a complete matrix takes most of an hour.

use super::matrix::Load;
use super::sample::Sample;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The samples of a run in a file, one JSON object per line.
pub(super) struct Journal {
    /// Samples of the interrupted run.
    earlier: Vec<Sample>,
    file: File,
}

impl Journal {
    /// Opens the file in `folder`; truncates it unless the run is resumed.
    pub(super) fn open(folder: &Path, resume: bool) -> Result<Self> {
        let path = folder.join("samples.jsonl");
        let text =
            if resume { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        // A truncated last line is dropped, and its load measured again.
        let earlier: Vec<Sample> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        std::fs::create_dir_all(folder)?;
        let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        let mut journal = Self { earlier: Vec::new(), file };
        earlier.iter().try_for_each(|sample| journal.record(sample))?;
        Ok(Self { earlier, ..journal })
    }

    /// The sample of `load` from the interrupted run.
    pub(super) fn recorded(&self, load: &Load) -> Option<&Sample> {
        self.earlier.iter().find(|sample| sample.is_of(load))
    }

    /// The recorded sample of `load`, or a new one, which is recorded.
    pub(super) fn get_or_measure(
        &mut self,
        load: &Load,
        measure: impl FnOnce() -> Result<Sample>,
    ) -> Result<Sample> {
        if let Some(sample) = self.recorded(load) {
            return Ok(sample.clone());
        }
        let sample = measure()?;
        self.record(&sample)?;
        Ok(sample)
    }

    fn record(&mut self, sample: &Sample) -> Result<()> {
        Ok(writeln!(self.file, "{}", serde_json::to_string(sample)?)?)
    }
}
