//! The containment ladder: by what means a tree is held together, and so can be ended whole.
//!
//! | rung | held by | a member leaves by |
//! |---|---|---|
//! | pinned group | a process group that seccomp lets nobody leave | nothing |
//! | group | a process group, and on Linux the shim as subreaper | setsid or setpgid; the sweep by descent finds it while the shim lives |
//!
//! A stronger rung (cgroup v2, PID namespace) is one more variant here: how it is entered between fork and exec, how
//! it signals all, how it lists what lives.

use super::identity::{Entry, descendants};
use super::platform;
use rustix::process::{Pid, Signal};
use std::io;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rung {
    #[cfg(target_os = "linux")]
    PinnedGroup,
    Group,
}

impl Rung {
    /// The strongest that this system offers. A tree that must make sessions (a test of terminals) cannot be pinned.
    #[cfg(target_os = "linux")]
    pub(super) fn strongest(sessions: bool) -> Rung {
        if !sessions && super::seccomp::available() { Rung::PinnedGroup } else { Rung::Group }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn strongest(_sessions: bool) -> Rung {
        Rung::Group
    }

    /// As receipts and nodes name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_os = "linux")]
            Rung::PinnedGroup => "pinned group",
            Rung::Group => "group",
        }
    }

    /// Between fork and exec, the group being made already. Must not allocate.
    pub(super) fn enter(self) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Rung::PinnedGroup => super::seccomp::pin_group(),
            Rung::Group => Ok(()),
        }
    }
}

/// The tree as its shim sees it: the leader's group, and everything else that descends from the shim.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contained {
    pub shim: Pid,
    pub leader: Pid,
}

impl Contained {
    /// Signals the group at once, in the kernel, then whoever left it, one by one.
    pub(super) fn signal(&self, signals: &[Signal], leader_is_reaped: bool) {
        let members = self.members();
        let group = self.leader.as_raw_pid();
        // An empty group's number can be given to strangers, once its leader has been reaped.
        if !leader_is_reaped || members.iter().any(|entry| entry.group == group) {
            for signal in signals {
                // It may have emptied since, which is what was wanted.
                let _ = rustix::process::kill_process_group(self.leader, *signal);
            }
        }
        for stray in members.iter().filter(|entry| entry.group != group) {
            let Some(pid) = Pid::from_raw(stray.pid) else { continue };
            for signal in signals {
                let _ = rustix::process::kill_process(pid, *signal);
            }
        }
    }

    /// What lives of the tree, zombies left out.
    pub(super) fn members(&self) -> Vec<Entry> {
        let table = platform::processes();
        let mut members = descendants(&table, self.shim.as_raw_pid());
        if !platform::ORPHANS_STAY_BELOW {
            let group = table.iter().filter(|entry| entry.group == self.leader.as_raw_pid());
            let missed: Vec<Entry> =
                group.filter(|entry| members.iter().all(|known| known.pid != entry.pid)).copied().collect();
            members.extend(missed);
        }
        members.retain(|entry| !entry.zombie);
        members
    }

    pub(super) fn group_is_empty(&self) -> bool {
        rustix::process::test_kill_process_group(self.leader) == Err(rustix::io::Errno::SRCH)
    }
}
pub fn ladder() -> crate::wire::fleet::Containment {
    todo!()
}
