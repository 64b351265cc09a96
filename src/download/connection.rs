//! One connection's work: takes a part that nobody is at, asks for just that, writes what comes, and takes the next.

use super::part::{Part, RUN_BYTES_MAX, Tag};
use super::plan::Claim;
use super::visit::{Access, Answer, Visit, number, refusal};
use super::{DownloadError, Expected, Limits, check_room};
use crate::http::client::Connection;
use crate::http::range::content_range;
use crate::http::url::Url;
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Asked for at once: long enough that asking costs nothing, short enough that the last parts end together.
const RANGE_BYTES: u64 = 32 << 20;
/// What has come is written at least so often: it is what a kill costs on a slow line.
const WRITE_EVERY: Duration = Duration::from_secs(1);
const LINKED_ETAG: &str = "x-linked-etag";

/// What all connections of one download share.
pub(super) struct Shared {
    pub visit: Visit,
    pub expected: Expected,
    pub limits: Limits,
    pub part: Arc<Part>,
    /// Nobody else has the file: an unreachable server is given up quickly.
    pub has_fallback: bool,
    /// Something was heard from the server.
    pub reached: AtomicBool,
    /// When the last byte came, on whichever connection.
    pub heard: Mutex<Instant>,
    /// The server sends whole files only.
    pub is_whole_only: AtomicBool,
    /// Where the redirects ended: asked at once from then on, until it is refused.
    pub resolved: Mutex<Option<Url>>,
}

impl Shared {
    fn resolved(&self) -> MutexGuard<'_, Option<Url>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn heard(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_pinned(&self) -> bool {
        self.expected.is_pinned()
    }
}

/// Works until nothing is left to take, or `stop` asks it to end; what has come is written in any case.
pub(super) async fn work(shared: Arc<Shared>, stop: CancellationToken) -> Result<(), DownloadError> {
    let mut open: Option<(Url, Connection)> = None;
    while !stop.is_cancelled() {
        let is_whole_only = shared.is_whole_only.load(Ordering::Relaxed);
        let claimed = shared.part.plan(|plan| match (is_whole_only, plan.total) {
            (true, total) => plan.claim_whole(total.unwrap_or(shared.limits.bytes_max)),
            (false, _) => plan.claim(RANGE_BYTES),
        });
        let Some((claim, range)) = claimed else { return Ok(()) };
        let mut piece = Piece::new(&shared, claim, range, &stop);
        let outcome = piece.fetch(&mut open).await;
        let written = piece.flush().await;
        shared.part.release(claim);
        outcome.and(written)?;
    }
    Ok(())
}

/// A part on its way.
struct Piece<'a> {
    shared: &'a Arc<Shared>,
    stop: &'a CancellationToken,
    claim: Claim,
    /// From where we stand to where it ends.
    range: Range<u64>,
    /// Come, but not written.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    written_at: Instant,
    /// The bytes before are being written meanwhile.
    writing: Option<JoinHandle<Result<(), DownloadError>>>,
    generation: u64,
}

impl<'a> Piece<'a> {
    fn new(shared: &'a Arc<Shared>, claim: Claim, range: Range<u64>, stop: &'a CancellationToken) -> Self {
        let generation = shared.part.generation();
        let (waiting, written_at) = (Vec::new(), Instant::now());
        Piece { shared, stop, claim, range, waiting, waiting_bytes: 0, written_at, writing: None, generation }
    }

    async fn fetch(&mut self, open: &mut Option<(Url, Connection)>) -> Result<(), DownloadError> {
        let limits = &self.shared.limits;
        let (url, response) = match self.again(open).await? {
            Some(answer) => answer,
            None => {
                let hasty = self.shared.has_fallback && !self.shared.reached.load(Ordering::Relaxed);
                let patience = |hop| if hop == 0 && hasty { limits.hub_give_up } else { limits.head_max };
                let asked = self.shared.visit.ask("GET", patience, |url| self.headers(url));
                let Some(answer) = self.stop.run_until_cancelled(asked).await else { return Ok(()) };
                let Answer { url, response, connection, first } = answer?;
                self.shared.reached.store(true, Ordering::Relaxed);
                self.check_linked(first.as_ref().unwrap_or(response.headers()))?;
                *open = Some((url.clone(), connection));
                (url, response)
            }
        };
        let ended = self.take(&url, response).await;
        match &ended {
            Ok(true) => *self.shared.resolved() = Some(url),
            // The rest of the answer is still in the pipe.
            Ok(false) | Err(_) => *open = None,
        }
        ended.map(|_| ())
    }

