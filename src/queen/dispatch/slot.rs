//! A request's place at a worker, and the first piece of that worker's answer: from there on the client is committed to it.

use super::Dispatcher;
use crate::http::link::{Caller, LinkError, Streamed};
use crate::http::reply;
use crate::wire::{Code, Failure};
use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The longest comment that a stream may begin with; a longer one is passed on.
const COMMENT_BYTES_MAX: usize = 4 << 10;

/// Dropping it frees the slot for the next in the queue.
#[derive(Debug)]
pub struct Slot {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub hive: String,
    pub worker_id: String,
    pub(super) caller: Caller,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.dispatcher.state();
        let in_flight = &mut state.queue.in_flight;
        if let Some(count) = in_flight.get_mut(&self.worker_id) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(&self.worker_id);
            }
        }
        drop(state);
        self.dispatcher.changed.send_replace(());
    }
}

pub struct Answer {
    pub response: http::Response<Begun>,
    pub slot: Slot,
}

/// A body whose first frame has been read already.
pub struct Begun {
    first: Option<Bytes>,
    rest: Streamed,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, h2::Error>>> {
        if let Some(bytes) = self.first.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(bytes))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }
}

/// Why an answer did not begin.
#[derive(Debug)]
pub enum NotBegun {
    /// The worker, or the way to it, was lost over this request.
    Lost(Failure),
    /// It only says "not me, not now": it stops, or loads again.
    NotNow(Failure),
    /// It answered, or the request itself is at fault.
    Refused(Failure),
}

/// What a stream begins with, less the comments that keep a silent one alive and say nothing yet, as far as they are whole
/// lines.
fn without_comments(mut piece: Bytes) -> Bytes {
    loop {
        let skipped = match piece.iter().position(|byte| *byte == b'\n') {
            Some(end) if piece.starts_with(b":") || piece[..end].trim_ascii().is_empty() => end + 1,
            _ => return piece,
        };
        piece.advance(skipped);
    }
}

/// Sends a request and waits for the first piece of its answer.
pub async fn begin(slot: &Slot, ask: http::Request<reply::Body>) -> Result<http::Response<Begun>, NotBegun> {
    let lost = |what: String| {
        let details = json!({"tokens": 0, "worker_id": slot.worker_id});
        NotBegun::Lost(Failure::new(Code::WorkerLost, what).with(details))
    };
    let answer = match slot.caller.send(ask).await {
        Ok(answer) => answer,
        Err(error @ LinkError::Lost(_)) => {
            return Err(lost(format!("the link to {} broke: {error}", slot.hive)));
        }
        Err(error) => return Err(NotBegun::Refused(Failure::internal(&error))),
    };
    let (head, mut rest) = answer.into_parts();
    let is_stream =
        head.headers.get(CONTENT_TYPE).is_some_and(|of| of.as_bytes().starts_with(b"text/event-stream"));
    // A comment that was cut in its middle.
    let mut begun = Bytes::new();
    let first = loop {
        match rest.frame().await {
            None => break (!begun.is_empty()).then_some(begun),
            Some(Err(_)) => {
                return Err(lost(format!("worker {} was lost before its first token", slot.worker_id)));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if is_stream => {
                    let bytes = if begun.is_empty() { bytes } else { [begun, bytes].concat().into() };
                    begun = without_comments(bytes);
                    let is_comment = begun.is_empty() || begun.starts_with(b":");
                    if !is_comment || begun.len() > COMMENT_BYTES_MAX {
                        break Some(begun);
                    }
                }
                Ok(bytes) => break Some(bytes),
                Err(_trailers) => {}
            },
        }
    };
    if !head.status.is_success() {
        let failure = Failure::from_body(head.status.as_u16(), first.as_deref().unwrap_or_default());
        match failure.code {
            Code::WorkerLost => return Err(NotBegun::Lost(failure)),
            Code::WorkerNotFound | Code::ShuttingDown | Code::LoadingModel => {
                return Err(NotBegun::NotNow(failure));
            }
            _ => {}
        }
    }
    Ok(http::Response::from_parts(head, Begun { first, rest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_streams_beginning_only_whole_comments_are_left_out() {
        for (piece, left) in [
            (": \n\ndata: 1\n\n", "data: 1\n\n"),
            (": a\r\n\r\n: b\n\ndata: 1\n\n: c\n\ndata: 2\n\n", "data: 1\n\n: c\n\ndata: 2\n\n"),
            (": a\ndata: 1\n\n", "data: 1\n\n"),
            ("data: :\n\n", "data: :\n\n"),
            (": \n\n", ""),
            (": cu", ": cu"),
            (": \n\nda", "da"),
        ] {
            assert_eq!(without_comments(Bytes::from(piece)), left, "{piece:?}");
        }
    }
}
