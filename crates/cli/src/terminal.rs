//! What a person sees: errors, notes, progress bars, streamed text.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mlxcel_runtime::engine::Progress;

/// Prints one error as one sentence on stderr.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("error: {text}");
}

/// Prints lines on stdout; a full disk or a closed pipe is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = Stdout::new();
    let _ = out.write(text);
    out.check()
}

/// Prints a remark on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("note: {text}");
}

/// Exit code after Ctrl-C, as a shell reports it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Set by Ctrl-C; a second Ctrl-C ends the process.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// There is one for the whole process, however often it is asked for.
static INTERRUPT: OnceLock<Interrupt> = OnceLock::new();

impl Interrupt {
    /// Catches Ctrl-C from here on.
    pub(crate) fn install() -> Result<Self> {
        if let Some(installed) = INTERRUPT.get() {
            return Ok(installed.clone());
        }
        let new = Self(Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&new.0);
        ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED.into());
            }
        })
        .context("cannot catch Ctrl-C")?;
        Ok(INTERRUPT.get_or_init(|| new).clone())
    }

    /// Forgets that Ctrl-C was pressed.
    pub(crate) fn reset(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// `Break` once Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Progress bars on stderr, drawn only when it is a terminal.
pub(crate) struct Bars {
    bar: Option<ProgressBar>,
    visible: bool,
    interrupt: Interrupt,
}

impl Bars {
    /// No bar yet; it appears with the first progress.
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        Self { bar: None, visible: io::stderr().is_terminal(), interrupt }
    }

    /// The same without anything to see, for `--quiet`.
    pub(crate) fn quiet(mut self, quiet: bool) -> Self {
        self.visible &= !quiet;
        self
    }

    /// Shows `done` of `total`; a bar that is complete disappears.
    pub(crate) fn show(&mut self, what: &'static str, unit: Unit, done: u64, total: u64) {
        if done >= total {
            self.clear();
        } else if self.visible {
            let bar = self.bar.get_or_insert_with(|| new_bar(what, unit));
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Things.
    Count,
    /// Bytes; the bar shows how fast they go and how long that will take.
    Bytes,
}

fn new_bar(what: &'static str, unit: Unit) -> ProgressBar {
    let template = match unit {
        Unit::Count => "{msg:>10} [{bar:30}] {pos}/{len} {elapsed}",
        Unit::Bytes => {
            "{msg:>10} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
        }
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("=> "))
        .with_message(what)
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Progress for Bars {
    fn loading(&mut self, done: usize, total: usize) {
        self.show("loading", Unit::Count, done as u64, total as u64);
    }

    fn loaded(&mut self) {
        self.clear();
    }

    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        self.show("prompt", Unit::Count, done as u64, total as u64);
        self.interrupt.flow()
    }

    fn decoded(&mut self, _count: usize) -> ControlFlow<()> {
        self.interrupt.flow()
    }
}

/// Writes streamed text to stdout and remembers a failure (a full disk, a closed pipe).
pub(crate) struct Stdout {
    failure: Option<io::Error>,
}

impl Stdout {
    pub(crate) fn new() -> Self {
        Self { failure: None }
    }

    /// Writes and flushes one piece.
    pub(crate) fn write(&mut self, piece: &str) -> ControlFlow<()> {
        let mut out = io::stdout().lock();
        match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failure.get_or_insert(error);
                ControlFlow::Break(())
            }
        }
    }

    /// The failure, if any, as one sentence.
    pub(crate) fn check(self) -> Result<()> {
        match self.failure {
            None => Ok(()),
            Some(error) => Err(error).context("cannot write to standard output"),
        }
    }
}
