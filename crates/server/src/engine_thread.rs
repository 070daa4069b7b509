//! The engine thread: loads the model, then runs the worker's passes between commands.

use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use mlxcel_runtime::{Error, Result};

use super::error::ApiError;
use super::messages::EngineCommand;
use super::worker::Worker;

/// Handle of a running engine thread, with what was learned of the model while it was loaded.
pub(super) struct EngineThread<T> {
    pub(super) commands: Sender<EngineCommand>,
    pub(super) thread: JoinHandle<()>,
    pub(super) loaded: T,
}

/// Starts the thread, on which `load` loads the model, and waits until that is done.
///
/// # Errors
/// Errors of `load`, and a thread that cannot be started.
pub(super) fn spawn<T: Send + 'static>(
    load: impl FnOnce() -> Result<(Worker, T)> + Send + 'static,
) -> Result<EngineThread<T>> {
    let (commands, received) = std::sync::mpsc::channel();
    let (ready, loaded) = std::sync::mpsc::channel();
    let body = move || match load() {
        Ok((worker, known)) => {
            let _ = ready.send(Ok(known));
            run(worker, &received);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new().name("engine".into()).spawn(body);
    let thread = thread.map_err(thread_error)?;
    let panicked = || thread_error(std::io::Error::other("it ended while the model was loading"));
    let loaded = loaded.recv().map_err(|_| panicked())??;
    Ok(EngineThread { commands, thread, loaded })
}

fn thread_error(source: std::io::Error) -> Error {
    Error::Io { path: "engine thread".into(), source }
}

/// Runs passes until [`EngineCommand::Stop`], or until nothing is left after
/// [`EngineCommand::Drain`].
fn run(mut worker: Worker, commands: &Receiver<EngineCommand>) {
    let mut draining = false;
    loop {
        let command = match worker.is_idle() {
            true if draining => return,
            true => commands.recv().map_err(|_| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match command {
            Ok(EngineCommand::Submit(request)) => worker.submit(*request),
            Ok(EngineCommand::Drain) => draining = true,
            Ok(EngineCommand::Stop) | Err(TryRecvError::Disconnected) => {
                worker.fail_all(&ApiError::shutting_down());
                return;
            }
            Err(TryRecvError::Empty) => worker.step(),
        }
    }
}