    /// Asks where the redirects ended before, on the connection that is open if there is one. None if that leads nowhere
    /// any more: addresses are signed for a time.
    async fn again(
        &self,
        open: &mut Option<(Url, Connection)>,
    ) -> Result<Option<(Url, http::Response<Incoming>)>, DownloadError> {
        let Some(url) = self.shared.resolved().clone() else { return Ok(None) };
        let visit = Visit { url: url.clone(), access: Access::Open, ..self.shared.visit.clone() };
        let visit = match url.origin() == self.shared.visit.url.origin() {
            true => self.shared.visit.clone(),
            false => visit,
        };
        let limit = self.shared.limits.head_max;
        let response = match open {
            Some((there, connection)) if *there == url && connection.is_open() => {
                let request = visit.request(&url, "GET", self.headers(&url));
                let request = request
                    .map_err(|source| DownloadError::Ask { origin: url.origin().to_owned(), source })?;
                let sent = self.stop.run_until_cancelled(connection.send(request));
                match tokio::time::timeout(limit, sent).await {
                    Ok(Some(Ok(response))) => Some(response),
                    // A connection that was idle may be closed without a word.
                    Ok(Some(Err(_))) | Err(_) => None,
                    Ok(None) => return Err(DownloadError::Cancelled),
                }
            }
            _ => {
                let at_once = Visit { url: url.clone(), ..visit };
                let asked = at_once.ask("GET", |_| limit, |url| self.headers(url));
                match self.stop.run_until_cancelled(asked).await {
                    Some(Ok(answer)) => {
                        *open = Some((answer.url.clone(), answer.connection));
                        Some(answer.response)
                    }
                    Some(Err(_)) => None,
                    None => return Err(DownloadError::Cancelled),
                }
            }
        };
        match response {
            Some(response) if response.status().is_success() => Ok(Some((url, response))),
            Some(response) if matches!(response.status().as_u16(), 408 | 416 | 425 | 429 | 500..) => {
                Ok(Some((url, response)))
            }
            _ => {
                *self.shared.resolved() = None;
                *open = None;
                Ok(None)
            }
        }
    }

