//! The shim's shim: a forked sibling in a session of its own, which does nothing but wait for the shim to die. If that was
//! no farewell, it ends the tree as the next hive would, so that a hive and a shim killed together leave nothing. The
//! shim starts another when it dies. Where the kernel itself does that (a PID namespace) there is none.

use super::platform;
use super::record::Record;
use super::sweep::{remains, sweep};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// A lease holder that lives sees the shim's death as well, and its receipt is to count what was ended: it goes first.
const HOLDER_FIRST: Duration = Duration::from_millis(200);
/// From the farewell to the watcher's end.
const LEAVE_MAX: Duration = Duration::from_secs(1);
const FAREWELL: i32 = 0;

/// The shim's end.
#[derive(Debug)]
pub(super) struct Watcher {
    /// Where it is a child of the shim's, and so stands among the tree.
    pub pid: Option<i32>,
    /// Nobody else writes: its end of file is the shim's death.
    tell: io::PipeWriter,
    /// Nobody else writes: its end of file is the watcher's death.
    pub lives: io::PipeReader,
}

impl Watcher {
    /// Watches over the tree of `record`, which names its shim.
    pub(super) fn start(record: &Record) -> io::Result<Watcher> {
        let (told, tell) = io::pipe()?;
        let (lives, alive) = io::pipe()?;
        let forked = platform::fork_aside()?;
        let platform::Aside::Parent(pid) = forked else {
            drop((tell, lives));
            platform::only_keep(&mut [told.as_raw_fd(), alive.as_raw_fd()]);
            let watch = std::panic::AssertUnwindSafe(|| watch(record.clone(), told));
            platform::leave(i32::from(std::panic::catch_unwind(watch).is_err()))
        };
        let mut watcher = Watcher { pid, tell, lives };
        if let Some(child) = &record.child {
            watcher.tell_leader(child.pid);
        }
        Ok(watcher)
    }

    pub(super) fn tell_leader(&mut self, leader: i32) {
        // One that is dead is noticed by the end of `lives`.
        let _ = self.tell.write_all(&leader.to_ne_bytes());
    }

    /// It is not needed any more; waits until it has gone.
    pub(super) fn dismiss(mut self) {
        self.tell_leader(FAREWELL);
        let timeout = Timespec { tv_sec: LEAVE_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        // It writes nothing, so this is its end; unless somebody has stopped it.
        if poll(&mut [PollFd::new(&self.lives, PollFlags::IN)], Some(&timeout)) == Ok(0)
            && let Some(pid) = self.pid.and_then(Pid::from_raw)
        {
            // A child not reaped yet, so the number is its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        self.collect();
    }

    /// Reaps one that has closed its end or was killed, where it is a child.
    pub(super) fn collect(self) {
        if let Some(pid) = self.pid {
            platform::reap_aside(pid);
        }
    }
}

fn watch(mut record: Record, mut told: io::PipeReader) {
    platform::ignore_signals();
    // It may not be made one where it leads a group already; then it only stays where it is.
    let _ = rustix::process::setsid();
    platform::name_this_process(c"rbee-watch");
    let mut word = [0u8; 4];
    while told.read_exact(&mut word).is_ok() {
        match i32::from_ne_bytes(word) {
            FAREWELL => return,
            leader => record.child = super::Identity::of(leader),
        }
    }
    let left: Vec<i32> = remains(&record).iter().map(|entry| entry.pid).collect();
    platform::wait_for_end(&left, HOLDER_FIRST);
    sweep(&record);
}
