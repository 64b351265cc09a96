//! The queen's end of a link: HTTP/2 as its client. It stands on the protocol's own crate: a request's head and body are handed to
//! the connection together and leave in one write, and whoever asked is woken by the answer itself. hyper's client runs two
//! tasks a request for that.

use super::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, LOCAL_RESETS_MAX, LinkError,
    PENDING_RESETS_MAX, PING_ANSWER_MAX, PING_EVERY, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_MAX,
};
use crate::http::Body;
use bytes::Bytes;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::Method;
use http::header::CONTENT_LENGTH;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// A cloneable way to ask the hive.
#[derive(Debug, Clone)]
pub struct Caller {
    requests: h2::client::SendRequest<Bytes>,
}

/// Starts the queen's end; the second value runs the link and ends with it.
pub async fn call(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
) -> Result<(Caller, impl Future<Output = Result<(), LinkError>> + Send), LinkError> {
    call_within(PING_EVERY, PING_ANSWER_MAX, io).await
}

async fn call_within(
    ping_every: Duration,
    ping_answer_max: Duration,
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
) -> Result<(Caller, impl Future<Output = Result<(), LinkError>> + Send), LinkError> {
    let reads = Arc::new(AtomicU64::new(0));
    let (requests, mut connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(STREAMS_MAX as usize)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_concurrent_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .handshake(TokioIo::new(Heard { io, reads: reads.clone() }))
        .await
        .map_err(LinkError::Lost)?;
    let pings = connection.ping_pong();
    let running = async move {
        tokio::select! {
            ended = connection => ended.map_err(LinkError::Lost),
            Err(lost) = heard_from(pings, &reads, ping_every, ping_answer_max) => Err(lost),
        }
    };
    Ok((Caller { requests }, running))
}

/// Ends when nothing came from the other side in time, though it was asked. On a slow line an answer to a ping may well be
/// late behind others.
async fn heard_from(
    pings: Option<PingPong>,
    reads: &AtomicU64,
    every: Duration,
    answer_max: Duration,
) -> Result<Infallible, LinkError> {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(every).await;
        let mut answered = pin!(pings.ping(Ping::opaque()));
        loop {
            let before = reads.load(Ordering::Relaxed);
            match tokio::time::timeout(answer_max, answered.as_mut()).await {
                Ok(answered) => {
                    answered.map_err(LinkError::Lost)?;
                    break;
                }
                Err(_) if reads.load(Ordering::Relaxed) == before => return Err(LinkError::Silent),
                Err(_) => {}
            }
        }
    }
}

/// A connection that counts what comes.
struct Heard<T> {
    io: T,
    reads: Arc<AtomicU64>,
}

impl<T: hyper::rt::Read + Unpin> hyper::rt::Read for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        if read.is_ready() {
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl<T: hyper::rt::Write + Unpin> hyper::rt::Write for Heard<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Caller {
    /// Asks once; its answer's body lasts no longer than the link. Dropping it, or this future, ends the work over there.
    pub async fn send(&self, request: http::Request<Body>) -> Result<http::Response<Streamed>, LinkError> {
        let (mut head, body) = request.into_parts();
        // An empty body has to say so where one is expected.
        let expects_one = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || expects_one) {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        // HTTP/2 multiplexes: a clone is another stream of the same connection.
        let mut requests = self.requests.clone().ready().await.map_err(LinkError::Lost)?;
        let is_whole = body.is_end_stream();
        let sent = requests.send_request(http::Request::from_parts(head, ()), is_whole);
        let (answer, stream) = sent.map_err(LinkError::Lost)?;
        let upload = if is_whole { None } else { upload(stream, body) };
        let answer = answer.await.map_err(LinkError::Lost)?;
        Ok(answer.map(|frames| Streamed { frames, _upload: upload }))
    }

    /// Whether it takes no more requests: it has ended, or is about to, once those under way have.
    pub fn is_closed(&self) -> bool {
        let ready = self.requests.clone().poll_ready(&mut Context::from_waker(Waker::noop()));
        matches!(ready, Poll::Ready(Err(_)))
    }
}

/// Sends a body: what is there goes at once, the rest, if there is one, as it comes and as the other side takes it.
fn upload(mut stream: SendStream<Bytes>, mut body: Body) -> Option<AbortOnDropHandle<()>> {
    // Whoever waits for what is still to come asks again.
    let first = match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        Poll::Ready(Some(Err(_))) => {
            stream.send_reset(NOT_WHOLE);
            return None;
        }
        Poll::Ready(None) => {
            let _ = stream.send_data(Bytes::new(), true);
            return None;
        }
        Poll::Pending => return Some(rest(stream, body)),
    };
    let is_last = body.is_end_stream();
    // An empty piece that is not the end would be held against the whole link. A stream that was reset meanwhile says so to
    // whoever waits for the answer.
    let is_sent = (first.is_empty() && !is_last) || stream.send_data(first, is_last).is_ok();
    (is_sent && !is_last).then(|| rest(stream, body))
}

