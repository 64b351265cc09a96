//! One file over HTTP, exactly: resumed from the bytes on disk, hashed on the way, nothing trusted that a server says
//! about what it sends. Bytes are appended only to a 206 that begins where we stand; anything else starts again.

use super::digest::Digest;
use super::hub::Token;
use super::partial::{Partial, PartialError};
use super::progress::{Events, Meter, size};
use super::url::{BadUrl, Url};
use crate::http::client::{self, ClientError, Target};
use crate::wire::job::JobEvent;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap,
    HeaderValue, IF_RANGE, LOCATION, RANGE, USER_AGENT,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub const REDIRECTS_MAX: usize = 5;
/// An attempt that brought this much was no failure of the network as such: counting starts anew.
const PROGRESS_BYTES_MIN: u64 = 1 << 20;
/// Written to disk at once.
const WRITE_BYTES: usize = 1 << 20;

/// Times and counts; tests shorten them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A first answer of the hub, connecting included, where the model can be had elsewhere, too.
    pub hub_give_up: Duration,
    /// Any other answer's head.
    pub head_max: Duration,
    /// No byte for so long.
    pub stall_max: Duration,
    pub attempts_max: u32,
    /// Between attempts, doubling.
    pub pause_first: Duration,
    pub pause_max: Duration,
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
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("asking {origin}")]
    Ask { origin: String, source: ClientError },
    #[error("{origin} gave no answer within {} s", limit.as_secs_f32())]
    NoAnswer { origin: String, limit: Duration },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} does not send the part that is missing ({status}); starting again")]
    WrongPart { url: String, status: u16 },
    #[error("{0} is not there (404); the name or the revision is wrong, or the file was removed")]
    NotThere(String),
    #[error("{url} may not be read ({status}); {hint}")]
    Denied { url: String, status: u16, hint: &'static str },
    #[error("{0} leads on and on: more than {REDIRECTS_MAX} redirects")]
    Redirects(String),
    #[error("{0} redirects without saying where")]
    NoLocation(String),
    #[error("following a redirect")]
    BadRedirect(#[source] BadUrl),
    #[error("{0} redirects to an address without encryption")]
    Downgrade(String),
    #[error("{url} sends the file encoded as {encoding}, which was not asked for")]
    Encoded { url: String, encoding: String },
    #[error("{url} has a file of {told} bytes, should be {expected}")]
    WrongSize { url: String, told: u64, expected: u64 },
    #[error("{url} sent more than the {expected} bytes of the file")]
    TooMuch { url: String, expected: u64 },
    #[error("no byte came for {} s, at {} of {}", limit.as_secs_f32(), size(*at), size(*of))]
    Stalled { limit: Duration, at: u64, of: u64 },
    #[error("the connection broke at {} of {}", size(*at), size(*of))]
    Broken { at: u64, of: u64, source: Option<hyper::Error> },
    #[error("after {attempts} attempts")]
    Exhausted { attempts: u32, source: Box<TransferError> },
    #[error("the bytes have the sum {got}, should be {expected}; nothing was kept")]
    WrongBytes { got: Digest, expected: Digest },
    #[error(transparent)]
    Partial(#[from] PartialError),
    #[error("cancelled")]
    Cancelled,
}

impl TransferError {
    /// Whether another attempt may fare better.
    fn may_pass(&self) -> bool {
        match self {
            TransferError::Ask { .. } | TransferError::NoAnswer { .. } | TransferError::Broken { .. } => true,
            TransferError::WrongPart { .. } => true,
            TransferError::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Whether the server sent something else than the file.
    fn is_wrong_file(&self) -> bool {
        matches!(self, TransferError::TooMuch { .. })
    }

    /// An answer, even a bad one, tells that the server can be reached.
    fn is_an_answer(&self) -> bool {
        !matches!(self, TransferError::Ask { .. } | TransferError::NoAnswer { .. })
    }
}

/// What to fetch, and who is told.
pub(super) struct Transfer<'a> {
    pub url: Url,
    pub token: Option<&'a Token>,
    pub digest: Digest,
    pub size: u64,
    pub label: &'a str,
    /// The model can be had elsewhere: an unreachable server is given up quickly and at once.
    pub has_fallback: bool,
    pub limits: &'a Limits,
    pub events: Events<'a>,
    pub cancel: &'a CancellationToken,
}

/// What changes from attempt to attempt.
struct Progress<'a> {
    partial: Partial,
    buffer: Vec<u8>,
    meter: Meter<'a>,
    /// Something was heard from the server.
    reached: bool,
    /// Of the answer that the bytes came from, and its origin.
    etag: Option<(String, HeaderValue)>,
}

impl Progress<'_> {
    /// Writes what has come in but is not yet on disk.
    async fn append(&mut self) -> Result<(), TransferError> {
        let bytes = std::mem::take(&mut self.buffer);
        if bytes.is_empty() { Ok(()) } else { Ok(self.partial.append(bytes).await?) }
    }

    async fn restart(&mut self) -> Result<(), TransferError> {
        self.buffer.clear();
        self.etag = None;
        self.partial.clear().await?;
        self.meter.at(0);
        Ok(())
    }
}

impl Transfer<'_> {
    /// Fetches what is missing. The result holds the file's bytes, verified.
    pub async fn run(&self, partial: Partial) -> Result<Partial, TransferError> {
        let meter = Meter::new(self.events, self.label, partial.length(), self.size);
        let mut progress = Progress { partial, buffer: Vec::new(), meter, reached: false, etag: None };
        let mut attempt = 1;
        let mut fetched_again = false;
        loop {
            let before = progress.partial.length();
            let outcome = self.attempt(&mut progress).await;
            progress.append().await?;
            let got = progress.partial.length().saturating_sub(before);
            match outcome {
                Ok(()) if progress.partial.digest() == self.digest => return Ok(progress.partial),
                Err(error) if !error.is_wrong_file() => {
                    progress.reached |= error.is_an_answer();
                    if !error.may_pass() || (self.has_fallback && !progress.reached) {
                        return Err(error);
                    }
                    attempt = if got >= PROGRESS_BYTES_MIN { 1 } else { attempt };
                    if attempt >= self.limits.attempts_max {
                        return Err(TransferError::Exhausted { attempts: attempt, source: Box::new(error) });
                    }
                    self.pause(attempt, &error).await?;
                    attempt += 1;
                }
                wrong if fetched_again => {
                    let error = wrong.err().unwrap_or_else(|| TransferError::WrongBytes {
                        got: progress.partial.digest(),
                        expected: self.digest,
                    });
                    progress.partial.remove();
                    return Err(error);
                }
                _ => {
                    fetched_again = true;
                    self.warn("the bytes are not those of the model; fetching them again");
                    progress.restart().await?;
                }
            }
        }
    }

    async fn pause(&self, attempt: u32, error: &TransferError) -> Result<(), TransferError> {
        let doubled = self.limits.pause_first.saturating_mul(1 << (attempt - 1).min(16));
        let why = crate::wire::failure::chain(error);
        self.warn(&format!("{why}; attempt {}/{}", attempt + 1, self.limits.attempts_max));
        let pause = tokio::time::sleep(doubled.min(self.limits.pause_max));
        self.cancel.run_until_cancelled(pause).await.ok_or(TransferError::Cancelled)
    }

    fn warn(&self, message: &str) {
        (self.events)(JobEvent::warn("model_download", message));
    }

    /// Fetches once from where we stand to the end.
    async fn attempt(&self, progress: &mut Progress<'_>) -> Result<(), TransferError> {
        if progress.partial.length() > self.size {
            progress.restart().await?;
        }
        let start = progress.partial.length();
        if start == self.size {
            return Ok(());
        }
        let (url, answer) = self.ask(progress, start).await?;
        progress.reached = true;
        let (head, body) = answer.into_parts();
        let told = match head.status.as_u16() {
            206 if content_range(&head.headers).is_some_and(|(from, _)| from == start) => {
                content_range(&head.headers).map(|(_, total)| total)
            }
            // The whole file, though a part was asked for.
            200 => {
                if start > 0 {
                    progress.restart().await?;
                }
                let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
                length.and_then(|length| length.parse().ok())
            }
            // A part, but not the one that was asked for.
            status @ (206 | 416) => {
                progress.restart().await?;
                return Err(TransferError::WrongPart { url: url.to_string(), status });
            }
            status => return Err(self.refusal(&url, status)),
        };
        if let Some(told) = told.filter(|told| *told != self.size) {
            return Err(TransferError::WrongSize { url: url.to_string(), told, expected: self.size });
        }
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|e| *e != "identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(TransferError::Encoded { url: url.to_string(), encoding });
        }
        progress.etag = head.headers.get(ETAG).map(|etag| (url.origin().to_owned(), etag.clone()));
        self.receive(progress, &url, body).await
    }

    /// Asks for the bytes from `start` on, through all redirects.
    async fn ask(
        &self,
        progress: &Progress<'_>,
        start: u64,
    ) -> Result<(Url, http::Response<Incoming>), TransferError> {
        let mut url = self.url.clone();
        for hop in 0..=REDIRECTS_MAX {
            let hasty = hop == 0 && self.has_fallback && !progress.reached;
            let limit = if hasty { self.limits.hub_give_up } else { self.limits.head_max };
            let origin = || url.origin().to_owned();
            let request = self
                .request(progress, &url, start)
                .map_err(|source| TransferError::Ask { origin: origin(), source })?;
            let exchange = async {
                let target = Target::parse(url.origin())?;
                client::send(&target, request).await
            };
            let answer = tokio::time::timeout(limit, self.cancel.run_until_cancelled(exchange))
                .await
                .map_err(|_| TransferError::NoAnswer { origin: origin(), limit })?
                .ok_or(TransferError::Cancelled)?
                .map_err(|source| TransferError::Ask { origin: origin(), source })?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((url, answer));
            }
            let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| TransferError::NoLocation(url.to_string()))?;
            let next = url.join(location).map_err(TransferError::BadRedirect)?;
            if url.is_encrypted() && !next.is_encrypted() {
                return Err(TransferError::Downgrade(url.to_string()));
            }
            url = next;
        }
        Err(TransferError::Redirects(self.url.to_string()))
    }

    fn request(
        &self,
        progress: &Progress<'_>,
        url: &Url,
        start: u64,
    ) -> Result<http::Request<crate::http::Body>, ClientError> {
        let mut request = client::get(url.path())?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("rbee/", env!("CARGO_PKG_VERSION"))));
        // Ranges and sums are of the bytes themselves.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        // A key goes to whom it belongs and not where a redirect leads.
        if let Some(value) = self.token.filter(|_| url.origin() == self.url.origin()).and_then(Token::header)
        {
            headers.insert(AUTHORIZATION, value);
        }
        if start > 0 {
            headers.insert(
                RANGE,
                HeaderValue::from_str(&format!("bytes={start}-")).expect("digits are a header's value"),
            );
            if let Some((_, etag)) = progress.etag.as_ref().filter(|(origin, _)| origin == url.origin()) {
                headers.insert(IF_RANGE, etag.clone());
            }
        }
        Ok(request)
    }

    async fn receive(
        &self,
        progress: &mut Progress<'_>,
        url: &Url,
        mut body: Incoming,
    ) -> Result<(), TransferError> {
        let of = self.size;
        loop {
            let at = progress.partial.length() + progress.buffer.len() as u64;
            let next = self.cancel.run_until_cancelled(body.frame());
            let frame = tokio::time::timeout(self.limits.stall_max, next)
                .await
                .map_err(|_| TransferError::Stalled { limit: self.limits.stall_max, at, of })?
                .ok_or(TransferError::Cancelled)?;
            let data = match frame {
                None if at == of => return Ok(()),
                None => return Err(TransferError::Broken { at, of, source: None }),
                Some(Err(error)) => return Err(TransferError::Broken { at, of, source: Some(error) }),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            if at + data.len() as u64 > of {
                return Err(TransferError::TooMuch { url: url.to_string(), expected: of });
            }
            progress.buffer.extend_from_slice(&data);
            progress.meter.at(at + data.len() as u64);
            if progress.buffer.len() >= WRITE_BYTES {
                progress.append().await?;
            }
        }
    }

    fn refusal(&self, url: &Url, status: u16) -> TransferError {
        let url = url.to_string();
        match status {
            404 | 410 => TransferError::NotThere(url),
            401 | 403 => {
                let hint = match self.token {
                    None => "set HF_TOKEN if the repository asks for one",
                    Some(_) => "the token in use does not open it",
                };
                TransferError::Denied { url, status, hint }
            }
            _ => TransferError::Status { url, status },
        }
    }
}

/// Where a part begins, and how long the whole is: `bytes FROM-TO/WHOLE`.
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (range, whole) =
        headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, whole) = (from.parse().ok()?, to.parse::<u64>().ok()?, whole.parse().ok()?);
    (from <= to && to < whole).then_some((from, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_strictly() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_str(text).unwrap())]);
            content_range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, 10)));
        for bad in
            ["bytes */10", "bytes 5-10/10", "bytes 9-5/10", "items 0-1/2", "bytes 0-1/*", "bytes -1-2/3"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
