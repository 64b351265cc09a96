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

/// How long those who only look, or what is left of the daemon before, may keep one from its lock. Each takes some
/// microseconds.
const GIVEN_UP_MAX: Duration = Duration::from_secs(1);
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
            // One that has just ended may have left it, for a moment, to a child that was not yet itself.
            if begun.elapsed() > GIVEN_UP_MAX || is_held(&file) && last_holder(path).is_some() {
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
    if is_locked(path) { last_holder(path) } else { None }
}

/// Who has written its pid last, if it lives.
fn last_holder(path: &Path) -> Option<Identity> {
    Identity::of(holders_pid(path)?).filter(Identity::still_lives)
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
