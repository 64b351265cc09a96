//! One daemon of a role on one state directory: a lock on a file, which the kernel lets go of whatever happens to the process,
//! with the holder's pid inside.
//!
//! Who only looks takes it shared, for an instant. So two that look do not see each other, and a daemon that starts in that
//! instant can tell them from another daemon, and tries again. A second lock of a kind that can be asked about without being
//! taken (a record lock) would do without, and be worse: daemons of the version before do not hold it, where both kinds are
//! one (macOS, NFS) a daemon would stand in its own way, and a record lock is lost when anything in the process closes the file.
//! /proc/locks tells neither of other PID namespaces nor, on overlayfs and btrfs, of a file that `stat` would know again.

use super::DaemonError;
use crate::process::Identity;
use crate::shutdown::DRAIN_MAX;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long those who only look may keep a daemon from its lock. Each takes some microseconds.
const LOOKERS_MAX: Duration = Duration::from_secs(1);
/// Between two tries meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(1);
/// How long a daemon may take to be gone: a drain, its workers' grace, and a little.
const GONE_MAX: Duration = DRAIN_MAX.saturating_add(Duration::from_secs(20));

/// The pid inside is for messages, and for those who wait for the holder's end.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    pub fn take(path: &Path, role: &'static str) -> Result<Self, DaemonError> {
        let opening = |source| DaemonError::OpenLock { path: path.to_owned(), source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(opening)?;
        let begun = Instant::now();
        while let Err(error) = flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(opening(error.into()));
            }
            if begun.elapsed() > LOOKERS_MAX || is_held(&file) {
                let mut holder = String::new();
                // Only a courtesy: an unreadable pid leaves the message without one.
                let _ = file.take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
                let directory = path.parent().unwrap_or(path).to_owned();
                return Err(DaemonError::Locked { role, holder, path: directory });
            }
            std::thread::sleep(TRY_EVERY);
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(opening)?;
        writeln!(file, "{}", std::process::id()).map_err(opening)?;
        Ok(Lock { file })
    }

    /// Keeps it until the process is no more.
    pub fn for_life(self) {
        std::mem::forget(self.file);
    }
}

/// Whether a daemon has it. A look of somebody else's is none.
fn is_held(file: &File) -> bool {
    let looked = flock(file.as_fd(), FlockOperation::NonBlockingLockShared);
    // Fails only where it was not taken.
    let _ = flock(file.as_fd(), FlockOperation::Unlock);
    looked == Err(Errno::WOULDBLOCK)
}

/// Whether a daemon of a role runs on a state directory.
pub fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| is_held(&file))
}

/// The pid that the last holder has written.
pub fn holders_pid(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The daemon that has a lock. None where nobody has it, or who had it has just ended.
pub fn holder(path: &Path) -> Option<Identity> {
    if is_locked(path) { Identity::of(holders_pid(path)?) } else { None }
}

/// Waits for a daemon's end. Not for its lock: the next one may take that at once, and waiting would be waiting for that one.
pub async fn gone(daemon: Identity) -> io::Result<()> {
    let pid = daemon.pid;
    match tokio::task::spawn_blocking(move || daemon.ends_within(GONE_MAX)).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("pid {pid} was still there after {} s", GONE_MAX.as_secs()),
        )),
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_second_daemon_on_one_state_directory_is_refused_and_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queen.lock");
        assert!(!is_locked(&path) && holder(&path).is_none());
        let first = Lock::take(&path, "queen").unwrap();
        let refused = Lock::take(&path, "queen").unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(is_locked(&path));
        assert_eq!(holder(&path), Identity::of_this_process());
        drop(first);
        assert!(!is_locked(&path) && holder(&path).is_none());
        Lock::take(&path, "queen").unwrap();
    }

    #[test]
    fn those_who_look_neither_see_each_other_nor_keep_a_daemon_from_starting() {
        const STARTS: usize = 500;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hive.lock");
        File::create(&path).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        is_locked(&path);
                    }
                });
            }
            let seen = (0..STARTS).filter(|_| is_locked(&path)).count();
            let refused = (0..STARTS).filter(|_| Lock::take(&path, "hive").is_err()).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!((seen, refused), (0, 0));
        });
    }
}
