//! A file on its way: `<digest>.incomplete`, hashed as it grows, which becomes the file only after its bytes were verified.

use super::digest::Digest;
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

const READ_BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum PartialError {
    #[error("`{0}` is being written by another program; wait for it, or end it")]
    Busy(PathBuf),
    #[error("writing `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

/// The growing file. Locked for one writer, as far as the file system knows locks; the sum decides in any case.
/// Disks are slow and sums are work: both happen off the runtime's threads.
#[derive(Clone)]
pub(super) struct Partial {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    file: File,
    length: u64,
    hasher: Sha256,
}

impl Partial {
    /// Opens what an earlier attempt left, if anything, and hashes it; `None` when cancelled meanwhile.
    pub async fn open(path: PathBuf, cancel: &CancellationToken) -> Result<Option<Self>, PartialError> {
        let cancel = cancel.clone();
        blocking(&path.clone(), move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
            // Any other error is a file system without locks: see above.
            if lock == Err(rustix::io::Errno::WOULDBLOCK) {
                return Ok(Err(PartialError::Busy(path)));
            }
            let mut inner = Inner { file, length: 0, hasher: Sha256::new() };
            let mut buffer = vec![0; READ_BUFFER_BYTES];
            while !cancel.is_cancelled() {
                match inner.file.read(&mut buffer)? {
                    0 => return Ok(Ok(Some(Partial { path, inner: Arc::new(Mutex::new(inner)) }))),
                    count => inner.count(&buffer[..count]),
                }
            }
            Ok(Ok(None))
        })
        .await?
    }

    pub fn length(&self) -> u64 {
        self.inner().length
    }

    pub fn digest(&self) -> Digest {
        Digest::of(self.inner().hasher.clone())
    }

    pub async fn append(&self, bytes: Vec<u8>) -> Result<(), PartialError> {
        let partial = self.clone();
        blocking(&self.path, move || {
            let mut inner = partial.inner();
            inner.file.write_all(&bytes)?;
            inner.count(&bytes);
            Ok(())
        })
        .await
    }

    /// Starts again from nothing.
    pub async fn clear(&self) -> Result<(), PartialError> {
        let partial = self.clone();
        blocking(&self.path, move || {
            let mut inner = partial.inner();
            inner.file.set_len(0)?;
            inner.file.seek(SeekFrom::Start(0))?;
            inner.length = 0;
            inner.hasher = Sha256::new();
            Ok(())
        })
        .await
    }

    /// Makes the bytes durable and gives them their name. The caller has verified them.
    pub async fn publish(self, target: &Path) -> Result<(), PartialError> {
        let target = target.to_owned();
        let path = self.path.clone();
        blocking(&path, move || {
            self.inner().file.sync_all()?;
            publish(&self.path, &target)
        })
        .await
    }

    /// Takes away the trace of an attempt that brought nothing.
    pub fn remove_if_empty(self) {
        if self.length() == 0 {
            self.remove();
        }
    }

    pub fn remove(self) {
        // What cannot be removed is overwritten by the next attempt.
        let _ = std::fs::remove_file(&self.path);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
    }
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, PartialError> {
    let failed = |source| PartialError::Write { path: path.to_owned(), source };
    tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.into()))?.map_err(failed)
}

/// Renames a synced file and makes its new name durable.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// The sum of a whole file. Blocks; `None` when cancelled.
pub(super) fn digest_of(path: &Path, cancel: &CancellationToken) -> io::Result<Option<Digest>> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    while !cancel.is_cancelled() {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(Digest::of(hasher))),
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(None)
}
