//! The samples that were taken, kept as they come: a whole matrix takes most of an hour.

use super::matrix::Load;
use super::sample::Sample;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The samples of a run, one JSON object per line of a file.
pub(super) struct Taken {
    before: Vec<Sample>,
    file: File,
}

impl Taken {
    /// The file below `folder`, emptied unless the run goes on.
    pub(super) fn open(folder: &Path, resume: bool) -> Result<Self> {
        let path = folder.join("samples.jsonl");
        let text =
            if resume { std::fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        // A line that the end of a run cut short is measured again.
        let before: Vec<Sample> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        std::fs::create_dir_all(folder)?;
        let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        let mut taken = Self { before: Vec::new(), file };
        before.iter().try_for_each(|sample| taken.keep(sample))?;
        Ok(Self { before, ..taken })
    }

    /// The sample of `load` from before.
    pub(super) fn kept(&self, load: &Load) -> Option<&Sample> {
        self.before.iter().find(|sample| sample.is_of(load))
    }

    /// The sample of `load` from before, or a new one.
    pub(super) fn take(
        &mut self,
        load: &Load,
        measure: impl FnOnce() -> Result<Sample>,
    ) -> Result<Sample> {
        if let Some(sample) = self.kept(load) {
            return Ok(sample.clone());
        }
        let sample = measure()?;
        self.keep(&sample)?;
        Ok(sample)
    }

    fn keep(&mut self, sample: &Sample) -> Result<()> {
        Ok(writeln!(self.file, "{}", serde_json::to_string(sample)?)?)
    }
}
