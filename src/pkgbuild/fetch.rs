//! A recipe's sources, brought here and verified.
//!
//! Downloads with sums lie in the cache by address and sums, so that a changed recipe never meets an old file, and are
//! verified again whenever they are used. What has no sum, and what is the recipe's own, is kept no longer than the build.
//!
//! ```text
//!  sources/<key>-<name>                           verified
//!          <key>-<name>.rbee-part, .rbee-journal  on its way; swept when nobody went on with it for a day
//!          <key>.git                              a mirror of a repository
//! ```

use super::Origin;
use super::checksum::{self, Verdict, hex};
use super::errand::Errands;
use super::git;
use super::source::{Place, Source};
use super::trust::Trusted;
use super::unpack::UnpackLimits;
use crate::download::{self, Access, Download, DownloadError, Expected, JOURNAL, PART, Part, Visit};
use crate::http::url::Url;
use crate::job::progress::{Events, size};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::OwnedMutexGuard;

pub(super) const ACTION: &str = "sources";
const KEY_BYTES: usize = 10;
/// One source.
const SOURCE_BYTES_MAX: u64 = 16 << 30;
/// A part that nobody went on with for so long is removed.
const PART_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How much one build's sources may be, and how patient to be.
#[derive(Debug, Clone)]
pub struct Limits {
    pub download: download::Limits,
    pub unpacked: UnpackLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            download: download::Limits { bytes_max: SOURCE_BYTES_MAX, ..download::Limits::default() },
            unpacked: UnpackLimits::default(),
        }
    }
}

/// What a fetch works with.
pub struct FetchOrder<'a> {
    /// Of the build, in names of trees.
    pub id: &'a str,
    /// Kept between builds.
    pub cache: &'a Path,
    /// Of this build alone, removed by its owner, or by a shim when there is none left. `fetched/` in it is ours.
    pub work: &'a Path,
    pub origin: &'a dyn Origin,
    pub trusted: &'a Trusted,
    pub limits: &'a Limits,
    /// The environment, of which helpers are given what they need.
    pub env: &'a [(String, String)],
    pub errands: Errands<'a>,
}

/// A source that is here and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// What it is called in `$srcdir`.
    pub name: String,
    pub kept: Kept,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    File(PathBuf),
    /// A commit in a mirror.
    Git {
        mirror: PathBuf,
        commit: String,
    },
}

/// Why there is no result.
#[derive(Debug)]
pub enum Stop {
    Cancelled(Receipt),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

/// Brings all of them here. A cancel leaves what is verified, and parts that a later fetch may go on with.
pub async fn fetch(
    sources: &[Source],
    order: &FetchOrder<'_>,
    events: Events<'_>,
) -> Result<Vec<Fetched>, Stop> {
    let warnings = order.trusted.check(sources).map_err(Failure::from)?;
    warnings.into_iter().for_each(|warning| events(JobEvent::warn(ACTION, warning)));
    for folder in [order.cache, &order.fetched()] {
        std::fs::create_dir_all(folder).map_err(|error| writing(folder, &error))?;
    }
    let mut all = Vec::with_capacity(sources.len());
    for source in sources {
        let errand = Errand { order, events, source };
        let kept = match &source.place {
            Place::Local => errand.local().await?,
            Place::File(path) => errand.copy(path).await?,
            Place::Http(url) if source.sums.is_empty() => errand.unverified(url).await?,
            Place::Http(url) => errand.cached(url).await?,
            Place::Git(wanted) => git::fetch(wanted, source, order, events).await?,
        };
        all.push(Fetched { name: source.name.clone(), kept });
    }
    Ok(all)
}

impl FetchOrder<'_> {
    pub(super) fn fetched(&self) -> PathBuf {
        self.work.join("fetched")
    }

    pub(super) fn cancelled(&self) -> bool {
        self.errands.cancel.is_cancelled()
    }
}

struct Errand<'a> {
    order: &'a FetchOrder<'a>,
    events: Events<'a>,
    source: &'a Source,
}

