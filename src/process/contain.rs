//! The containment ladder: by what means a tree is held together, and so can be ended whole.
//!
//! | rung | held by | a member leaves by |
//! |---|---|---|
//! | cgroup | a control group of version 2, beside one of the others | being moved, by root |
//! | pid namespace | the kernel: all end with its first process, and that with the shim | nothing |
//! | pinned group | a process group that seccomp lets nobody leave; a watcher for the shim | nothing |
//! | group | a process group, and on Linux the shim as subreaper; the watcher | setsid or setpgid; the sweep by descent finds it while the shim lives |
//!
//! A control group is had whenever one can be; the others exclude each other. `ladder` tries what a node offers.

use super::cgroup::{self, Cgroup, Limits};
use super::identity::{Entry, descendants};
#[cfg(target_os = "linux")]
use super::{init::Init, namespaces::Namespaces, seccomp};
use super::{platform, record::Spec};
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

/// Who forks while the list of members is read is missed by a signal to each: so the list is read again.
const ROUNDS_MAX: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rung {
    Group,
    PinnedGroup,
    PidNamespace,
    Cgroup,
}

impl Rung {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Rung::Group => "group",
            Rung::PinnedGroup => "pinned group",
            Rung::PidNamespace => "pid namespace",
            Rung::Cgroup => "cgroup",
        }
    }

    pub(super) fn named(name: &str) -> Option<Rung> {
        let all = [Rung::Group, Rung::PinnedGroup, Rung::PidNamespace, Rung::Cgroup];
        all.into_iter().find(|rung| rung.name() == name)
    }
}

/// As receipts and nodes name it: `pid namespace + cgroup`.
pub(super) fn name(rung: Rung, cgroup: bool) -> String {
    format!("{}{}", rung.name(), if cgroup { " + cgroup" } else { "" })
}

/// What a tree will be held by, prepared before its leader is forked.
#[derive(Debug)]
pub(super) struct Held {
    rung: Rung,
    pub(super) cgroup: Option<Cgroup>,
    #[cfg(target_os = "linux")]
    pub(super) namespaces: Option<Namespaces>,
}

impl Held {
    /// The strongest that this node gives, that the tree bears and that nobody has capped. `record` names its cgroup.
    pub(super) fn choose(spec: &Spec, record: &Path) -> Held {
        // A name that is not one was refused at launch.
        let top = spec.rung_max.as_deref().and_then(Rung::named).unwrap_or(Rung::Cgroup);
        let limits = Limits { processes: spec.processes_max, memory_bytes: spec.tree_memory_bytes_max };
        let cgroup = (top >= Rung::Cgroup).then(|| Cgroup::make(record, limits).ok()).flatten();
        Held::beside(cgroup, spec, top)
    }

    #[cfg(target_os = "linux")]
    fn beside(cgroup: Option<Cgroup>, spec: &Spec, top: Rung) -> Held {
        let closed = spec.confine.as_ref().is_some_and(|confine| !confine.network);
        let namespaces = (spec.pid_namespace && top >= Rung::PidNamespace).then(|| {
            let possible = Namespaces::possible(closed, spec.processes_max);
            // A network that cannot be emptied so is closed by other means.
            possible.or_else(|_| Namespaces::possible(false, spec.processes_max)).ok()
        });
        let namespaces = namespaces.flatten();
        // A tree that must make sessions (a test of terminals) cannot be pinned.
        let pinned = || !spec.sessions && top >= Rung::PinnedGroup && seccomp::attempt().is_ok();
        let rung = match &namespaces {
            Some(_) => Rung::PidNamespace,
            None if pinned() => Rung::PinnedGroup,
            None => Rung::Group,
        };
        Held { rung, cgroup, namespaces }
    }

    #[cfg(not(target_os = "linux"))]
    fn beside(cgroup: Option<Cgroup>, _spec: &Spec, _top: Rung) -> Held {
        Held { rung: Rung::Group, cgroup }
    }

    pub(super) fn name(&self) -> String {
        name(self.rung, self.cgroup.is_some())
    }

    /// Nothing but another process can end this tree when its shim is killed.
    pub(super) fn needs_watcher(&self) -> bool {
        self.rung != Rung::PidNamespace
    }

