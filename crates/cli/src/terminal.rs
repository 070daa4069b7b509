//! Terminal output: errors, notes, progress bars, streamed text.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mlxcel_estimator::format_bytes;
use mlxcel_runtime::engine::{Progress, Statistics};

/// Prints an error and its causes as one line on stderr.
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

/// Prints to stdout. Unlike `print!`, a full disk or a closed pipe is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = Stdout::new();
    let _ = out.write(text);
    out.check()
}

/// Prints a note on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("note: {text}");
}

/// Exit code after Ctrl-C, by the shells' convention: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Flag that Ctrl-C sets; a second Ctrl-C ends the process.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// The flag of this process; its handler can be installed only once.
static INTERRUPT: OnceLock<Interrupt> = OnceLock::new();

impl Interrupt {
    /// Installs the handler, unless it already is.
    pub(crate) fn install() -> Result<Self> {
        if let Some(installed) = INTERRUPT.get() {
            return Ok(installed.clone());
        }
        let new = Self(Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&new.0);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED.into());
            }
        })
        .context("cannot catch Ctrl-C")?;
        Ok(INTERRUPT.get_or_init(|| new).clone())
    }

    /// Clears the flag.
    pub(crate) fn reset(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// True after Ctrl-C.
    pub(crate) fn raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// `Break` after Ctrl-C.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Progress bars on stderr, drawn only at a terminal.
pub(crate) struct Bars {
    bar: Option<ProgressBar>,
    title: Option<Title>,
    visible: bool,
    interrupt: Interrupt,
}

impl Bars {
    /// Draws nothing until the first progress.
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        Self { bar: None, title: None, visible: io::stderr().is_terminal(), interrupt }
    }

    /// Shows live statistics in the terminal's title during decoding, relative to a context of
    /// `context` tokens.
    pub(crate) fn with_title(mut self, context: Option<usize>) -> Self {
        let plain = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        self.title = (self.visible && !plain).then(|| Title::new(context));
        self
    }

    /// Draws nothing if `quiet`.
    pub(crate) fn quiet(mut self, quiet: bool) -> Self {
        self.visible &= !quiet;
        self
    }

    /// Shows `done` of `total`; a complete bar disappears.
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

/// Statistics in the title of the terminal window. Restores the previous title when dropped.
struct Title {
    context: Option<usize>,
    updated: Option<Instant>,
}

/// Minimum time between updates of the title.
const TITLE_INTERVAL: Duration = Duration::from_millis(250);

impl Title {
    fn new(context: Option<usize>) -> Self {
        eprint!("\x1b[22;2t");
        Self { context, updated: None }
    }

    fn show(&mut self, so_far: &Statistics) {
        if self.updated.is_none_or(|at| at.elapsed() >= TITLE_INTERVAL) {
            self.updated = Some(Instant::now());
            eprint!("\x1b]2;{}\x07", title(so_far, self.context));
        }
    }
}

impl Drop for Title {
    fn drop(&mut self) {
        eprint!("\x1b[23;2t");
    }
}

/// Formats the used context, the size of the KV cache, and the decoding speed.
fn title(so_far: &Statistics, context: Option<usize>) -> String {
    let used = so_far.prompt_tokens + so_far.generated_tokens;
    let most = context.map_or(String::new(), |most| format!("/{most}"));
    let rate = so_far.decode_rate().map_or(String::new(), |rate| format!(", {rate:.1} tok/s"));
    format!("mlxcel: {used}{most} tokens, KV {}{rate}", format_bytes(so_far.kv_cache_bytes as u64))
}

/// Unit of a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A number of items.
    Count,
    /// Bytes, with rate and remaining time.
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

    fn decoded(&mut self, so_far: &Statistics) -> ControlFlow<()> {
        if let Some(title) = &mut self.title {
            title.show(so_far);
        }
        self.interrupt.flow()
    }
}

/// Streams text to stdout and records a failure, such as a full disk or a closed pipe.
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

    /// Returns the recorded failure.
    pub(crate) fn check(self) -> Result<()> {
        match self.failure {
            None => Ok(()),
            Some(error) => Err(error).context("cannot write to standard output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_shows_context_cache_and_rate() {
        let mut so_far =
            Statistics { prompt_tokens: 7, kv_cache_bytes: 3 << 20, ..Statistics::default() };
        assert_eq!(title(&so_far, None), "mlxcel: 7 tokens, KV 3.0 MiB");
        so_far.generated_tokens = 21;
        so_far.decode_time = Duration::from_secs(2);
        assert_eq!(title(&so_far, Some(64)), "mlxcel: 28/64 tokens, KV 3.0 MiB, 10.0 tok/s");
    }
}