    fn headers(&self, url: &Url) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // Ranges and sums are of the bytes themselves.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if !self.is_all() {
            let range = HeaderValue::from_str(&format!("bytes={}-{}", self.range.start, self.range.end - 1));
            headers.insert(RANGE, range.expect("digits are a header's value"));
            if let Some(tag) = self.shared.part.tag().filter(|tag| tag.origin == url.origin())
                && let Ok(tag) = HeaderValue::from_str(&tag.etag)
            {
                headers.insert(IF_RANGE, tag);
            }
        }
        headers
    }

    /// Whether this is the whole file, as far as is known.
    fn is_all(&self) -> bool {
        self.range.start == 0
            && (self.shared.is_whole_only.load(Ordering::Relaxed)
                || self.shared.part.total() == Some(self.range.end))
    }

    /// The hub says with its redirect what the file's sum is.
    fn check_linked(&self, headers: &HeaderMap) -> Result<(), DownloadError> {
        let told = headers.get(LINKED_ETAG).and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
        match (told, self.shared.expected.sha256()) {
            (Some(told), Some(expected)) if told != expected => {
                let url = self.shared.visit.url.to_string();
                Err(DownloadError::OtherFile { url, told, expected })
            }
            _ => Ok(()),
        }
    }

    /// Reads one answer. True if it was read to its end, so that the connection can be asked again.
    async fn take(&mut self, url: &Url, response: http::Response<Incoming>) -> Result<bool, DownloadError> {
        let (head, body) = response.into_parts();
        let part = &self.shared.part;
        let (status, headers) = (head.status.as_u16(), &head.headers);
        if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|e| *e != "identity")
            && head.status.is_success()
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(DownloadError::Encoded { url: url.to_string(), encoding });
        }
        let tag = headers.get(ETAG).and_then(|tag| strong(url, tag));
        let told = match (status, content_range(headers)) {
            (206, Some(part)) if part.from == self.range.start => {
                // A server may send less at once than it is asked for; the rest is free again afterwards.
                self.range.end = self.range.end.min(part.to + 1);
                Some(part.whole)
            }
            (200, _) => number(headers, CONTENT_LENGTH),
            (416, _) if !self.shared.is_pinned() => return Err(DownloadError::Changed(url.to_string())),
            (206 | 416, _) => return Err(DownloadError::WrongPart { url: url.to_string(), status }),
            _ => return Err(refusal(url, &self.shared.visit.access, status, headers)),
        };
        self.check_length(url, told)?;
        if status == 200 && !self.is_all() && !self.begins_whole(told) {
            return Err(DownloadError::NoParts(url.to_string()));
        }
        if !part.learn(told, tag, self.shared.is_pinned())? {
            return Err(DownloadError::Changed(url.to_string()));
        }
        if let Some(told) = told {
            let folder = part.path().parent().unwrap_or(Path::new(".")).to_owned();
            check_room(&folder, told.saturating_sub(part.bytes()))?;
            self.range.end = self.range.end.min(told);
        }
        self.receive(url, body, told.is_none()).await
    }

    fn check_length(&self, url: &Url, told: Option<u64>) -> Result<(), DownloadError> {
        let Some(told) = told else { return Ok(()) };
        let known = self.shared.part.total();
        if let Some(expected) = self.shared.expected.size.or(known).filter(|expected| *expected != told) {
            return match self.shared.expected.size {
                Some(expected) => Err(DownloadError::WrongSize { url: url.to_string(), told, expected }),
                None => {
                    tracing::debug!(%url, told, expected, "the file has another length now");
                    Err(DownloadError::Changed(url.to_string()))
                }
            };
        }
        let max = self.shared.limits.bytes_max;
        match told > max {
            true => Err(DownloadError::TooBig { url: url.to_string(), told, max }),
            false => Ok(()),
        }
    }

    /// The server sends all of it to the first question: taken as it comes.
    fn begins_whole(&mut self, told: Option<u64>) -> bool {
        let end = told.unwrap_or(self.shared.limits.bytes_max);
        let stretched = self.range.start == 0 && self.shared.part.plan(|plan| plan.stretch(self.claim, end));
        if stretched {
            self.range.end = end;
            self.shared.is_whole_only.store(true, Ordering::Relaxed);
        }
        stretched
    }

    async fn receive(
        &mut self,
        url: &Url,
        mut body: Incoming,
        is_endless: bool,
    ) -> Result<bool, DownloadError> {
        let limit = self.shared.limits.stall_max;
        loop {
            let frame = tokio::time::timeout(limit, self.stop.run_until_cancelled(body.frame())).await;
            let at = self.range.start;
            let data = match frame {
                Err(_) => return Err(DownloadError::Stalled { limit, at }),
                // Asked to end; what has come is kept.
                Ok(None) => return Ok(false),
                Ok(Some(Some(Ok(frame)))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Some(Err(error)))) => return Err(DownloadError::Broken { at, source: Some(error) }),
                Ok(Some(None)) if self.range.is_empty() => return Ok(true),
                Ok(Some(None)) if is_endless => {
                    self.flush().await?;
                    match self.shared.expected.size {
                        Some(size) if size != at => return Err(DownloadError::Broken { at, source: None }),
                        _ => self.shared.part.end_at(at),
                    }
                    return Ok(true);
                }
                Ok(Some(None)) => return Err(DownloadError::Broken { at, source: None }),
            };
            let room = self.range.end - at;
            if data.len() as u64 > room && is_endless && self.shared.expected.size.is_none() {
                let (told, max) = (at + data.len() as u64, self.range.end);
                return Err(DownloadError::TooBig { url: url.to_string(), told, max });
            }
            if data.len() as u64 > room {
                let expected = self.shared.part.total().unwrap_or(self.range.end);
                return Err(DownloadError::TooMuch { url: url.to_string(), expected });
            }
            *self.shared.heard() = Instant::now();
            self.shared.part.received.fetch_add(data.len() as u64, Ordering::Relaxed);
            self.push(data).await?;
        }
    }

    async fn push(&mut self, data: Bytes) -> Result<(), DownloadError> {
        let mut data = data;
        loop {
            let room = RUN_BYTES_MAX - (self.range.start % RUN_BYTES_MAX as u64) as usize;
            let first = data.split_to(room.min(data.len()));
            let ends_run = first.len() == room;
            self.range.start += first.len() as u64;
            self.waiting_bytes += first.len();
            self.waiting.push(first);
            if ends_run || self.written_at.elapsed() >= WRITE_EVERY {
                self.write(self.range.start).await?;
            }
            if data.is_empty() {
                return Ok(());
            }
        }
    }

    /// Hands over what waits, which ends at `end`, to be written; one write at a time.
    async fn write(&mut self, end: u64) -> Result<(), DownloadError> {
        self.written().await?;
        let pieces = std::mem::take(&mut self.waiting);
        let at = end - std::mem::take(&mut self.waiting_bytes) as u64;
        self.written_at = Instant::now();
        let (part, generation) = (self.shared.part.clone(), self.generation);
        self.writing = Some(tokio::task::spawn_blocking(move || part.write(at, pieces, generation)));
        Ok(())
    }

    async fn written(&mut self) -> Result<(), DownloadError> {
        match self.writing.take() {
            None => Ok(()),
            Some(writing) => {
                writing.await.map_err(|error| self.shared.part.failed(std::io::Error::other(error)))?
            }
        }
    }

    /// Writes what waits, and waits for it.
    async fn flush(&mut self) -> Result<(), DownloadError> {
        if self.waiting_bytes > 0 {
            self.write(self.range.start).await?;
        }
        self.written().await
    }
}

/// A weak tag does not speak of bytes.
fn strong(url: &Url, tag: &HeaderValue) -> Option<Tag> {
    let etag = tag.to_str().ok().filter(|tag| tag.starts_with('"'))?;
    Some(Tag { origin: url.origin().to_owned(), etag: etag.to_owned() })
}
