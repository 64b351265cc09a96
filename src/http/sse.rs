//! Server-sent events, both ends. The sending side is bounded and notices a reader that leaves; the receiving side takes
//! bytes in any pieces and bounds what one event may hold.

use crate::http::{BoxError, Response};
use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::BodyExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// A comment line this often keeps proxies and clients from giving up on a silent stream.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events waiting for a reader; then its sender waits.
pub const EVENTS_PENDING_MAX: usize = 256;
/// The longest event accepted from a server.
pub const EVENT_BYTES_MAX: usize = 8 << 20;

/// The reader has left.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the reader of the stream has gone")]
pub struct Gone;

#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Result<Bytes, BoxError>>);

impl Sender {
    /// A nameless event: OpenAI's chunks and the terminators.
    pub async fn data(&self, data: &str) -> Result<(), Gone> {
        self.send(None, None, data).await
    }

    pub async fn event(&self, name: &str, data: &str) -> Result<(), Gone> {
        self.send(None, Some(name), data).await
    }

    pub async fn send(&self, id: Option<u64>, name: Option<&str>, data: &str) -> Result<(), Gone> {
        self.raw(encode(id, name, data)).await
    }

    /// Bytes that are events already.
    pub async fn raw(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(Ok(bytes)).await.map_err(|_| Gone)
    }

    /// Ends the stream as broken: the reader sees its connection cut, not an orderly end.
    pub async fn abort(self, error: impl Into<BoxError>) {
        // A reader that has gone needs no telling.
        let _ = self.0.send(Err(error.into())).await;
    }

    /// Resolves when the reader has left.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// One event as bytes. Every line of the data becomes its own field, so data can't forge a field.
pub fn encode(id: Option<u64>, name: Option<&str>, data: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 32);
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\n");
    }
    for line in data.split('\n') {
        out.extend_from_slice(b"data: ");
        // A lone carriage return ends a line too, for a reader.
        out.extend_from_slice(line.replace('\r', " ").as_bytes());
        out.extend_from_slice(b"\n");
    }
    out.extend_from_slice(b"\n");
    out.freeze()
}

/// A stream and its sending end.
pub fn channel() -> (Sender, Response) {
    channel_kept_alive(KEEP_ALIVE)
}

/// The same, with another pause between comments.
pub fn channel_kept_alive(every: Duration) -> (Sender, Response) {
    let (sender, events) = mpsc::channel(EVENTS_PENDING_MAX);
    let alive = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    let mut response = Response::new(Stream { events, alive }.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (Sender(sender), response)
}

struct Stream {
    events: mpsc::Receiver<Result<Bytes, BoxError>>,
    alive: tokio::time::Interval,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(Ok(bytes))) => {
                self.alive.reset();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.alive.poll_tick(cx) {
                Poll::Ready(_) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": \n\n"))))),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

/// One event as received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the stream broke off")]
    Broken(#[source] BoxError),
    #[error("nothing has come for {} s", .0.as_secs())]
    Silent(Duration),
}

/// Cuts a byte stream into events. Pure, so that it can be fed anything.
#[derive(Debug, Default)]
pub struct Parser {
    pending: Vec<u8>,
    /// Where the first line not read yet begins. What is before goes when all whole lines are read: to move the rest up for
    /// each of many short lines would take time by the square of their number.
    at: usize,
    scanned: usize,
    event: Event,
    has_data: bool,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    pub fn next_event(&mut self) -> Result<Option<Event>, ReadError> {
        loop {
            let Some(end) = self.pending[self.scanned..].iter().position(|b| *b == b'\n') else {
                self.pending.drain(..std::mem::take(&mut self.at));
                self.scanned = self.pending.len();
                if self.pending.len() + self.event.data.len() > EVENT_BYTES_MAX {
                    return Err(ReadError::TooLong);
                }
                return Ok(None);
            };
            let after = self.scanned + end + 1;
            let line = String::from_utf8_lossy(&self.pending[self.at..after]).into_owned();
            (self.at, self.scanned) = (after, after);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let whole = std::mem::take(&mut self.event);
                if std::mem::take(&mut self.has_data) {
                    return Ok(Some(whole));
                }
                continue;
            }
            self.field(line);
            if self.event.data.len() > EVENT_BYTES_MAX {
                return Err(ReadError::TooLong);
            }
        }
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            "event" => self.event.name = Some(value.to_owned()),
            "id" => self.event.id = Some(value.to_owned()),
            // Comments start with a colon; unknown fields are ignored, as the standard says.
            _ => {}
        }
    }
}