impl Errand<'_> {
    fn tell(&self, message: String) {
        (self.events)(JobEvent::narrate(ACTION, message));
    }

    /// A file of the recipe.
    async fn local(&self) -> Result<Kept, Stop> {
        let target = self.order.fetched().join(&self.source.name);
        let brought = self.order.origin.file(&self.source.name, &target);
        match self.order.errands.cancel.run_until_cancelled(brought).await {
            None => return Err(cancelled()),
            Some(brought) => brought?,
        }
        self.verified(target).await
    }

    async fn copy(&self, path: &Path) -> Result<Kept, Stop> {
        let target = self.order.fetched().join(&self.source.name);
        let (from, to) = (path.to_owned(), target.clone());
        let copied = tokio::task::spawn_blocking(move || match from.metadata()?.is_file() {
            true => std::fs::copy(&from, &to),
            false => Err(io::Error::other("not a file")),
        });
        copied.await.map_err(|error| Failure::internal(&error))?.map_err(|error| {
            Failure::new(
                Code::NotFound,
                format!("fetching {}: copying `{}`: {error}", self.source.name, path.display()),
            )
        })?;
        self.verified(target).await
    }

    async fn verified(&self, path: PathBuf) -> Result<Kept, Stop> {
        match self.verify(&path).await? {
            Verdict::Right => Ok(Kept::File(path)),
            Verdict::Cancelled => Err(cancelled()),
            Verdict::Wrong(mismatch) => {
                let _ = std::fs::remove_file(&path);
                Err(Failure::from(mismatch).into())
            }
        }
    }

    async fn verify(&self, path: &Path) -> Result<Verdict, Failure> {
        verify(self.source, path, self.order).await
    }

    /// There is nothing to know the bytes by, so they are fetched for every build, as they are then.
    async fn unverified(&self, url: &Url) -> Result<Kept, Stop> {
        let target = self.order.fetched().join(&self.source.name);
        (self.events)(JobEvent::warn(
            ACTION,
            format!("{} has no sum: it is taken as {} sends it today", self.source.name, url.origin()),
        ));
        // Not beside it: another source may have any name.
        let parts = self.order.work.join("parts");
        std::fs::create_dir_all(&parts).map_err(|error| writing(&parts, &error))?;
        let download = self.download(url);
        let part = self.open(&download, &parts.join(&self.source.name)).await?;
        self.run(&download, &part).await?;
        download::publish(part, &target).await.map_err(|error| writing(&target, &error))?;
        Ok(Kept::File(target))
    }

    async fn cached(&self, url: &Url) -> Result<Kept, Stop> {
        let sums = self.source.sums.iter().map(|sum| format!("{}={sum}", sum.kind().name()));
        let key = key([format!("{}{}", url.origin(), url.path())].into_iter().chain(sums));
        let target = self.order.cache.join(format!("{key}-{}", self.source.name));
        let turn = turn(&target, self.order, || {
            self.tell(format!("{} is being fetched already; waiting for it", self.source.name));
        });
        let _turn = turn.await?;
        if target.exists() {
            match self.verify(&target).await? {
                Verdict::Right => {
                    self.tell(format!("{} is there already, verified", self.source.name));
                    return Ok(Kept::File(target));
                }
                Verdict::Cancelled => return Err(cancelled()),
                Verdict::Wrong(_) => {
                    let message = format!("{} is not what was stored; fetching it again", self.source.name);
                    (self.events)(JobEvent::warn(ACTION, message));
                    std::fs::remove_file(&target).map_err(|error| writing(&target, &error))?;
                }
            }
        }
        let download = self.download(url);
        let part = self.open(&download, &target).await?;
        loop {
            match part.bytes() > 0 {
                true => self.tell(format!("fetching the rest of {} from {url}", self.source.name)),
                false => self.tell(format!("fetching {} from {url}", self.source.name)),
            }
            if let Err(stop) = self.run(&download, &part).await {
                part.remove_if_empty();
                return Err(stop);
            }
            match self.verify(part.path()).await? {
                Verdict::Right => break,
                Verdict::Cancelled => return Err(cancelled()),
                // Two parts that do not fit, perhaps: the whole may be right.
                Verdict::Wrong(_) if part.is_patched.load(Ordering::Relaxed) => {
                    let message =
                        format!("the parts of {} do not make the file; fetching it again", self.source.name);
                    (self.events)(JobEvent::warn(ACTION, message));
                    download.restart(&part).await.map_err(|error| self.failed(&error))?;
                }
                Verdict::Wrong(mismatch) => {
                    part.remove();
                    return Err(Failure::from(mismatch).into());
                }
            }
        }
        let length = part.bytes();
        download::publish(part, &target).await.map_err(|error| writing(&target, &error))?;
        let kinds: Vec<_> = self.source.sums.iter().map(|sum| sum.kind().name()).collect();
        self.tell(format!("{}: {}, {} verified", self.source.name, size(length), kinds.join(" and ")));
        Ok(Kept::File(target))
    }

    fn download(&self, url: &Url) -> Download<'_> {
        let is_pinned = self.source.is_pinned();
        Download {
            visit: Visit {
                url: url.clone(),
                access: Access::Open,
                reach: Arc::new(self.order.trusted.reach()),
                may_be_plain: is_pinned,
                cancel: self.order.errands.cancel.clone(),
            },
            expected: Expected { size: None, sum: None, is_checked_after: is_pinned },
            label: &self.source.name,
            action: ACTION,
            has_fallback: false,
            limits: &self.order.limits.download,
            events: self.events,
        }
    }

    async fn open(&self, download: &Download<'_>, target: &Path) -> Result<Arc<Part>, Failure> {
        download.open(target).await.map_err(|error| self.failed(&error))
    }

    async fn run(&self, download: &Download<'_>, part: &Arc<Part>) -> Result<(), Stop> {
        match download.run(part).await {
            Ok(_) => Ok(()),
            Err(DownloadError::Cancelled) => {
                self.tell(format!(
                    "{} of {} are kept for the next time",
                    size(part.bytes()),
                    self.source.name
                ));
                Err(cancelled())
            }
            Err(error) => Err(self.failed(&error).into()),
        }
    }

    fn failed(&self, error: &DownloadError) -> Failure {
        error.failure(&self.source.name)
    }
}

