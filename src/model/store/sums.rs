//! The sums of many files, side by side: one thread a file, as many as there are cores, and one bar over all bytes.

use crate::job::progress::{Events, Meter};
use crate::wire::Failure;
use crate::wire::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const READ_BYTES: usize = 1 << 20;
/// How often the bar is moved.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Who is told, and who may stop it.
#[derive(Clone, Copy)]
pub(super) struct Hashing<'a> {
    pub label: &'a str,
    pub events: Events<'a>,
    pub cancel: &'a CancellationToken,
}

struct Work {
    files: Vec<(PathBuf, u64)>,
    next: AtomicUsize,
    done_bytes: AtomicU64,
    cancel: CancellationToken,
}

/// The sum of each file, in order; `None` when cancelled. A file that cannot be read does not keep the others from it.
pub(super) async fn digests(
    files: Vec<(PathBuf, u64)>,
    hashing: Hashing<'_>,
) -> Result<Option<Vec<io::Result<Digest>>>, Failure> {
    let total: u64 = files.iter().map(|(_, size)| size).sum();
    let count = files.len();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(count);
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = Arc::new(Work { files, next, done_bytes, cancel: hashing.cancel.clone() });
    let mut running = JoinSet::new();
    for _ in 0..threads {
        let work = work.clone();
        running.spawn_blocking(move || work.hash_what_is_left());
    }
    let mut meter = Meter::of("verify", hashing.events, hashing.label, 0, Some(total));
    let mut tick = tokio::time::interval(TELL_EVERY);
    let mut digests: Vec<Option<io::Result<Digest>>> = std::iter::repeat_with(|| None).take(count).collect();
    loop {
        tokio::select! {
            joined = running.join_next() => match joined {
                None => break,
                Some(Err(error)) => return Err(Failure::internal(&error)),
                Some(Ok(hashed)) => for (at, digest) in hashed {
                    digests[at] = Some(digest);
                },
            },
            _ = tick.tick() => meter.at(work.done_bytes.load(Ordering::Relaxed).min(total)),
        }
    }
    if hashing.cancel.is_cancelled() {
        return Ok(None);
    }
    meter.at(total);
    Ok(digests.into_iter().collect())
}

impl Work {
    fn hash_what_is_left(&self) -> Vec<(usize, io::Result<Digest>)> {
        let mut hashed = Vec::new();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some((path, _)) = self.files.get(at) else { return hashed };
            match self.hash(path).transpose() {
                Some(digest) => hashed.push((at, digest)),
                None => return hashed,
            }
        }
    }

    /// `None` when cancelled.
    fn hash(&self, path: &Path) -> io::Result<Option<Digest>> {
        let mut file = open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        while !self.cancel.is_cancelled() {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Some(Digest::of(hasher))),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    self.done_bytes.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Never waits: a pipe that took a model's place would have us wait for a writer.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    #[cfg(target_os = "linux")]
    {
        // Advice: a system that does not take it reads as well.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
    }
    Ok(file)
}