/// A request whose body broke off.
const NOT_WHOLE: Reason = Reason::CANCEL;

fn rest(mut stream: SendStream<Bytes>, mut body: Body) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return stream.send_reset(NOT_WHOLE) };
            let Ok(mut bytes) = frame.into_data() else { continue };
            while !bytes.is_empty() {
                stream.reserve_capacity(bytes.len());
                let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                if stream.send_data(bytes.split_to(room.min(bytes.len())), false).is_err() {
                    return;
                }
            }
        }
        let _ = stream.send_data(Bytes::new(), true);
    }))
}

/// An answer's body. The room that a piece took in the stream's window is given back as soon as the piece is taken over.
#[derive(Debug)]
pub struct Streamed {
    frames: RecvStream,
    /// An answer may come before the request's end; when it is over, or dropped, nobody wants the rest.
    _upload: Option<AbortOnDropHandle<()>>,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let frames = &mut self.frames;
        Poll::Ready(match ready!(frames.poll_data(cx)) {
            Some(Ok(bytes)) => {
                // Refused only when the stream is over.
                let _ = frames.flow_control().release_capacity(bytes.len());
                Some(Ok(Frame::data(bytes)))
            }
            // The answer is whole, and no more of the request is wanted (RFC 9113, 8.1).
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => None,
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{pipe, serve};
    use super::*;
    use crate::http::reply::BoxError;
    use crate::http::server::Service;
    use crate::http::{Request, Response, client, reply};
    use crate::shutdown::Shutdown;
    use crate::wire::Failure;
    use http_body_util::channel::Channel;
    use tokio::sync::Notify;

    /// A hive with two routes.
    #[derive(Debug, Clone, Default)]
    struct Hive {
        /// A request for /never has been let go.
        let_go: Arc<Notify>,
    }

    struct Tells(Arc<Notify>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    impl Service for Hive {
        async fn call(&self, request: Request) -> Result<Response, Failure> {
            if request.path() == "/never" {
                let _tells = Tells(self.let_go.clone());
                std::future::pending::<()>().await;
            }
            if request.path() == "/early" {
                return Ok(reply::text("enough"));
            }
            Ok(reply::text(request.bytes(usize::MAX).await?))
        }
    }

    async fn linked() -> (Caller, Hive) {
        linked_until(Shutdown::new()).await
    }

    async fn linked_until(shutdown: Shutdown) -> (Caller, Hive) {
        let (over_there, here) = pipe();
        let hive = Hive::default();
        tokio::spawn(serve(over_there, hive.clone(), shutdown));
        let (caller, running) = call(here).await.unwrap();
        tokio::spawn(running);
        (caller, hive)
    }

    fn ask(path: &str, body: Body) -> http::Request<Body> {
        client::request("POST", path, body).unwrap()
    }

    /// A body that comes piece by piece.
    fn slow() -> (http_body_util::channel::Sender<Bytes, BoxError>, Body) {
        let (sender, body) = Channel::new(1);
        (sender, body.boxed_unsync())
    }

    async fn told(answer: http::Response<Streamed>) -> Result<Bytes, h2::Error> {
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    fn bytes(count: usize) -> Bytes {
        (0..count).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn a_body_arrives_whole_whether_it_is_there_or_comes_in_pieces_larger_than_a_window() {
        let (caller, _) = linked().await;
        for count in [0, 1, 3 * STREAM_WINDOW_BYTES as usize + 17] {
            let all = bytes(count);
            let answer = caller.send(ask("/echo", reply::full(all.clone()))).await.unwrap();
            assert!(told(answer).await.unwrap() == all, "{count} at once");
            let (mut pieces, body) = slow();
            let asking = caller.send(ask("/echo", body));
            let giving = async {
                for piece in all.chunks(100_000) {
                    pieces.send_data(Bytes::copy_from_slice(piece)).await.unwrap();
                }
                drop(pieces);
            };
            let (answer, ()) = tokio::join!(asking, giving);
            assert!(told(answer.unwrap()).await.unwrap() == all, "{count} in pieces");
        }
    }

    #[tokio::test]
    async fn bodies_that_turn_out_empty_are_not_held_against_the_link() {
        let (caller, _) = linked().await;
        for _ in 0..300 {
            let (pieces, body) = slow();
            drop(pieces);
            assert_eq!(told(caller.send(ask("/echo", body)).await.unwrap()).await.unwrap(), "");
            let (mut pieces, body) = slow();
            pieces.send_data(Bytes::new()).await.unwrap();
            drop(pieces);
            assert_eq!(told(caller.send(ask("/echo", body)).await.unwrap()).await.unwrap(), "");
        }
    }

    #[tokio::test]
    async fn a_hive_that_drains_takes_no_more_and_ends_what_it_has_begun() {
        let shutdown = Shutdown::new();
        let (caller, _) = linked_until(shutdown.clone()).await;
        let (mut pieces, body) = slow();
        let asking = caller.send(ask("/echo", body));
        let giving = async {
            // It has begun when another that came after it was answered.
            drop(caller.send(ask("/early", reply::empty())).await.unwrap());
            shutdown.drain();
            while !caller.is_closed() {
                tokio::task::yield_now().await;
            }
            pieces.send_data(bytes(10)).await.unwrap();
            drop(pieces);
        };
        let (answer, ()) = tokio::join!(asking, giving);
        assert_eq!(told(answer.unwrap()).await.unwrap(), bytes(10));
        assert!(caller.send(ask("/echo", reply::empty())).await.is_err());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_taken_for_whole() {
        let (caller, _) = linked().await;
        let (mut pieces, body) = slow();
        let giving = async {
            pieces.send_data(bytes(10)).await.unwrap();
            pieces.abort("gone".into());
        };
        let (answer, ()) = tokio::join!(caller.send(ask("/echo", body)), giving);
        match answer {
            Ok(answer) => assert!(!answer.status().is_success(), "{}", answer.status()),
            Err(error) => assert!(matches!(error, LinkError::Lost(_)), "{error}"),
        }
    }

    #[tokio::test]
    async fn an_answer_that_comes_before_the_requests_end_is_whole_and_ends_the_upload() {
        let (caller, _) = linked().await;
        let (mut pieces, body) = slow();
        pieces.send_data(bytes(10)).await.unwrap();
        let answer = caller.send(ask("/early", body)).await.unwrap();
        assert_eq!(told(answer).await.unwrap(), "enough");
        // The task that read the body has let it go: whoever fed it is told.
        while pieces.send_data(bytes(1)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn whoever_stops_waiting_ends_the_work_over_there() {
        let (caller, hive) = linked().await;
        let (pieces, slow) = slow();
        for body in [reply::full("whole"), slow] {
            tokio::select! {
                answer = caller.send(ask("/never", body)) => panic!("{answer:?}"),
                // It is at work over there when another request has been answered.
                answer = async { caller.send(ask("/echo", reply::empty())).await } => drop(answer.unwrap()),
            }
            hive.let_go.notified().await;
        }
        drop(pieces);
    }

    #[tokio::test]
    async fn a_silent_other_side_is_found_and_the_link_is_closed() {
        const SOON: Duration = Duration::from_millis(5);
        let (_over_there, here) = pipe();
        let (caller, running) = call_within(SOON, SOON, here).await.unwrap();
        assert!(!caller.is_closed());
        assert!(matches!(running.await, Err(LinkError::Silent)));
        assert!(caller.is_closed());
        assert!(matches!(caller.send(ask("/echo", reply::empty())).await, Err(LinkError::Lost(_))));
    }
}
