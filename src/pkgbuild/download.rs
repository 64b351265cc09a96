//! One source over HTTP: resumed where that is sound, through redirects that stay encrypted and public, bounded in size.
//!
//! How long the file is, the server says, and how true its bytes are, the caller's sums. A part is gone on with only if
//! it is of the same file: by the server's own strong tag (`If-Range`), or because a sum will tell in the end.

use super::trust::Trusted;
use super::unpack::UnpackLimits;
use crate::http::client::{self, ClientError, Target};
use crate::http::range::content_range;
use crate::http::url::{BadUrl, Url};
use crate::job::progress::{Events, Meter, size};
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure, failure};
use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE,
    LOCATION, RANGE, RETRY_AFTER, USER_AGENT,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::fs::FlockOperation;
use serde_json::json;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub const REDIRECTS_MAX: usize = 5;
/// An attempt that brought this much was no failure of the network as such: counting starts anew.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;
/// Written to disk at once.
const WRITE_BYTES: usize = 1 << 20;
/// Left free on the disk beside what is fetched.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
const TAG_BYTES_MAX: u64 = 4 << 10;

/// Times and counts; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// An answer's head, connecting included.
    pub head_max: Duration,
    /// No byte for so long.
    pub stall_max: Duration,
    pub attempts_max: u32,
    /// Between attempts, doubling.
    pub pause_first: Duration,
    pub pause_max: Duration,
    /// A server that asks for a longer pause than this is not waited for.
    pub retry_after_max: Duration,
    /// One source.
    pub bytes_max: u64,
    pub unpacked: UnpackLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            head_max: Duration::from_secs(30),
            stall_max: Duration::from_secs(60),
            attempts_max: 6,
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_millis(3_200),
            retry_after_max: Duration::from_secs(120),
            bytes_max: 16 << 30,
            unpacked: UnpackLimits::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("asking {origin}")]
    Ask { origin: String, source: ClientError },
    #[error("{origin} gave no answer within {} s", limit.as_secs_f32())]
    NoAnswer { origin: String, limit: Duration },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16, retry_after: Option<Duration> },
    #[error("{url} asks to wait {} s before it is asked again", wait.as_secs())]
    Wait { url: String, wait: Duration },
    #[error("{url} does not send the part that is missing ({status}); starting again")]
    WrongPart { url: String, status: u16 },
    #[error("{url} is not there ({status})")]
    NotThere { url: String, status: u16 },
    #[error("{url} may not be read ({status})")]
    Denied { url: String, status: u16 },
    #[error("{0} leads on and on: more than {REDIRECTS_MAX} redirects")]
    Redirects(String),
    #[error("{0} redirects without saying where")]
    NoLocation(String),
    #[error("following a redirect of {from}")]
    BadRedirect { from: String, source: BadUrl },
    #[error("{from} redirects to {to}, an address without encryption")]
    Downgrade { from: String, to: String },
    #[error("{url} has {}, at most {} are fetched", size(*told), size(*max))]
    TooBig { url: String, told: u64, max: u64 },
    #[error("{} are needed in {}, {} are free: make room", size(*needed), folder.display(), size(*available))]
    Disk { folder: PathBuf, needed: u64, available: u64 },
    #[error("no byte came for {} s, at {}", limit.as_secs_f32(), size(*at))]
    Stalled { limit: Duration, at: u64 },
    #[error("the connection broke at {}", size(*at))]
    Broken { at: u64, source: Option<hyper::Error> },
    #[error("after {attempts} attempts")]
    Exhausted { attempts: u32, source: Box<DownloadError> },
    #[error("`{0}` is being written by another program; wait for it, or end it")]
    Busy(PathBuf),
    #[error("writing `{path}`")]
    Write { path: PathBuf, source: io::Error },
    #[error("cancelled")]
    Cancelled,
}

