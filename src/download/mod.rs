//! One file over HTTP, exactly: over several connections while they help, resumed from the bytes on disk, hashed on the
//! way, and nothing trusted that a server says about what it sends.
//!
//! ```text
//!  plan: which bytes are here, claimed, free
//!    ├─ connection: claims, asks for a part, writes it ─┐
//!    ├─ connection … (more while more bring more)       ├─▶ part: the bytes in any order, a journal of what is there
//!    └─ run: retries, pauses, the bar                   ┘     └─▶ follower: the sum, in order, as bytes come
//! ```
//!
//! Bytes are written only from a 206 for the very part that was asked for, or from a 200 for the whole. A file gets its
//! name when its sum was right, never before.

mod connection;
mod disk;
mod error;
mod part;
mod plan;
mod sums;
mod visit;

pub use error::{DownloadError, check_room, disk_code};
pub use part::{JOURNAL, PART, Part, bytes_of};
pub use sums::check_file;
pub use visit::{Access, Answer, Key, REDIRECTS_MAX, Reach, Visit, refusal};

use crate::http::url::Url;
use crate::job::progress::{Events, Meter};
use crate::wire::digest::Digest;
use crate::wire::failure;
use crate::wire::job::JobEvent;
use connection::Shared;
use part::Next;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sums::{Summing, Sums};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Left free on the disk beside what is fetched.
pub const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// At one file at a time.
pub const CONNECTIONS_MAX: usize = 8;
/// One more connection has to bring this much more, or it was the last.
const GAIN_MIN: f64 = 1.1;
/// Bytes a second at which it is not the connections that are too few. On few, bytes come in their order and are hashed as
/// they come.
const RATE_ENOUGH: f64 = 250e6;
/// How long a number of connections is tried.
const TRIAL: Duration = Duration::from_millis(300);
/// The bar, and looks at how fast it goes.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// An attempt that brought this much was no failure of the network as such: counting starts anew.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;

/// Times and counts; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A first answer, connecting included, where the file can be had elsewhere, too.
    pub hub_give_up: Duration,
    /// Any other answer's head.
    pub head_max: Duration,
    /// No byte for so long.
    pub stall_max: Duration,
    pub attempts_max: u32,
    /// Between attempts, doubling.
    pub pause_first: Duration,
    pub pause_max: Duration,
    /// A server that asks for a longer pause than this is not waited for.
    pub retry_after_max: Duration,
    /// One file.
    pub bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            hub_give_up: Duration::from_secs(3),
            head_max: Duration::from_secs(30),
            stall_max: Duration::from_secs(60),
            attempts_max: 6,
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_millis(3_200),
            retry_after_max: Duration::from_secs(120),
            bytes_max: 4 << 40,
        }
    }
}

impl Limits {
    /// Between an attempt and the next: doubling, and at least what the server asks for.
    pub fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.pause_first.saturating_mul(1 << (attempt - 1).min(16));
        doubled.min(self.pause_max).max(asked.unwrap_or_default())
    }
}

/// What is known of the file before it comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    pub size: Option<u64>,
    pub sum: Option<Sum>,
    /// The caller knows another sum, and will look.
    pub is_checked_after: bool,
}

/// How a file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    Sha256(Digest),
    /// As git names its content; needs the size.
    GitBlob([u8; 20]),
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sum::Sha256(digest) => digest.fmt(f),
            Sum::GitBlob(id) => f.write_str(&hex(id)),
        }
    }
}

impl Expected {
    pub fn sha256(&self) -> Option<Digest> {
        match self.sum {
            Some(Sum::Sha256(digest)) => Some(digest),
            _ => None,
        }
    }

    /// Whether a sum will tell in the end.
    pub fn is_pinned(&self) -> bool {
        self.sum.is_some() || self.is_checked_after
    }
}

/// What to fetch, and who is told.
pub struct Download<'a> {
    pub visit: Visit,
    pub expected: Expected,
    pub label: &'a str,
    /// What narration is filed under.
    pub action: &'static str,
    /// The file can be had elsewhere: an unreachable server is given up quickly and at once.
    pub has_fallback: bool,
    pub limits: &'a Limits,
    pub events: Events<'a>,
}

