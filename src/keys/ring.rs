//! A running daemon's view of its keys. Nothing watches the file: whoever asks the daemon for something makes it look, at
//! most once in [`LOOK_EVERY`], and a key that it does not know makes it look at once, so that a new key works from the
//! first request on and a revoked one for a second at most.

use super::{Book, Key, KeyError};
use crate::wire::digest::Digest;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How old a daemon's knowledge of its keys may be.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one file from the next: each change makes a new one.
type Identity = (u64, u64, u64, i64, i64);

#[derive(Debug)]
pub struct Ring {
    state: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    looked: Instant,
    identity: Option<Identity>,
    book: Arc<Book>,
}

impl Ring {
    pub fn open(state: &Path) -> Result<Self, KeyError> {
        let identity = identity(state);
        let book = Arc::new(Book::read(state)?);
        Ok(Ring {
            state: state.to_owned(),
            seen: Mutex::new(Seen { looked: Instant::now(), identity, book }),
        })
    }

    /// The directory it is of.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The keys as they were a moment ago.
    pub fn book(&self) -> Arc<Book> {
        self.look(LOOK_EVERY)
    }

    /// The key of this digest, which may have been made just now.
    pub fn find(&self, sha256: &Digest) -> Option<Key> {
        let known = self.book().find(sha256).cloned();
        known.or_else(|| self.look(Duration::ZERO).find(sha256).cloned())
    }

    /// Comes back when a key is no longer there.
    pub async fn revoked(&self, sha256: &Digest) {
        while self.book().find(sha256).is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self, age_max: Duration) -> Arc<Book> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.looked.elapsed() >= age_max {
            seen.looked = Instant::now();
            // Before the reading: a change in between is then seen the next time.
            let identity = identity(&self.state);
            if identity != seen.identity {
                seen.identity = identity;
                match Book::read(&self.state) {
                    Ok(book) => seen.book = Arc::new(book),
                    // Those known stay: a slip of somebody's editor must neither lock out nor let in.
                    Err(error) => {
                        let reason = crate::wire::failure::chain(&error);
                        tracing::error!(reason, "the keys do not read; going on with those known");
                    }
                }
            }
        }
        seen.book.clone()
    }
}

fn identity(state: &Path) -> Option<Identity> {
    let meta = Book::path(state).metadata().ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    #[test]
    fn a_new_key_is_known_at_once_and_a_revoked_one_soon_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let ring = Ring::open(state.path()).unwrap();
        let secret = Secret::key().unwrap();
        assert_eq!(ring.find(&secret.digest()), None);
        Book::edit(state.path(), |book| book.add(Some("new"), &secret)).unwrap();
        assert_eq!(ring.find(&secret.digest()).unwrap().name, "new");
        Book::edit(state.path(), |book| book.revoke("new")).unwrap();
        assert_eq!(ring.look(Duration::ZERO).find(&secret.digest()), None);
    }

    #[test]
    fn keys_that_no_longer_read_stay_as_they_were() {
        let state = tempfile::tempdir().unwrap();
        let secret = Secret::key().unwrap();
        Book::edit(state.path(), |book| book.add(None, &secret)).unwrap();
        let ring = Ring::open(state.path()).unwrap();
        std::fs::write(Book::path(state.path()), "{").unwrap();
        assert!(ring.look(Duration::ZERO).find(&secret.digest()).is_some());
        assert!(Ring::open(state.path()).is_err(), "but nobody starts with them");
    }
}
