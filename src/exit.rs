//! What the exit codes mean. Only main.rs ends the process; everything else returns one of these.

use std::process::{ExitCode, Termination};

/// How a command ended. The numbers are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for is done.
    Done = 0,
    /// It was tried and failed, or what `status` asks about is down.
    Failed = 1,
    /// It was not tried: an unknown command or flag, a bad value, a bad configuration.
    Usage = 2,
    /// Ended by Ctrl-C: 128 + SIGINT.
    Interrupted = 130,
    /// Ended by SIGTERM: 128 + SIGTERM.
    Terminated = 143,
}

impl Exit {
    pub const ALL: [Exit; 5] = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Interrupted, Exit::Terminated];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// The line help prints for it.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done",
            Exit::Failed => "failed, or what was asked about is down",
            Exit::Usage => "usage or configuration error; nothing was tried",
            Exit::Interrupted => "interrupted (Ctrl-C)",
            Exit::Terminated => "terminated (SIGTERM)",
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}