impl DownloadError {
    /// Whether another attempt may fare better.
    fn may_pass(&self) -> bool {
        match self {
            DownloadError::Ask { source: ClientError::Private(_) | ClientError::BadTarget(_), .. } => false,
            DownloadError::Ask { .. } | DownloadError::NoAnswer { .. } => true,
            DownloadError::Broken { .. } | DownloadError::WrongPart { .. } => true,
            DownloadError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    pub fn failure(&self, name: &str) -> Failure {
        let innermost = match self {
            DownloadError::Exhausted { source, .. } => source,
            other => other,
        };
        let code = match innermost {
            DownloadError::Stalled { .. } => Code::DownloadTimeout,
            DownloadError::NotThere { .. } => Code::NotFound,
            DownloadError::Denied { .. } | DownloadError::Ask { source: ClientError::Private(_), .. } => {
                Code::Forbidden
            }
            DownloadError::Disk { .. } => Code::InsufficientDisk,
            DownloadError::Write { source, .. } => super::fetch::disk_code(source),
            DownloadError::Busy(_) => Code::Conflict,
            _ => Code::DownloadFailed,
        };
        let failure = Failure::new(code, format!("fetching {name}: {}", failure::chain(self)));
        match innermost {
            DownloadError::Disk { needed, available, .. } => {
                failure.with(json!({"needed": needed, "available": available}))
            }
            _ => failure,
        }
    }
}

/// The growing file, and beside it the tag of what it is a part of.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    /// The tag, and the origin that gave it: elsewhere it means nothing.
    tag: Option<(String, HeaderValue)>,
    buffer: Vec<u8>,
    /// Bytes of more than one answer are in it.
    pub patched: bool,
}

impl Part {
    /// Opens what an earlier attempt left, or begins.
    pub async fn open(path: PathBuf) -> Result<Part, DownloadError> {
        let failed = |source| DownloadError::Write { path: path.clone(), source };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).await.map_err(failed)?;
        // Where the file system has no locks, the sum decides alone.
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(DownloadError::Busy(path));
        }
        let length = file.seek(SeekFrom::End(0)).await.map_err(failed)?;
        let tag = read_tag(&tag_path(&path)).await;
        Ok(Part { path, file, length, tag, buffer: Vec::new(), patched: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn flush(&mut self) -> Result<(), DownloadError> {
        let bytes = std::mem::take(&mut self.buffer);
        let written = async {
            self.file.write_all(&bytes).await?;
            self.file.flush().await
        };
        written.await.map_err(|source| DownloadError::Write { path: self.path.clone(), source })?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub async fn restart(&mut self) -> Result<(), DownloadError> {
        self.buffer.clear();
        self.patched = false;
        let emptied = async {
            self.file.set_len(0).await?;
            self.file.rewind().await
        };
        emptied.await.map_err(|source| DownloadError::Write { path: self.path.clone(), source })?;
        self.length = 0;
        self.set_tag(None).await;
        Ok(())
    }

    /// Notes what the bytes are of, so that a later run can go on. Failing to is no harm: it will start again.
    async fn set_tag(&mut self, tag: Option<(String, HeaderValue)>) {
        let path = tag_path(&self.path);
        let written = match &tag {
            Some((origin, value)) => match value.to_str() {
                Ok(text) => tokio::fs::write(&path, format!("{origin}\n{text}\n")).await,
                Err(_) => Ok(()),
            },
            None => tokio::fs::remove_file(&path).await,
        };
        if let Err(error) =
            written.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        {
            tracing::debug!(%error, "the tag of a partial download could not be noted");
        }
        self.tag = tag;
    }

    /// Makes the bytes durable and gives them their name. The caller has verified them.
    pub async fn publish(self, target: &Path) -> io::Result<()> {
        self.file.sync_all().await?;
        tokio::fs::rename(&self.path, target).await?;
        let _ = tokio::fs::remove_file(tag_path(&self.path)).await;
        match target.parent() {
            Some(folder) => File::open(folder).await?.sync_all().await,
            None => Ok(()),
        }
    }

    pub async fn remove(self) {
        // What cannot be removed is overwritten by the next attempt.
        let _ = tokio::fs::remove_file(&self.path).await;
        let _ = tokio::fs::remove_file(tag_path(&self.path)).await;
    }

    pub async fn remove_if_empty(self) {
        if self.length == 0 {
            self.remove().await;
        }
    }

    pub fn length(&self) -> u64 {
        self.length + self.buffer.len() as u64
    }
}

fn tag_path(part: &Path) -> PathBuf {
    part.with_extension("tag")
}

async fn read_tag(path: &Path) -> Option<(String, HeaderValue)> {
    let length = tokio::fs::metadata(path).await.ok()?.len();
    let text =
        if length <= TAG_BYTES_MAX { tokio::fs::read_to_string(path).await.ok()? } else { return None };
    let (origin, tag) = text.trim_end().split_once('\n')?;
    Some((origin.to_owned(), HeaderValue::from_str(tag).ok()?))
}

/// What to fetch, and who is told.
pub(super) struct Download<'a> {
    pub url: &'a Url,
    pub label: &'a str,
    /// A strong sum will tell whether the bytes are right.
    pub is_pinned: bool,
    pub trusted: &'a Trusted,
    pub limits: &'a Limits,
    pub events: Events<'a>,
    pub cancel: &'a CancellationToken,
}

impl Download<'_> {
    /// Fetches what is missing, to the end that the server tells.
    pub async fn run(&self, part: &mut Part) -> Result<(), DownloadError> {
        let mut meter = Meter::new(self.events, self.label, part.length(), None);
        let mut attempt = 1;
        loop {
            let before = part.length();
            let outcome = self.attempt(part, &mut meter).await;
            part.flush().await?;
            let error = match outcome {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !error.may_pass() {
                return Err(error);
            }
            if part.length().saturating_sub(before) >= PROGRESS_BYTES_MIN {
                attempt = 1;
            }
            if attempt >= self.limits.attempts_max {
                return Err(DownloadError::Exhausted { attempts: attempt, source: Box::new(error) });
            }
            self.pause(attempt, &error).await?;
            attempt += 1;
        }
    }

    async fn pause(&self, attempt: u32, error: &DownloadError) -> Result<(), DownloadError> {
        let doubled = self.limits.pause_first.saturating_mul(1 << (attempt - 1).min(16));
        let mut pause = doubled.min(self.limits.pause_max);
        if let DownloadError::Status { url, retry_after: Some(asked), .. } = error {
            if *asked > self.limits.retry_after_max {
                return Err(DownloadError::Wait { url: url.clone(), wait: *asked });
            }
            pause = pause.max(*asked);
        }
        let why = failure::chain(error);
        let next = attempt + 1;
        let message = format!("{}: {why}; attempt {next}/{}", self.label, self.limits.attempts_max);
        (self.events)(JobEvent::warn(super::fetch::ACTION, message));
        let paused = self.cancel.run_until_cancelled(tokio::time::sleep(pause)).await;
        paused.ok_or(DownloadError::Cancelled)
    }

    /// Fetches once from where we stand to the end.
    async fn attempt(&self, part: &mut Part, meter: &mut Meter<'_>) -> Result<(), DownloadError> {
        if part.length() > 0 && part.tag.is_none() && !self.is_pinned {
            part.restart().await?;
        }
        let start = part.length();
        let (url, answer) = self.ask(part, start).await?;
        let (head, body) = answer.into_parts();
        let tag = head.headers.get(ETAG).filter(|tag| is_strong(tag)).cloned();
        let status = head.status.as_u16();
        let told = match (status, content_range(&head.headers)) {
            (206, Some((from, whole)))
                if from == start && start > 0 && self.is_same(part, &url, tag.as_ref()) =>
            {
                part.patched = true;
                Some(whole)
            }
            // The whole file, though a part was asked for.
            (200, _) => {
                if start > 0 {
                    part.restart().await?;
                }
                part.set_tag(tag.map(|tag| (url.origin().to_owned(), tag))).await;
                number(&head.headers, CONTENT_LENGTH)
            }
            // All of it was there, and a sum will tell whether it is right.
            (416, _) if start > 0 && self.is_pinned && whole(&head.headers) == Some(start) => {
                part.patched = true;
                return Ok(());
            }
            // A part, but not the one that was asked for; or there is no such part.
            (206 | 416, _) => {
                part.restart().await?;
                return Err(DownloadError::WrongPart { url: url.to_string(), status });
            }
            _ => return Err(refusal(&url, status, &head.headers)),
        };
        self.check_room(part, &url, told)?;
        meter.set_total(told);
        meter.at(part.length());
        self.receive(part, meter, &url, body, told).await
    }

    /// Whether a part that comes from `url` with this tag is of the file that we have the beginning of.
    fn is_same(&self, part: &Part, url: &Url, tag: Option<&HeaderValue>) -> bool {
        match (&part.tag, tag) {
            (Some((origin, ours)), Some(theirs)) if origin == url.origin() => ours == theirs,
            _ => self.is_pinned,
        }
    }

    fn check_room(&self, part: &Part, url: &Url, told: Option<u64>) -> Result<(), DownloadError> {
        let Some(told) = told else { return Ok(()) };
        let max = self.limits.bytes_max;
        if told > max {
            return Err(DownloadError::TooBig { url: url.to_string(), told, max });
        }
        let folder = part.path.parent().unwrap_or(Path::new("."));
        // A file system that does not tell may still have room.
        let Ok(fs) = rustix::fs::statvfs(folder) else { return Ok(()) };
        let available = fs.f_bavail.saturating_mul(fs.f_frsize);
        let needed = told.saturating_sub(part.length()).saturating_add(DISK_RESERVE_BYTES);
        if available < needed {
            return Err(DownloadError::Disk { folder: folder.to_owned(), needed, available });
        }
        Ok(())
    }

    /// Asks for the bytes from `start` on, through all redirects.
    async fn ask(&self, part: &Part, start: u64) -> Result<(Url, http::Response<Incoming>), DownloadError> {
        let mut headers = HeaderMap::new();
        // Ranges and sums are of the bytes themselves.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if start > 0 {
            let range = HeaderValue::from_str(&format!("bytes={start}-"));
            headers.insert(RANGE, range.expect("digits are a header's value"));
        }
        let visit = Visit {
            trusted: self.trusted,
            may_be_plain: self.is_pinned,
            head_max: self.limits.head_max,
            cancel: self.cancel,
        };
        visit
            .follow(self.url, |url| {
                let mut headers = headers.clone();
                if let Some((_, tag)) =
                    part.tag.as_ref().filter(|(origin, _)| start > 0 && origin == url.origin())
                {
                    headers.insert(IF_RANGE, tag.clone());
                }
                headers
            })
            .await
    }

    async fn receive(
        &self,
        part: &mut Part,
        meter: &mut Meter<'_>,
        url: &Url,
        mut body: Incoming,
        told: Option<u64>,
    ) -> Result<(), DownloadError> {
        let max = told.unwrap_or(self.limits.bytes_max);
        loop {
            let at = part.length();
            let next = self.cancel.run_until_cancelled(body.frame());
            let frame = tokio::time::timeout(self.limits.stall_max, next)
                .await
                .map_err(|_| DownloadError::Stalled { limit: self.limits.stall_max, at })?
                .ok_or(DownloadError::Cancelled)?;
            let data = match frame {
                None if told.is_none_or(|told| told == at) => {
                    meter.set_total(Some(at));
                    meter.at(at);
                    return Ok(());
                }
                None => return Err(DownloadError::Broken { at, source: None }),
                Some(Err(error)) => return Err(DownloadError::Broken { at, source: Some(error) }),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            let reached = at + data.len() as u64;
            if reached > max {
                return Err(DownloadError::TooBig { url: url.to_string(), told: reached, max });
            }
            part.buffer.extend_from_slice(&data);
            meter.at(reached);
            if part.buffer.len() >= WRITE_BYTES {
                part.flush().await?;
            }
        }
    }
}

/// The rules of the road for what a recipe names.
pub(super) struct Visit<'a> {
    pub trusted: &'a Trusted,
    /// A sum pins the bytes, so that they may come unencrypted.
    pub may_be_plain: bool,
    pub head_max: Duration,
    pub cancel: &'a CancellationToken,
}

impl Visit<'_> {
    /// The answer at the end of all redirects, and whose it is. We send no keys, so none can go astray.
    pub async fn follow(
        &self,
        from: &Url,
        headers: impl Fn(&Url) -> HeaderMap,
    ) -> Result<(Url, http::Response<Incoming>), DownloadError> {
        let mut url = from.clone();
        for _ in 0..=REDIRECTS_MAX {
            let origin = || url.origin().to_owned();
            let exchange = async {
                let mut request = client::get(url.path())?;
                *request.headers_mut() = headers(&url);
                let agent = HeaderValue::from_static(concat!("rbee/", env!("CARGO_PKG_VERSION")));
                request.headers_mut().insert(USER_AGENT, agent);
                let target = Target::parse(url.origin())?;
                let target = if self.trusted.origin(url.origin()) { target } else { target.public_only() };
                client::send(&target, request).await
            };
            let answer = tokio::time::timeout(self.head_max, self.cancel.run_until_cancelled(exchange))
                .await
                .map_err(|_| DownloadError::NoAnswer { origin: origin(), limit: self.head_max })?
                .ok_or(DownloadError::Cancelled)?
                .map_err(|source| DownloadError::Ask { origin: origin(), source })?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((url, answer));
            }
            let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| DownloadError::NoLocation(url.to_string()))?;
            let next = url
                .join(location)
                .map_err(|source| DownloadError::BadRedirect { from: url.to_string(), source })?;
            let stays_plain =
                !url.is_encrypted() && (self.may_be_plain || self.trusted.origin(next.origin()));
            if !next.is_encrypted() && !stays_plain {
                return Err(DownloadError::Downgrade { from: url.to_string(), to: next.origin().to_owned() });
            }
            url = next;
        }
        Err(DownloadError::Redirects(from.to_string()))
    }
}

fn refusal(url: &Url, status: u16, headers: &HeaderMap) -> DownloadError {
    let url = url.to_string();
    match status {
        404 | 410 => DownloadError::NotThere { url, status },
        401 | 403 => DownloadError::Denied { url, status },
        _ => {
            // The other form of it, a date, is not read: clocks differ.
            let retry_after = number(headers, RETRY_AFTER).map(Duration::from_secs);
            DownloadError::Status { url, status, retry_after }
        }
    }
}

/// `bytes */WHOLE`, as a server says that there is no such part.
fn whole(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A weak tag does not speak of bytes.
fn is_strong(tag: &HeaderValue) -> bool {
    tag.as_bytes().starts_with(b"\"")
}
