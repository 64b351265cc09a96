//! What asks a command to end: Ctrl-C, a SIGTERM, a terminal that is closed. All are answered the same way: what was begun
//! on a server is cancelled there, and a second one leaves at once; only the exit code tells which it was.

use crate::keeper::KeeperError;
use crate::process;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on none of them is lost, and none ends the process by itself.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// None where it is to be ignored, as `nohup` has it.
    hangup: Option<Signal>,
}

impl Signals {
    pub fn catch() -> Result<Self, KeeperError> {
        let catching = |error: std::io::Error| KeeperError::local("catching signals", error);
        let hangup = (!process::ignores_hangup()).then(|| signal(SignalKind::hangup()));
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(catching)?,
            terminate: signal(SignalKind::terminate()).map_err(catching)?,
            hangup: hangup.transpose().map_err(catching)?,
        })
    }

    /// Waits for the next one; gives what the command then ends with.
    pub async fn next(&mut self) -> KeeperError {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => KeeperError::Interrupted,
            _ = self.terminate.recv() => KeeperError::Terminated,
            _ = hangup => KeeperError::Terminated,
        }
    }
}
