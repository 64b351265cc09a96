//! Which process is meant, beyond a number the kernel hands out again.

use super::platform;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// How long one wait for an end is: after it the process is looked at again, by more than its number.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Between two looks where the system has nothing to wait on (a filter that forbids it).
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A process named for as long as records of it may lie around: a pid alone is reused, a pid with its start time in one
/// boot of one PID namespace is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// When it started, in the kernel's own unit: only ever compared.
    pub start: u64,
    /// The boot, and on Linux the PID namespace in it.
    pub boot: String,
}

impl Identity {
    pub fn of(pid: i32) -> Option<Identity> {
        let entry = platform::process(pid)?;
        Some(Identity { pid, start: entry.start, boot: platform::boot() })
    }

    pub fn of_this_process() -> Option<Identity> {
        Identity::of(i32::try_from(std::process::id()).ok()?)
    }

    /// False for a zombie too: it has ended, only nobody has asked yet.
    pub fn still_lives(&self) -> bool {
        self.boot == platform::boot()
            && platform::process(self.pid).is_some_and(|now| now.start == self.start && !now.zombie)
    }

    /// Waits for its end, and tells whether that came in time. Blocks; woken by the system, not by a clock.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while self.still_lives() {
            let Some(left) = limit.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                return false;
            };
            let waited = Instant::now();
            platform::wait_for_end(&[self.pid], left.min(WAIT_MAX));
            if waited.elapsed() < LOOK_EVERY && self.still_lives() {
                std::thread::sleep(LOOK_EVERY.min(left));
            }
        }
        true
    }

    pub(super) fn in_this_boot(&self) -> bool {
        self.boot == platform::boot()
    }
}

/// A row of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    /// Zero where the system does not tell.
    pub session: i32,
    pub start: u64,
    pub zombie: bool,
}

/// Every process below `root`, children before grandchildren, `root` not among them.
pub(super) fn descendants(table: &[Entry], root: i32) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for entry in table.iter().filter(|entry| entry.parent == parent && entry.pid != parent) {
            if found.iter().all(|known| known.pid != entry.pid) {
                found.push(*entry);
                parents.push(entry.pid);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pid: i32, parent: i32) -> Entry {
        Entry { pid, parent, group: 0, session: 0, start: 0, zombie: false }
    }

    #[test]
    fn descendants_are_found_through_generations_and_strangers_are_not() {
        let table = [entry(1, 0), entry(5, 1), entry(6, 5), entry(7, 6), entry(8, 1)];
        let pids: Vec<i32> = descendants(&table, 5).iter().map(|entry| entry.pid).collect();
        assert_eq!(pids, [6, 7]);
        assert!(descendants(&table, 8).is_empty());
    }

    #[test]
    fn a_process_knows_itself_and_not_one_of_another_start_or_boot() {
        let me = Identity::of_this_process().unwrap();
        assert!(me.still_lives());
        assert!(!Identity { start: me.start + 1, ..me.clone() }.still_lives());
        assert!(!Identity { boot: "another".into(), ..me }.still_lives());
    }

    #[test]
    fn the_end_of_a_process_that_is_nobodys_child_here_is_waited_for() {
        assert!(!Identity::of_this_process().unwrap().ends_within(Duration::from_millis(20)));
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(child.id().cast_signed()).unwrap();
        assert!(!identity.ends_within(Duration::ZERO));
        let waiting = std::thread::spawn(move || identity.ends_within(Duration::from_secs(60)));
        // Not reaped while it is waited for: a zombie has ended, too.
        drop(child.stdin.take());
        assert!(waiting.join().unwrap());
        child.wait().unwrap();
    }
}