/// Events off a response body.
#[derive(Debug)]
pub struct Reader<B> {
    body: B,
    parser: Parser,
}

impl<B> Reader<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    pub fn new(body: B) -> Self {
        Reader { body, parser: Parser::default() }
    }

    /// The next event; `None` at the stream's orderly end.
    pub async fn next(&mut self) -> Result<Option<Event>, ReadError> {
        loop {
            if let Some(event) = self.parser.next_event()? {
                return Ok(Some(event));
            }
            let frame = self.body.frame().await;
            if !self.takes(frame)? {
                return Ok(None);
            }
        }
    }

    /// The same of a sender that keeps its stream alive: when not even a comment comes for so long, it is gone.
    pub async fn next_within(&mut self, silence: Duration) -> Result<Option<Event>, ReadError> {
        loop {
            if let Some(event) = self.parser.next_event()? {
                return Ok(Some(event));
            }
            let frame = tokio::time::timeout(silence, self.body.frame()).await;
            if !self.takes(frame.map_err(|_| ReadError::Silent(silence))?)? {
                return Ok(None);
            }
        }
    }

    /// Whether there may be more.
    fn takes(&mut self, frame: Option<Result<Frame<Bytes>, B::Error>>) -> Result<bool, ReadError> {
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|error| ReadError::Broken(error.into()))?;
        if let Ok(bytes) = frame.into_data() {
            self.parser.push(&bytes);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(stream: &[u8], cut: usize) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in [&stream[..cut], &stream[cut..]] {
            parser.push(piece);
            while let Some(event) = parser.next_event().unwrap() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn events_read_back_from_any_cut() {
        let mut stream = Vec::new();
        stream.extend_from_slice(&encode(Some(7), Some("token"), "{\"text\":\"ü\"}"));
        stream.extend_from_slice(b": keep-alive\n\n");
        stream.extend_from_slice(&encode(None, None, "two\nlines"));
        for cut in 0..=stream.len() {
            let events = parse(&stream, cut);
            assert_eq!(events.len(), 2, "cut at {cut}");
            assert_eq!(events[0].id.as_deref(), Some("7"));
            assert_eq!(events[0].name.as_deref(), Some("token"));
            assert_eq!(events[0].data, "{\"text\":\"ü\"}");
            assert_eq!(events[1], Event { data: "two\nlines".into(), ..Event::default() });
        }
    }

    #[test]
    fn data_cannot_forge_a_field() {
        let events = parse(&encode(None, None, "x\rdata: [DONE]\n\nevent: error"), 0);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].name, None);
    }

    #[test]
    fn many_short_lines_take_time_by_their_number_and_no_memory() {
        let mut parser = Parser::default();
        let lines = b"\n".repeat(4 << 20);
        let begun = std::time::Instant::now();
        parser.push(&lines);
        assert_eq!(parser.next_event().unwrap(), None);
        assert!(parser.pending.is_empty());
        // By the square it would be hours.
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn an_endless_line_is_refused_within_the_limit() {
        let mut parser = Parser::default();
        let block = vec![b'x'; 1 << 20];
        let refused = (0..16).any(|_| {
            parser.push(&block);
            parser.next_event().is_err()
        });
        assert!(refused);
    }
}
