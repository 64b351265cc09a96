//! The first process of a tree's PID namespace: it starts the leader, reaps what is orphaned, and when it ends the kernel
//! ends everything else there, at once and whatever it is doing. It dies with its shim.
//!
//! A fork of the shim that never execs. Its words to the shim are the leader's number inside, then its exit; the shim's one
//! word to it is that it has found the leader's number outside, before which nothing may be reaped.

use super::cgroup::Cgroup;
use super::fork::{SEEN, close_all_but, fork, leave};
use super::identity::{Entry, Identity};
use super::namespaces::Namespaces;
use super::platform;
use super::protocol::{Exit, Frames, frame};
use super::spawn::reset_signals;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Init to shim.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    /// The leader, as it is numbered inside.
    started: Option<i32>,
    /// What the system said, so that the shim's error is the same as without a namespace.
    refused: Option<i32>,
    failed: Option<String>,
    exited: Option<Exit>,
}

/// The shim's end.
#[derive(Debug)]
pub(super) struct Init {
    pub identity: Identity,
    control: UnixStream,
    frames: Frames,
    /// Counts what it reaped, and survives it.
    reaped: OwnedFd,
    /// Killed together with it, and reaped by the kernel.
    killed: BTreeSet<i32>,
}

impl Init {
    /// Starts the namespaces' first process, which calls `spawn`; itself, and the leader as it is known outside.
    pub(super) fn start(
        namespaces: &Namespaces,
        cgroup: Option<&Cgroup>,
        spawn: impl FnOnce() -> io::Result<Pid>,
    ) -> io::Result<(Init, Pid, Identity)> {
        let (control, inner) = UnixStream::pair()?;
        let reaped = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // SAFETY: a shim has one thread.
        let Some(pid) = (unsafe { fork(namespaces.flags | SEEN) })? else {
            drop(control);
            let run = || run(namespaces, cgroup, spawn, inner, &reaped);
            // Nothing of the shim may run in here, whatever happens.
            leave(i32::from(catch_unwind(AssertUnwindSafe(run)).is_err()))
        };
        drop(inner);
        drop(spawn);
        let identity = Identity::of(pid.as_raw_pid()).ok_or(io::ErrorKind::NotFound)?;
        let mut init = Init { identity, control, frames: Frames::default(), reaped, killed: BTreeSet::new() };
        let leader = init.hear_of_the_leader()?;
        // While it cannot have been reaped.
        let identity = Identity::of(leader.as_raw_pid()).ok_or(io::ErrorKind::NotFound)?;
        init.control.write_all(b"found\n")?;
        init.control.set_nonblocking(true)?;
        Ok((init, leader, identity))
    }

    fn hear_of_the_leader(&mut self) -> io::Result<Pid> {
        loop {
            let told = self.hear()?;
            let Some(told) = told.into_iter().next() else { continue };
            return match (told.started, told.refused, told.failed) {
                (Some(inner), _, _) => {
                    let outer = platform::number_outside(self.identity.pid, inner);
                    outer.ok_or_else(|| io::Error::other("the leader is not found in /proc"))
                }
                (_, Some(number), _) => Err(io::Error::from_raw_os_error(number)),
                (_, _, Some(reason)) => Err(io::Error::other(reason)),
                _ => continue,
            };
        }
    }

    fn hear(&mut self) -> io::Result<Vec<Told>> {
        let mut buffer = [0u8; 4096];
        let count = match self.control.read(&mut buffer) {
            Ok(0) => return Err(io::Error::other("the first process of the namespace was killed")),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let frames = self.frames.push(&buffer[..count]).unwrap_or_default();
        Ok(frames.iter().filter_map(|frame| serde_json::from_slice(frame).ok()).collect())
    }

    /// The leader's exit, once it is told.
    pub(super) fn leader_exit(&mut self) -> Option<Exit> {
        self.hear().ok()?.into_iter().find_map(|told| told.exited)
    }

    /// Readable when there is something to hear.
    pub(super) fn control(&self) -> &UnixStream {
        &self.control
    }

    /// How many ended in the namespace; told once.
    pub(super) fn reaped(&self) -> u32 {
        let mut count = [0u8; 8];
        let reaped = match rustix::io::read(&self.reaped, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        };
        u32::try_from(reaped + self.killed.len() as u64).unwrap_or(u32::MAX)
    }

    /// Ends it and, with it, these.
    pub(super) fn kill(&mut self, members: &[Entry]) {
        self.killed.extend(members.iter().map(|entry| entry.pid));
        platform::kill(&self.identity);
    }

    pub(super) fn is(&self, entry: &Entry) -> bool {
        entry.pid == self.identity.pid
    }
}

/// In the namespaces, as number 1.
fn run(
    namespaces: &Namespaces,
    cgroup: Option<&Cgroup>,
    spawn: impl FnOnce() -> io::Result<Pid>,
    mut control: UnixStream,
    reaped: &OwnedFd,
) {
    reset_signals();
    platform::name_this_process(c"rbee-init");
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() || hung_up(&control) {
        return;
    }
    let tell = |told: Told| (&control).write_all(&frame(&told)).is_ok();
    let joined = cgroup.map_or(Ok(()), Cgroup::join);
    let entered = joined.and_then(|()| namespaces.enter().map_err(|(_, error)| error));
    let leader = match entered.and_then(|()| spawn()) {
        Ok(leader) => leader,
        Err(error) => {
            let refused = error.raw_os_error();
            tell(Told { refused, failed: Some(error.to_string()), ..Told::default() });
            return;
        }
    };
    // SAFETY: nothing but these two is used from here on, and the process ends without dropping the rest. Open, the
    // leases among them would outlive the shim.
    unsafe { close_all_but(&mut [control.as_raw_fd(), reaped.as_raw_fd()]) };
    if !tell(Told { started: Some(leader.as_raw_pid()), ..Told::default() }) {
        return;
    }
    let mut found = [0u8; 6];
    if control.read_exact(&mut found).is_ok() {
        reap(leader, &mut control, reaped);
    }
}

/// Until nobody else is left.
fn reap(leader: Pid, control: &mut UnixStream, reaped: &OwnedFd) {
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        // A counter that is full has counted enough.
        let _ = rustix::io::write(reaped, &1u64.to_ne_bytes());
        if let Some(exit) = Exit::of(status).filter(|_| pid == leader) {
            // A shim that does not hear it is dead, and so is this process.
            let _ = control.write_all(&frame(&Told { exited: Some(exit), ..Told::default() }));
        }
    }
}

/// Whether the shim died before the death signal was armed. Its number would not tell: from in here it has none.
fn hung_up(control: &UnixStream) -> bool {
    let mut fds = [PollFd::new(control, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_err() || fds[0].revents().contains(PollFlags::HUP)
}
