//! A request's place at a worker, and the first piece of that worker's answer: from there on the client is committed to it.

use super::Dispatcher;
use crate::http::link::{Caller, LinkError};
use crate::http::reply;
use crate::wire::{Code, Failure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
    rest: Incoming,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
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

/// Sends a request and waits for the first piece of its answer.
pub async fn begin(slot: &Slot, ask: http::Request<reply::Body>) -> Result<http::Response<Begun>, NotBegun> {
    let lost = |what: String| {
        let details = json!({"tokens": 0, "worker_id": slot.worker_id});
        NotBegun::Lost(Failure::new(Code::WorkerLost, what).with(details))
    };
    let answer = match slot.caller.send(ask).await {
        Ok(answer) => answer,
        Err(error @ LinkError::Broken(_)) => {
            return Err(lost(format!("the link to {} broke: {error}", slot.hive)));
        }
        Err(error) => return Err(NotBegun::Refused(Failure::internal(&error))),
    };
    let (head, mut rest) = answer.into_parts();
    let first = loop {
        match rest.frame().await {
            None => break None,
            Some(Err(_)) => {
                return Err(lost(format!("worker {} was lost before its first token", slot.worker_id)));
            }
            Some(Ok(frame)) => match frame.into_data() {
                // A comment that keeps a silent stream alive says nothing yet.
                Ok(bytes) if bytes.starts_with(b":") => {}
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
