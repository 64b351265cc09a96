//! A control group of version 2 for one tree: the kernel's own list of who belongs to it, whatever sessions, groups and
//! parents they have, and one word that ends them all. Needs a hierarchy that we may write: root, or a delegated subtree.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use sha2::{Digest, Sha256};

/// Groups made inside by the tree itself, one within the other.
const DEPTH_MAX: usize = 32;
/// Where the kernel cannot end a group by one word (before 5.14): how often its members are killed one by one.
const ROUNDS_MAX: usize = 1000;
/// A group may be busy for a moment after it has emptied, of which the kernel does not tell.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What all processes of a tree may take together, where the node has the controllers for it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub processes: Option<u32>,
    pub memory_bytes: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
    /// Open for joining; not when it was found again.
    procs: Option<File>,
}

impl Cgroup {
    /// Makes the group of the tree recorded at `record`, and sees that a process can join it.
    pub(super) fn make(record: &Path, limits: Limits) -> Result<Cgroup, String> {
        let parent = own()?;
        let path = parent.join(name(record));
        let cgroup = Cgroup { path, procs: None };
        let mut made = cgroup.create();
        if made.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
            // By this name it was the same tree's before, whose shim was killed and whose record is gone.
            cgroup.kill();
            cgroup.remove(super::shim::VERIFY_MAX);
            made = cgroup.create();
        }
        made.map_err(|error| format!("making {}: {error}", cgroup.path.display()))?;
        match cgroup.open_and_join(limits) {
            Ok(procs) => Ok(Cgroup { procs: Some(procs), ..cgroup }),
            Err(error) => {
                let _ = std::fs::remove_dir(&cgroup.path);
                Err(format!("joining {}: {error}", cgroup.path.display()))
            }
        }
    }

    /// The one that a record tells of.
    pub(super) fn at(path: PathBuf) -> Cgroup {
        Cgroup { path, procs: None }
    }

    fn create(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&self.path)
    }

    fn open_and_join(&self, limits: Limits) -> io::Result<File> {
        let limit = |file: &str, most: Option<u64>| {
            // Only there where the parent passes the controller on: a limit more, not a condition.
            let _ = most.map(|most| write(&self.path.join(file), &most.to_string()));
        };
        if limits.processes.is_some() || limits.memory_bytes.is_some() {
            // Refused where the parent has processes of its own, and with it the limits.
            let control = self.path.with_file_name("cgroup.subtree_control");
            let _ = write(&control, "+pids");
            let _ = write(&control, "+memory");
        }
        limit("pids.max", limits.processes.map(u64::from));
        limit("memory.max", limits.memory_bytes);
        let procs = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(self.path.join("cgroup.procs"))?;
        #[cfg(target_os = "linux")]
        {
            // SAFETY: one write to an open descriptor.
            let joined = unsafe { super::fork::attempt(0, || join(&procs).map_err(|error| (0, error))) };
            joined.map_err(|(_, error)| error)?;
        }
        Ok(procs)
    }

    /// Puts this process into the group, and all it will ever start. Must not allocate.
    #[cfg(target_os = "linux")]
    pub(super) fn join(&self) -> io::Result<()> {
        self.procs.as_ref().map_or(Ok(()), join)
    }

    /// Where a process that is to be started writes itself in.
    pub(super) fn door(&self) -> io::Result<Option<File>> {
        self.procs.as_ref().map(File::try_clone).transpose()
    }

    /// Ends all of it, and of the groups made inside.
    pub(super) fn kill(&self) {
        if write(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for _ in 0..ROUNDS_MAX {
            let members = self.members();
            if members.is_empty() {
                return;
            }
            for pid in members.into_iter().filter_map(Pid::from_raw) {
                // It may have ended since, which is what was wanted.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Who lives in it, as far as this PID namespace has numbers for them.
    pub(super) fn members(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for folder in groups_below(&self.path) {
            let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        pids
    }

    /// Waits until it is empty, and removes it with what was made inside. False: it could not be, in that time.
    pub(super) fn remove(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let changed = File::open(self.path.join("cgroup.events"));
            let mut folders = groups_below(&self.path);
            // Innermost first: a group with a group inside cannot be removed.
            folders.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));
            let left = folders.iter().filter_map(|folder| std::fs::remove_dir(folder).err());
            if left.filter(|error| error.kind() != ErrorKind::NotFound).count() == 0 {
                return true;
            }
            let time = until.saturating_duration_since(Instant::now());
            if time.is_zero() {
                return false;
            }
            match changed {
                Ok(mut events) => wait_for_change(&mut events, time),
                Err(error) if error.kind() == ErrorKind::NotFound => return true,
                Err(_) => return false,
            }
        }
    }
}

/// Until the group has emptied, as far as the kernel tells of it, or it is time to look again.
fn wait_for_change(events: &mut File, limit: Duration) {
    // What was read before is not a change; the last member may have gone since, hence the second look.
    let _ = events.read_to_string(&mut String::new());
    let limit = limit.min(LOOK_AGAIN);
    let timeout = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
    // Interrupted or timed out: who asked looks again.
    let _ = poll(&mut [PollFd::new(&*events, PollFlags::PRI)], Some(&timeout));
}

/// Must not allocate.
pub(super) fn join(procs: &File) -> io::Result<()> {
    // Zero is whoever writes.
    (&mut &*procs).write_all(b"0")
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// This folder and those below, not following links.
fn groups_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = waiting.pop() {
        let inner = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        if depth < DEPTH_MAX {
            waiting.extend(inner.map(|entry| (entry.path(), depth + 1)));
        }
        found.push(folder);
    }
    found
}

/// The same for a record in a PID namespace, always, so that one left behind is found; and no other container's.
fn name(record: &Path) -> String {
    let record = std::path::absolute(record).unwrap_or_else(|_| record.to_owned());
    let digest = Sha256::new()
        .chain_update(record.as_os_str().as_encoded_bytes())
        .chain_update(super::platform::boot())
        .finalize();
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("rbee-{hex}")
}

/// The group of this process.
fn own() -> Result<PathBuf, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mount = mount_point(&read("/proc/self/mountinfo"))
        .ok_or("no control groups of version 2 are mounted here")?;
    let groups = read("/proc/self/cgroup");
    let inner = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let inner = inner.ok_or("this process is in no control group of version 2")?;
    let path = mount.join(inner);
    // Seen from inside a container, the group may lie above what is mounted.
    if inner.starts_with("..") || !path.is_dir() {
        return Err(format!("the control group of this process, /{inner}, is not visible here"));
    }
    Ok(path)
}

/// From lines of /proc/self/mountinfo: `id parent device root place options… - kind source options`.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        // A part of the hierarchy mounted by itself does not go with the paths in /proc/self/cgroup.
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_version_2_is_found_among_the_others() {
        let hybrid = "31 30 0:25 / /sys/fs/cgroup/pids rw shared:1 - cgroup cgroup rw,pids\n\
                      41 30 0:35 /part /mnt rw - cgroup2 cgroup rw\n\
                      42 30 0:35 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 cgroup rw\n";
        assert_eq!(mount_point(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point("31 30 0:25 / / rw - ext4 /dev/a rw"), None);
    }

    #[test]
    fn a_record_has_one_name_and_another_has_another() {
        assert_eq!(name(Path::new("/a/b.json")), name(Path::new("/a/b.json")));
        assert_ne!(name(Path::new("/a/b.json")), name(Path::new("/a/c.json")));
    }
}