impl Download<'_> {
    pub fn url(&self) -> &Url {
        &self.visit.url
    }

    /// Opens what an earlier attempt left of what will be `target`.
    pub async fn open(&self, target: &Path) -> Result<Arc<Part>, DownloadError> {
        let (target, expected) = (target.to_owned(), self.expected);
        let open = move || Part::open(&target, expected.size, expected.is_pinned());
        blocking(open).await.map(Arc::new)
    }

    /// Fetches what is missing; the sum of all. Wrong bytes are fetched again once, and then nothing of them is kept.
    pub async fn run(&self, part: &Arc<Part>) -> Result<Digest, DownloadError> {
        let mut was_wrong = false;
        loop {
            let wrong = match (self.fill(part).await, self.expected.sum) {
                (Ok(sums), Some(expected)) if !sums.are(&expected) => sums.wrong(&expected),
                (Err(error @ DownloadError::TooMuch { .. }), Some(_)) => error,
                (Err(error @ DownloadError::TooMuch { .. }), None) => {
                    part.remove();
                    return Err(error);
                }
                (sums, _) => return Ok(sums?.sha256),
            };
            if was_wrong {
                part.remove();
                return Err(wrong);
            }
            was_wrong = true;
            self.warn(format!("the bytes that came are not {}: {wrong}; fetching them again", self.label));
            restart(part).await?;
        }
    }

    /// Forgets what came.
    pub async fn restart(&self, part: &Arc<Part>) -> Result<(), DownloadError> {
        restart(part).await
    }

    fn warn(&self, message: String) {
        (self.events)(JobEvent::warn(self.action, message));
    }

    /// Brings all bytes, and their sum.
    async fn fill(&self, part: &Arc<Part>) -> Result<Sums, DownloadError> {
        let shared = Arc::new(Shared {
            visit: self.visit.clone(),
            expected: self.expected,
            limits: self.limits.clone(),
            part: part.clone(),
            has_fallback: self.has_fallback,
            reached: AtomicBool::new(false),
            heard: Mutex::new(std::time::Instant::now()),
            is_whole_only: AtomicBool::new(false),
            resolved: Mutex::new(None),
        });
        let mut crew = Crew {
            download: self,
            part,
            connections: JoinSet::new(),
            stop: CancellationToken::new(),
            ramp: Ramp::new(part.received.load(Ordering::Relaxed)),
            attempt: 1,
            mark: part.received.load(Ordering::Relaxed),
            pause_end: None,
            shared,
        };
        let follower_stop = CancellationToken::new();
        let mut follower = follow(part.clone(), self.expected, follower_stop.clone());
        let outcome = crew.work(&mut follower).await;
        crew.end().await;
        follower_stop.cancel();
        match outcome {
            Ok(sums) => Ok(sums),
            Err(error) => {
                // It holds the part, which somebody may want to open again.
                if !follower.is_finished() {
                    let _ = follower.await;
                }
                Err(error)
            }
        }
    }
}

/// The sum of all bytes, in their order, as they come.
fn follow(
    part: Arc<Part>,
    expected: Expected,
    stop: CancellationToken,
) -> JoinHandle<Result<Option<Sums>, DownloadError>> {
    tokio::task::spawn_blocking(move || {
        let mut generation = part.generation();
        let (mut at, mut summing) = (0, Summing::new(&expected));
        let mut buffer = Vec::new();
        loop {
            let next = part.follow(at, generation, &mut buffer, || stop.is_cancelled());
            match next.map_err(|source| part.failed(source))? {
                Next::Fresh(pieces) => {
                    for piece in pieces {
                        at += piece.len() as u64;
                        summing.update(&piece);
                    }
                }
                Next::Read(length) => {
                    at += length as u64;
                    summing.update(&buffer[..length]);
                }
                Next::Again(newer) => (generation, at, summing) = (newer, 0, Summing::new(&expected)),
                Next::End => return Ok(Some(summing.sums())),
                Next::Cancelled => return Ok(None),
            }
        }
    })
}

/// The connections of one download, and what has become of them so far.
struct Crew<'a> {
    download: &'a Download<'a>,
    part: &'a Arc<Part>,
    shared: Arc<Shared>,
    connections: JoinSet<Result<(), DownloadError>>,
    stop: CancellationToken,
    ramp: Ramp,
    attempt: u32,
    /// Where the last failure stood.
    mark: u64,
    pause_end: Option<Instant>,
}