    /// What the leader does to be held, prepared before it is forked.
    pub(super) fn entrance(&self) -> io::Result<Entrance> {
        // The first process of a namespace has joined, and with it all that it starts.
        let joins = self.cgroup.as_ref().filter(|_| self.rung != Rung::PidNamespace);
        let procs = joins.map(Cgroup::door).transpose()?.flatten();
        Ok(Entrance { procs, pinned: self.rung == Rung::PinnedGroup })
    }
}

/// The leader's own part, between fork and exec. Must not allocate.
#[derive(Debug)]
pub(super) struct Entrance {
    procs: Option<File>,
    pinned: bool,
}

impl Entrance {
    /// While it may still write where it likes.
    pub(super) fn join(&self) -> io::Result<()> {
        self.procs.as_ref().map_or(Ok(()), cgroup::join)
    }

    /// Last, its group being made already.
    pub(super) fn pin(&self) -> io::Result<()> {
        match self.pinned {
            #[cfg(target_os = "linux")]
            true => seccomp::pin_group(),
            _ => Ok(()),
        }
    }
}

/// The tree as its shim sees it: everything that descends from the shim but what serves the shim itself.
#[derive(Debug)]
pub(super) struct Contained {
    pub shim: Pid,
    pub leader: Pid,
    /// A child of the shim's that is not of the tree.
    pub watcher: Option<i32>,
    #[cfg(target_os = "linux")]
    pub init: Option<Init>,
}

impl Contained {
    /// Ends all: in the kernel at once, on every rung but the plain group, where it takes another look.
    pub(super) fn kill(&mut self, held: &Held, leader_is_reaped: bool) {
        #[cfg(target_os = "linux")]
        if self.init.is_some() {
            let members = self.members();
            self.init.as_mut().into_iter().for_each(|init| init.kill(&members));
        }
        if let Some(cgroup) = &held.cgroup {
            cgroup.kill();
        }
        self.signal(&[Signal::KILL], leader_is_reaped);
    }

    /// Signals the group at once, in the kernel, then whoever left it, one by one.
    pub(super) fn signal(&self, signals: &[Signal], leader_is_reaped: bool) {
        let group = self.leader.as_raw_pid();
        let mut reached = BTreeSet::new();
        for round in 0..ROUNDS_MAX {
            let members = self.members();
            // An empty group's number can be given to strangers, once its leader has been reaped.
            let ours = !leader_is_reaped || members.iter().any(|entry| entry.group == group);
            if round == 0 && ours {
                for signal in signals {
                    // It may have emptied since, which is what was wanted.
                    let _ = rustix::process::kill_process_group(self.leader, *signal);
                }
            }
            let strays = members.iter().filter(|entry| entry.group != group);
            let missed: Vec<&Entry> =
                strays.filter(|entry| reached.insert((entry.pid, entry.start))).collect();
            for pid in missed.iter().filter_map(|stray| Pid::from_raw(stray.pid)) {
                for signal in signals {
                    let _ = rustix::process::kill_process(pid, *signal);
                }
            }
            if missed.is_empty() {
                break;
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
        members.retain(|entry| !entry.zombie && Some(entry.pid) != self.watcher);
        #[cfg(target_os = "linux")]
        if let Some(init) = &self.init {
            members.retain(|entry| !init.is(entry));
        }
        members
    }

    /// How many were reaped by others than the shim, where `left` are not yet.
    pub(super) fn reaped_inside(&self, left: usize) -> u32 {
        #[cfg(target_os = "linux")]
        if let Some(init) = &self.init {
            return init.reaped().saturating_sub(left.try_into().unwrap_or(u32::MAX));
        }
        let _ = left;
        0
    }

    pub(super) fn group_is_empty(&self) -> bool {
        rustix::process::test_kill_process_group(self.leader) == Err(rustix::io::Errno::SRCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_known_by_their_names_and_ordered_by_strength() {
        for rung in [Rung::Group, Rung::PinnedGroup, Rung::PidNamespace, Rung::Cgroup] {
            assert_eq!(Rung::named(rung.name()), Some(rung));
        }
        assert_eq!(Rung::named("cgroups"), None);
        assert!(Rung::Cgroup > Rung::PidNamespace && Rung::PinnedGroup > Rung::Group);
        assert_eq!(name(Rung::PidNamespace, true), "pid namespace + cgroup");
    }
}
