//! The worker's own watch over its lease: a pipe that only its shim holds open. Its end means that the shim is gone,
//! even if hive and shim were both killed, and then nothing may be left of this process.

use crate::process;
use std::io::{self, Read};

/// Watches the inherited pipe from a thread of its own, so that nothing the worker does can hold it up.
pub fn watch(fd: i32) -> io::Result<()> {
    let mut pipe = std::fs::File::from(process::inherited_pipe(fd)?);
    std::thread::Builder::new().name("lease".into()).spawn(move || {
        let mut ignored = [0; 64];
        while matches!(pipe.read(&mut ignored), Ok(1..)) {}
        tracing::warn!("the lease has ended");
        // At once and without cleaning up: whoever waited for an orderly end is dead, and a decode, a load or a template
        // that runs for minutes must not keep a GPU.
        if let Err(error) =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        {
            tracing::error!(%error, "ending this process failed");
        }
    })?;
    Ok(())
}
