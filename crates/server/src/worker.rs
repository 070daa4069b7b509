//! The engine's thread: loads the model, then computes what it is told to, pass by pass.

use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use super::error::ApiError;
use super::job::Command;
use super::scheduler::Scheduler;
use mlxcel_runtime::Result;

/// Starts the thread; `make` loads the model on it. Returns when that is done, with what others are
/// to know of the model.
///
/// # Errors
/// What loading failed with, or a thread that cannot be started.
pub(super) fn spawn<T: Send + 'static>(
    make: impl FnOnce() -> Result<(Scheduler, T)> + Send + 'static,
) -> Result<(Sender<Command>, JoinHandle<()>, T)> {
    let (commands, received) = std::sync::mpsc::channel();
    let (ready, loaded) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || match make() {
        Ok((scheduler, known)) => {
            let _ = ready.send(Ok(known));
            run(scheduler, &received);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    });
    let io = |source| mlxcel_runtime::Error::Io { path: "the engine's thread".into(), source };
    let thread = thread.map_err(io)?;
    let ended = || io(std::io::Error::other("it ended while the model was loaded"));
    let known = loaded.recv().map_err(|_| ended())??;
    Ok((commands, thread, known))
}

/// Passes until told to stop, or until there is nothing left after [`Command::Drain`].
fn run(mut scheduler: Scheduler, commands: &Receiver<Command>) {
    let mut draining = false;
    loop {
        let command = match scheduler.idle() {
            true if draining => return,
            true => commands.recv().map_err(|_| TryRecvError::Disconnected),
            false => commands.try_recv(),
        };
        match command {
            Ok(Command::Submit(job)) => scheduler.submit(*job),
            Ok(Command::Drain) => draining = true,
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                scheduler.fail_all(&ApiError::shutting_down());
                return;
            }
            Err(TryRecvError::Empty) => scheduler.step(),
        }
    }
}
