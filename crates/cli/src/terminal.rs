//! What a person sees: errors, notes, progress bars, streamed text.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Prints a remark on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("note: {text}");
}

/// Set by Ctrl-C; a second Ctrl-C ends the process.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches Ctrl-C from here on.
    pub(crate) fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        })
        .context("cannot catch Ctrl-C")?;
        Ok(Self(flag))
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
    bar: ProgressBar,
    interrupt: Interrupt,
}

impl Bars {
    /// No bar yet; it appears with the first progress.
    pub(crate) fn new(interrupt: Interrupt) -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { bar: ProgressBar::with_draw_target(None, target), interrupt }
    }

    fn show(&self, what: &'static str, done: usize, total: usize) {
        self.bar.set_style(
            ProgressStyle::with_template("{msg:>10} [{bar:30}] {pos}/{len} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        self.bar.set_message(what);
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }
}

impl Progress for Bars {
    fn loading(&mut self, done: usize, total: usize) {
        self.show("loading", done, total);
    }

    fn loaded(&mut self) {
        self.bar.reset();
    }

    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        if done < total {
            self.show("prompt", done, total);
        } else {
            self.bar.finish_and_clear();
        }
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
                self.failure = Some(error);
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