impl Crew<'_> {
    async fn work(
        &mut self,
        follower: &mut JoinHandle<Result<Option<Sums>, DownloadError>>,
    ) -> Result<Sums, DownloadError> {
        let download = self.download;
        let mut meter = Meter::new(download.events, download.label, self.received(), self.part.total());
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.hire().await?;
            let pause_end = self.pause_end;
            let pause = async {
                match pause_end {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = download.visit.cancel.cancelled() => return Err(DownloadError::Cancelled),
                sums = &mut *follower => {
                    let sums = sums.map_err(|error| self.part.failed(io::Error::other(error)))??;
                    let sums = sums.ok_or(DownloadError::Cancelled)?;
                    meter.set_total(self.part.total());
                    meter.at(self.received());
                    return Ok(sums);
                }
                Some(ended) = self.connections.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.failed(error).await?,
                    Err(error) => return Err(self.part.failed(io::Error::other(error))),
                },
                () = self.part.lost.notified() => {}
                () = pause => self.pause_end = None,
                _ = looks.tick() => {
                    let received = self.received();
                    self.ramp.look(received);
                    meter.set_total(self.part.total());
                    meter.at(received);
                }
            }
        }
    }

    fn received(&self) -> u64 {
        self.part.received.load(Ordering::Relaxed)
    }

    /// As many as help, while there is something to take.
    async fn hire(&mut self) -> Result<(), DownloadError> {
        let is_whole_only = self.shared.is_whole_only.load(Ordering::Relaxed);
        let most = if is_whole_only { 1 } else { self.ramp.connections };
        // Who has begun a file that comes whole only has to begin it again.
        if is_whole_only && self.connections.is_empty() && self.part.plan(|plan| plan.has_free()) {
            restart(self.part).await?;
        }
        while self.pause_end.is_none()
            && self.connections.len() < most
            && self.part.plan(|plan| plan.has_free())
        {
            self.connections.spawn(connection::work(self.shared.clone(), self.stop.clone()));
        }
        Ok(())
    }

    async fn failed(&mut self, error: DownloadError) -> Result<(), DownloadError> {
        self.part.is_patched.store(true, Ordering::Relaxed);
        let (shared, limits) = (&self.shared, self.download.limits);
        if error.is_an_answer() {
            shared.reached.store(true, Ordering::Relaxed);
        }
        let is_unreachable = self.download.has_fallback && !shared.reached.load(Ordering::Relaxed);
        if !error.may_pass() || is_unreachable {
            return Err(error);
        }
        if matches!(error, DownloadError::Stalled { .. }) && shared.heard().elapsed() >= limits.stall_max {
            return Err(error);
        }
        if error.starts_again() {
            self.end().await;
            self.stop = CancellationToken::new();
            let is_whole_only = matches!(error, DownloadError::NoParts(_));
            self.shared.is_whole_only.store(is_whole_only, Ordering::Relaxed);
            restart(self.part).await?;
            self.mark = 0;
        }
        self.ramp.fall_back(self.received(), error.is_too_much_asked());
        // The others of those that broke together.
        if self.pause_end.is_some() {
            return Ok(());
        }
        if self.received().saturating_sub(self.mark) >= PROGRESS_BYTES_MIN {
            self.attempt = 1;
        }
        self.mark = self.received();
        if self.attempt >= limits.attempts_max {
            return Err(DownloadError::Exhausted { attempts: self.attempt, source: Box::new(error) });
        }
        let asked = error.retry_after();
        if let Some(wait) = asked.filter(|asked| *asked > limits.retry_after_max) {
            return Err(DownloadError::Wait { url: self.download.url().to_string(), wait });
        }
        let pause = limits.pause(self.attempt, asked);
        self.attempt += 1;
        self.pause_end = Some(Instant::now() + pause);
        let why = failure::chain(&error);
        let Download { label, .. } = self.download;
        self.download.warn(format!("{label}: {why}; attempt {}/{}", self.attempt, limits.attempts_max));
        Ok(())
    }

    /// Asks all to end, and waits until they have: what they had received is written then.
    async fn end(&mut self) {
        self.stop.cancel();
        while self.connections.join_next().await.is_some() {}
    }
}

/// How many connections: twice as many as long as that brings more. A fast server is not asked more than it takes, and a
/// line that gives each connection its share is used whole.
struct Ramp {
    connections: usize,
    /// Bytes a second with fewer.
    best: f64,
    since: (u64, Instant),
    is_settled: bool,
}

impl Ramp {
    fn new(received: u64) -> Self {
        Ramp { connections: 1, best: 0.0, since: (received, Instant::now()), is_settled: false }
    }

    fn look(&mut self, received: u64) {
        let (from, at) = self.since;
        if self.is_settled || at.elapsed() < TRIAL || received <= from {
            return;
        }
        let rate = (received - from) as f64 / at.elapsed().as_secs_f64();
        if rate < self.best * GAIN_MIN || rate >= RATE_ENOUGH {
            self.is_settled = true;
            return;
        }
        self.best = rate;
        self.connections = (self.connections * 2).min(CONNECTIONS_MAX);
        self.is_settled = self.connections == CONNECTIONS_MAX;
        self.since = (received, Instant::now());
    }

    /// After a failure one goes ahead. Who is asked too much is left at that.
    fn fall_back(&mut self, received: u64, for_good: bool) {
        *self = Ramp { is_settled: for_good, ..Ramp::new(received) };
    }
}

/// Gives a verified part its name.
pub async fn publish(part: Arc<Part>, target: &Path) -> io::Result<()> {
    let target = target.to_owned();
    tokio::task::spawn_blocking(move || part.publish(&target)).await.map_err(io::Error::other)?
}

async fn restart(part: &Arc<Part>) -> Result<(), DownloadError> {
    let part = part.clone();
    blocking(move || part.restart()).await
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DownloadError> + Send + 'static,
) -> Result<T, DownloadError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(DownloadError::Write { path: Path::new("").to_owned(), source: io::Error::other(error) })
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
