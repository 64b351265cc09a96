//! What a killed shim left: found by its session and group, and killed. The last line, run by the lease holder at once
//! or by the next hive at its start.

use super::cgroup::Cgroup;
use super::identity::{Entry, descendants};
use super::platform;
use super::record::Record;
use super::shim::VERIFY_MAX;
use crate::wire::job::{Receipt, Survivor};
use rustix::process::{Pid, Signal};
use std::collections::BTreeSet;
use std::time::Instant;

/// Ends what is left of a recorded tree. Blocks, for at most [`VERIFY_MAX`].
pub(super) fn sweep(record: &Record) -> Receipt {
    let began = Instant::now();
    if let Some(shim) = &record.shim {
        // Alive but deaf: its tree is told by its death as much as by us.
        platform::kill(shim);
        platform::wait_for_end(&[shim.pid], VERIFY_MAX);
    }
    if let Some(init) = &record.init {
        // The kernel does this when the shim ends; unless that one is stuck.
        platform::kill(init);
    }
    let cgroup = cgroup(record);
    let mut seen = BTreeSet::new();
    let mut memory = 0;
    let left = loop {
        let left = remains(record);
        for entry in left.iter().filter(|entry| !seen.contains(&entry.pid)) {
            memory += platform::memory_bytes(entry.pid).unwrap_or(0);
        }
        seen.extend(left.iter().map(|entry| entry.pid));
        let time_left = VERIFY_MAX.saturating_sub(began.elapsed());
        if left.is_empty() || time_left.is_zero() {
            break left;
        }
        if let Some(cgroup) = &cgroup {
            cgroup.kill();
        }
        let groups: BTreeSet<i32> = left.iter().map(|entry| entry.group).collect();
        for group in groups.into_iter().filter_map(Pid::from_raw) {
            // It may have emptied since, which is what was wanted.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let pids: Vec<i32> = left.iter().map(|entry| entry.pid).collect();
        platform::wait_for_end(&pids, time_left);
    };
    if let Some(cgroup) = &cgroup {
        cgroup.remove(VERIFY_MAX.saturating_sub(began.elapsed()));
    }
    Receipt {
        clean: left.is_empty(),
        containment: record.containment.clone(),
        processes_reaped: (seen.len() - left.len()).try_into().unwrap_or(u32::MAX),
        survivors: left
            .iter()
            .map(|entry| Survivor { pid: entry.pid, command: platform::command(entry.pid) })
            .collect(),
        bytes_removed: 0,
        memory_returned_bytes: memory,
        ms: began.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
    }
}

/// The tree's own, if it has one in this boot.
fn cgroup(record: &Record) -> Option<Cgroup> {
    record.shim.as_ref().filter(|shim| shim.in_this_boot())?;
    record.cgroup.clone().map(Cgroup::at)
}

/// The living members of a tree whose shim is dead.
///
/// The shim led a session, and its number cannot be given to a new process while that session has a member. So if the
/// number now belongs to another process nobody is left in it, and if not, whoever is in that session is of the tree. On
/// the pinned rung that is everybody; on the plain one a process that called setsid has escaped this, and only this. What
/// a control group holds is of the tree without further question, and so is a namespace as long as its first process lives.
pub(super) fn remains(record: &Record) -> Vec<Entry> {
    let Some(shim) = record.shim.as_ref().filter(|shim| shim.in_this_boot()) else { return Vec::new() };
    let reused = platform::process(shim.pid).is_some_and(|now| now.start != shim.start);
    // Nor is a group of a later process ours.
    let leader = record
        .child
        .as_ref()
        .filter(|child| platform::process(child.pid).is_none_or(|now| now.start == child.start));
    let leader = leader.map_or(0, |child| child.pid);
    let grouped: BTreeSet<i32> =
        cgroup(record).map(|cgroup| cgroup.members()).unwrap_or_default().into_iter().collect();
    let mut table = platform::processes();
    let first = record.init.as_ref().filter(|init| init.still_lives()).map(|init| init.pid);
    let below: BTreeSet<i32> = first
        .map(|init| descendants(&table, init))
        .unwrap_or_default()
        .iter()
        .map(|entry| entry.pid)
        .collect();
    table.retain(|entry| {
        // Where sessions are not told (macOS) the leader's group is all there is to go by.
        let session =
            if entry.session == 0 { leader != 0 && entry.group == leader } else { entry.session == shim.pid };
        let ours = (session && !reused)
            || grouped.contains(&entry.pid)
            || below.contains(&entry.pid)
            || Some(entry.pid) == first;
        ours && !entry.zombie && entry.pid != shim.pid
    });
    table
}