/// Reads the file off the runtime's threads.
pub(super) async fn verify(source: &Source, path: &Path, order: &FetchOrder<'_>) -> Result<Verdict, Failure> {
    let (name, sums, file) = (source.name.clone(), source.sums.clone(), path.to_owned());
    let token = order.errands.cancel.clone();
    let verdict = tokio::task::spawn_blocking(move || checksum::verify(&name, &file, &sums, &token)).await;
    verdict
        .map_err(|error| Failure::internal(&error))?
        .map_err(|error| Failure::new(Code::Internal, format!("reading `{}`: {error}", path.display())))
}

pub(super) fn cancelled() -> Stop {
    Stop::Cancelled(Receipt::default())
}

pub(super) fn writing(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        download::disk_code(error),
        format!("writing `{}`: {}", path.display(), failure::chain(error)),
    )
}

/// A name made of what a file is known by.
pub(super) fn key(parts: impl IntoIterator<Item = String>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update(b"\n");
    }
    hex(&hasher.finalize()[..KEY_BYTES])
}

/// Waits until nobody else in this process is at `path`; there is one hive a cache.
pub(super) async fn turn(
    path: &Path,
    order: &FetchOrder<'_>,
    waits: impl FnOnce(),
) -> Result<OwnedMutexGuard<()>, Stop> {
    static TURNS: OnceLock<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>> = OnceLock::new();
    let lock = {
        let mut turns = TURNS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is not at it any more holds no clone.
        turns.retain(|_, lock| Arc::strong_count(lock) > 1);
        turns.entry(path.to_owned()).or_default().clone()
    };
    if let Ok(turn) = lock.clone().try_lock_owned() {
        return Ok(turn);
    }
    waits();
    order.errands.cancel.run_until_cancelled(lock.lock_owned()).await.ok_or_else(cancelled)
}

/// Removes parts that nobody went on with. For the start of a hive: nothing is being fetched then.
pub fn sweep(cache: &Path) {
    let Ok(entries) = cache.read_dir() else { return };
    let is_old = |modified: io::Result<SystemTime>| {
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= PART_AGE_MAX))
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let Ok(meta) = path.symlink_metadata() else { continue };
        let swept = match extension {
            PART | JOURNAL if meta.is_file() && is_old(meta.modified()) => std::fs::remove_file(&path),
            // A mirror that was never finished cannot be gone on with.
            git::UNFINISHED if meta.is_dir() => crate::process::remove_tree(&path).map(|_| ()),
            _ => Ok(()),
        };
        if let Err(error) = swept {
            tracing::warn!(path = %path.display(), %error, "an unfinished download could not be removed");
        }
    }
}
