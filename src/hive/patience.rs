//! B14 for engines that are not ours. Our own worker watches its progress and its deadline itself; of another project's
//! nothing is seen but what it sends, and one that hangs would hold its client and its slot for ever.

use crate::http::reply::BoxError;
use crate::wire::{Code, Failure};
use bytes::Bytes;
use http::header::HeaderName;
use http_body::{Body, Frame};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The header of a request's deadline, in milliseconds since the epoch.
pub const DEADLINE_HEADER: HeaderName = HeaderName::from_static("x-request-deadline");
/// Before the first piece: a long prompt on a slow processor, or a whole answer that is sent at once, is silent so long
/// without being stuck.
pub const FIRST_PIECE_MAX: Duration = Duration::from_secs(1_800);
/// Between two pieces: no token takes as long.
pub const PIECE_MAX: Duration = Duration::from_secs(60);

/// How long an engine may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    first: Duration,
    next: Duration,
    deadline: Option<Instant>,
}

impl Patience {
    /// With a request's own deadline, in milliseconds since the epoch, which the queen has checked.
    pub fn new(deadline: Option<&str>, now_ms: u64) -> Self {
        let left = deadline.and_then(|text| text.trim().parse::<u64>().ok());
        let left = left.map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
        let deadline = left.and_then(|left| Instant::now().checked_add(left));
        Patience { first: FIRST_PIECE_MAX, next: PIECE_MAX, deadline }
    }

    fn until(&self, wait: Duration) -> Instant {
        let end = Instant::now() + wait;
        self.deadline.map_or(end, |deadline| deadline.min(end))
    }

    fn ran_out(&self, wait: Duration) -> Failure {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Failure::new(Code::RequestTimeout, "the request's deadline has passed");
        }
        Failure::new(Code::InferenceTimeout, format!("the engine said nothing for {} s", wait.as_secs_f32()))
    }

    /// Waits for an answer's head.
    pub async fn head<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        let answered = tokio::time::timeout_at(self.until(self.first), answer).await;
        answered.map_err(|_| self.ran_out(self.first))
    }

    /// The answer, ended with an error event when the engine falls silent.
    pub fn body<B>(self, answer: http::Response<B>, request_id: &str) -> http::Response<Watched<B>> {
        let is_stream = answer
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        answer.map(|body| Watched {
            body: Some(body),
            patience: self,
            wait: self.first,
            sleep: Box::pin(tokio::time::sleep_until(self.until(self.first))),
            is_stream,
            request_id: request_id.to_owned(),
        })
    }
}

/// An engine's answer under that watch.
pub struct Watched<B> {
    /// Let go with its connection as soon as it is given up: that is what tells the engine.
    body: Option<B>,
    patience: Patience,
    wait: Duration,
    sleep: Pin<Box<Sleep>>,
    is_stream: bool,
    request_id: String,
}

impl<B> Watched<B> {
    /// A piece has come: the clock starts again.
    fn heard(&mut self) {
        self.wait = self.patience.next;
        let until = self.patience.until(self.wait);
        self.sleep.as_mut().reset(until);
    }
}

impl<B> Body for Watched<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            // A comment keeps a silent stream alive and is no progress.
            let is_piece =
                |frame: &Frame<Bytes>| frame.data_ref().is_some_and(|data| !data.starts_with(b":"));
            if frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(is_piece)) {
                self.heard();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.body = None;
        let failure = self.patience.ran_out(self.wait);
        tracing::warn!(request = self.request_id, reason = failure.message, "an engine's answer is given up");
        if !self.is_stream {
            return Poll::Ready(Some(Err(failure.into())));
        }
        // Whatever line was cut in the middle is closed first.
        let event = format!("\n\ndata: {}\n\n", failure.body(&self.request_id));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(event)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fleet::now_ms;
    use http_body_util::BodyExt;
    use std::collections::VecDeque;

    /// Says what it has, and then nothing for ever.
    struct Stuck(VecDeque<&'static str>);

    impl Body for Stuck {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece))))),
                None => Poll::Pending,
            }
        }
    }

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(86_400);

    fn patience(first: Duration, next: Duration) -> Patience {
        Patience { first, next, deadline: None }
    }

    fn answer(kind: &'static str, pieces: &[&'static str]) -> http::Response<Stuck> {
        let body = Stuck(pieces.iter().copied().collect());
        http::Response::builder().header("content-type", kind).body(body).unwrap()
    }

    #[tokio::test]
    async fn an_engine_that_falls_silent_in_its_stream_is_given_up_with_an_error_event() {
        let answer = answer("text/event-stream", &["data: 1\n\n", "data: {\"cut"]);
        let told = patience(NEVER, SOON).body(answer, "r").into_body().collect().await.unwrap().to_bytes();
        let told = String::from_utf8(told.to_vec()).unwrap();
        assert!(told.starts_with("data: 1\n\ndata: {\"cut\n\ndata: {\"error\""), "{told}");
        assert!(told.contains("INFERENCE_TIMEOUT") && !told.contains("[DONE]"), "{told}");
    }

    #[tokio::test]
    async fn a_comment_is_no_progress_and_a_whole_answer_breaks_off() {
        let answer = answer("text/event-stream; charset=utf-8", &[": alive\n\n"]);
        let told = patience(SOON, NEVER).body(answer, "r").into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&told).contains("INFERENCE_TIMEOUT"), "{told:?}");
        let whole = self::answer("application/json", &["{"]);
        assert!(patience(NEVER, SOON).body(whole, "r").into_body().collect().await.is_err());
    }

    #[tokio::test]
    async fn one_that_never_answers_is_a_timeout_and_a_deadline_is_told_apart() {
        let never = std::future::pending::<()>;
        let failure = patience(SOON, NEVER).head(never()).await.unwrap_err();
        assert_eq!((failure.code, failure.code.status()), (Code::InferenceTimeout, 504));
        let soon = Patience::new(Some(&(now_ms() + 5).to_string()), now_ms());
        let failure = soon.head(never()).await.unwrap_err();
        assert_eq!((failure.code, failure.code.status()), (Code::RequestTimeout, 408));
        let answer = answer("text/event-stream", &["data: 1\n\n"]);
        let told = soon.body(answer, "r").into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&told).contains("REQUEST_TIMEOUT"), "{told:?}");
    }
}
